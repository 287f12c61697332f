"""`unlearn --stream-retain`: the step that the method takes of all records at once, interrupted or not."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lives import BIGRAM, GONE, KEPT, table
from safetensors.numpy import load_file
from test_memory_budget import kibibytes

from jaxunlearn.cli import main
from jaxunlearn.runs import budget
from jaxunlearn.runs.budget import Form
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.forget_streamed import check, forget_streamed
from jaxunlearn.runs.options import make_method
from jaxunlearn.runs.progress import Reporter, Stage
from jaxunlearn.runs.record import digest
from jaxunlearn.runs.references import store
from jaxunlearn.runs.settings import Devices, Unlearn, Watching
from jaxunlearn.runs.trainable import Chosen
from jaxunlearn.sharding import make_mesh
from jaxunlearn.types import Model

# A bigram table of which a part is trained.
CUT = Model(logits=lambda p, tokens: p["table"][tokens] + p["bias"])


def settings(**changed) -> Unlearn:
    given = {"model": Path("m"), "forget": "f", "out": Path("o"), "method": "newton_removal", "stream_retain": True}
    return Unlearn(**given | changed)


def chosen(cut=False, mesh=None):
    if not cut:
        return Chosen(BIGRAM, table(mesh), None)
    return Chosen(CUT, {"table": table(), "bias": jnp.arange(16.0) / 16}, ("table",))


def streamed(folder, asked, of, mesh=None):
    """The step on 6 forget and 23 retain records, 4 and 8 at a time."""
    work = SimpleNamespace(checkpoints=lambda say: Checkpoints(folder, say=say))
    with Reporter(quiet=True) as reporter:
        return forget_streamed(asked, of, GONE, KEPT, (4, 8), mesh=mesh, reporter=reporter, work=work)


def close(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=5e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("method", "options", "cut"),
    [
        ("newton_removal", ("max_kl=none", "damping=0.05", "step_size=0.25"), False),
        ("newton_removal", ("max_kl=1e-3", "damping=0.02"), True),
        ("gauss_newton_ascent", ("max_kl=1e-2", "damping=0.01"), False),
    ],
)
def test_it_is_the_step_of_the_method_on_all_records(method, options, cut, tmp_path):
    """Parameters, certificate, solve, trust region and the line of the history, to rounding."""
    asked, recipe = settings(method=method, option=options), make_method(method, options)
    done, (model, params, select) = streamed(tmp_path, asked, chosen(cut)), chosen(cut)
    whole = forget(
        recipe, model, params, GONE, KEPT, store(recipe, model, params, GONE, KEPT, prompts=None),
        steps=1, batch_size=len(GONE), retain_size=len(KEPT), trainable=select,
    )  # fmt: skip
    close(done.state.whole(), whole.state.whole())
    close(done.info, whole.info)
    assert int(done.info.curvature.solve.steps) >= 3
    assert done.history[0].keys() == whole.history[0].keys()
    assert (done.products, done.stopped, done.kept) == (whole.products, "streamed", whole.kept)


def test_a_step_that_is_not_finite_is_not_taken(tmp_path):
    broken = table().at[0, 0].set(jnp.nan)
    done = streamed(tmp_path, settings(), Chosen(BIGRAM, broken, None))
    assert not done.info.applied
    np.testing.assert_array_equal(done.state.params, broken)


def test_on_a_mesh_it_is_the_same_step(tmp_path):
    asked, mesh = settings(option=("max_kl=1e-3", "damping=0.05")), make_mesh(fsdp=8)
    here, there = (streamed(tmp_path / str(m is None), asked, chosen(mesh=m), m) for m in (None, mesh))
    close(there.state.params, here.state.params)
    assert there.history[0] == pytest.approx(here.history[0], rel=1e-3)
    assert there.state.params.sharding.spec[0] == "fsdp"


def argv(world, out, *more):
    found = ["unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.retain, "--out", str(out)]
    found += ["--method", "gauss_newton_ascent", "--option", "damping=1e-3", "--option", "cg_steps=6"]
    return [*found, "--stream-retain", "--batch-size", "3", "--retain-size", "3", "--checkpoint-every", "1", *more]


def test_from_the_command_line_a_solve_goes_on_inside(world, tmp_path, monkeypatch, capsys):
    """Ctrl-C at the third product, then --resume: the same bits, and no product twice that was saved."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self, alone=False: None)
    assert main(argv(world, tmp_path / "alone")) == 0
    real, seen = Stage.advance, []

    def advance(stage, steps=1, **facts):
        if "residual" in facts:
            seen.append(facts["products"])
            if len(seen) == 3:
                raise KeyboardInterrupt
        return real(stage, steps, **facts)

    monkeypatch.setattr(Stage, "advance", advance)
    assert main(argv(world, tmp_path / "out")) == 130
    assert "to go on: jaxunlearn unlearn --config" in capsys.readouterr().err
    assert main(argv(world, tmp_path / "out", "--resume")) == 0
    assert seen == [1, 2, 3, 3, 4, 5, 6]
    assert digest(tmp_path / "out") == digest(tmp_path / "alone")
    record, alone = (json.loads((tmp_path / name / "jaxunlearn.json").read_text()) for name in ("out", "alone"))
    assert record["certificate"] == alone["certificate"]
    assert (record["steps"], record["products"], len(record["requests"])) == (1, 6, 1)
    assert record["settings"]["stream_retain"] is True
    assert not (tmp_path / "out.partial").exists()


def test_within_a_budget_it_is_the_same_step(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Devices, "make_mesh", lambda self, alone=False: make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(budget, "forms_of", lambda *_: [Form(), Form("full", 1, 64)])
    assert main(argv(world, tmp_path / "none", "--memory-budget", "1kB")) == 2
    told = capsys.readouterr()
    assert "the leanest form (remat full, 1 examples at a time, 64 rows of logits)" in " ".join(told.err.split())
    whole, leanest = kibibytes(told.out)
    assert leanest < 0.9 * whole
    assert main(argv(world, tmp_path / "cut", "--memory-budget", f"{leanest + 1:.0f}KiB")) == 0
    assert main(argv(world, tmp_path / "whole")) == 0
    records = [json.loads((tmp_path / name / "jaxunlearn.json").read_text()) for name in ("cut", "whole")]
    assert records[0]["form"] == {"remat": "full", "microbatch": 1, "head_rows": 64}
    assert "form" not in records[1]
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)
    assert main(argv(world, tmp_path / "dry", "--memory-budget", f"{leanest + 1:.0f}KiB", "--dry-run")) == 0
    assert "a device: remat full, 1 examples at a time" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "npo"}, "--method npo cannot do: choose newton_removal or gauss_newton_ascent"),
        ({"steps": 2}, "--steps 2: --stream-retain takes one step"),
        ({"stop_at_nll": 0.0}, "--stop-at-nll is about where to stop"),
        ({"holdout": "h"}, "--holdout is about"),
        ({"watching": Watching(stop_when=("jang",))}, "--stop-when is about"),
        ({"watching": Watching(keep_while=("retain_nll<=1",))}, "--keep-while is about"),
        ({"watching": Watching(evaluate_every=1)}, "--evaluate-every is about"),
    ],
)
def test_what_contradicts_it_is_named(changed, message):
    check(settings(steps=1))
    check(settings(stream_retain=False, **changed))
    with pytest.raises(ValueError, match=message):
        check(settings(**changed))
