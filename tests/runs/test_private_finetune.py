"""Private fine-tuning: what it learns, what it writes down, and what it refuses to promise."""

import json

import jax
import numpy as np
import pytest

from jaxunlearn import models
from jaxunlearn.accounting import SampledGaussian
from jaxunlearn.cli import main
from jaxunlearn.runs.fit_private import fit_private
from jaxunlearn.runs.record import FILE
from jaxunlearn.runs.settings import Devices
from jaxunlearn.sharding import make_mesh


@pytest.fixture
def alone(monkeypatch):
    """As on a machine with one device."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)


def argv(world, out, **flags):
    found = ["finetune", "--model", world.model, "--data", world.retain, "--out", str(out)]
    return found + [str(part) for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)]


def test_a_run_learns_and_says_what_it_cost(world, encoded, alone, tmp_path, capsys):
    n, out = len(encoded.retain), tmp_path / "out"
    asked = {"private_epsilon": 60, "private_delta": 1e-3, "clip_norm": 2.0, "private_rows": 4}
    assert main(argv(world, out, epochs=20, batch_size=n // 2, learning_rate=1e-2, **asked)) == 0
    found = json.loads((out / FILE).read_text())
    promised = found["privacy"]
    run = SampledGaussian(
        n, n // 2, promised["capacity"], promised["steps"], noise_multiplier=promised["noise_multiplier"]
    )
    assert promised["epsilon"] == pytest.approx(run.epsilon(1e-3), rel=1e-9)
    assert 0.98 * 60 < promised["epsilon"] <= 60
    assert (promised["delta"], promised["clip_norm"], promised["records"]) == (1e-3, 2.0, n)
    assert promised["steps"] == found["steps"] == 20 * -(-n // (n // 2))
    assert promised["sampling_rate"] == (n // 2) / n
    assert promised["adjacency"] == "add or remove one record"
    assert len(found["losses"]) == 20
    assert found["losses"][-1] < found["losses"][0] - 0.5
    card, said = (out / "README.md").read_text(), capsys.readouterr().out
    for text in (f"{promised['epsilon']:.4g}", "0.001", f"{promised['noise_multiplier']:.4g}"):
        assert text in card
        assert text in said
    assert "add or remove one record" in card
    models.load(out)


def test_the_noise_decides_and_the_entropy_repeats_it(encoded):
    mechanism = SampledGaussian(len(encoded.retain), 6, len(encoded.retain), 3, 1.0)

    def trained(entropy, rows=6):
        words = None if entropy is None else np.arange(entropy, entropy + 6, dtype=np.uint32)
        start = jax.tree.map(lambda x: x.copy(), encoded.params)
        done = fit_private(
            encoded.model, start, encoded.retain, mechanism,
            clip_norm=1.0, learning_rate=1e-3, microbatch=rows, entropy=words, warmup=0,
        )  # fmt: skip
        assert (done.steps, len(done.losses)) == (3, 1)
        return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(done.params)])

    first = trained(1)
    np.testing.assert_array_equal(trained(1), first)
    assert np.abs(trained(2) - first).max() > 1e-3
    assert np.abs(trained(None) - trained(None)).max() > 1e-3  # nobody chose it, nobody can repeat it
    with pytest.raises(ValueError, match=r"5 records, but the privacy was computed for \d+"):
        fit_private(encoded.model, {}, encoded.retain[:5], mechanism, clip_norm=1.0, learning_rate=1e-3)


def test_eight_devices_train_the_same_model(world, encoded):
    mechanism, words = (
        SampledGaussian(len(encoded.retain), 8, len(encoded.retain), 2, 1.0),
        np.arange(6, dtype=np.uint32),
    )
    found = []
    for mesh in (None, make_mesh(data=2, fsdp=2, tensor=2)):
        model, start = models.load(world.model, mesh=mesh)
        layouts = [x.sharding for x in jax.tree.leaves(start)]
        done = fit_private(
            model, start, encoded.retain, mechanism,
            clip_norm=1.0, learning_rate=1e-2, microbatch=4, entropy=words, warmup=0, mesh=mesh,
        )  # fmt: skip
        leaves = jax.tree.leaves(done.params)
        assert all(x.sharding.is_equivalent_to(layout, x.ndim) for x, layout in zip(leaves, layouts, strict=True))
        found.append(np.concatenate([np.asarray(x).ravel() for x in leaves]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


PRIVATE = {"private_epsilon": 8, "private_delta": 1e-3}
REFUSED = {
    "clipping alone": ({"clip_norm": 1.0}, "--clip-norm 1.0 without --private-epsilon"),
    "delta alone": ({"private_delta": 1e-3}, "--private-delta 0.001 without --private-epsilon"),
    "both": (PRIVATE | {"noise_multiplier": 1.0}, "one follows from the other"),
    "epsilon": (PRIVATE | {"private_epsilon": 0}, "--private-epsilon 0.0: give a positive number"),
    "noise": ({"noise_multiplier": -1, "private_delta": 1e-3}, "--noise-multiplier -1.0: give a positive number"),
    "norm": (PRIVATE | {"clip_norm": "0.0"}, "--clip-norm 0.0: give a positive number"),
    "nan": (PRIVATE | {"clip_norm": "nan"}, "--clip-norm nan: give a number"),
    "rows": (PRIVATE | {"private_rows": 0}, "--private-rows 0: at least one"),
    "no delta": ({"private_epsilon": 8}, "needs --private-delta, well below 1 / "),
    "large delta": (PRIVATE | {"private_delta": 0.5}, "publishing a whole record would count as private"),
    "early stop": (PRIVATE | {"stop_at_loss": 0.1}, "must not depend on the records; choose --epochs"),
    "batch": (PRIVATE | {"batch_size": 1000}, "--batch-size 1000: choose at most"),
    "no noise left": (PRIVATE | {"private_epsilon": 1e5, "epochs": 1}, "leaves hardly any noise"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_promise_nothing_is_refused(case, world, alone, tmp_path, capsys):
    flags, message = REFUSED[case]
    assert main(argv(world, tmp_path / "out", **flags)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
