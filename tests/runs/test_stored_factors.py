"""Stored curvature in a run: factors are read from their folder and travel in every batch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lives import GONE, KEPT, table
from safetensors.numpy import load_file

from jaxunlearn import models
from jaxunlearn.cli import main
from jaxunlearn.curvature import KFAC, Identity
from jaxunlearn.curvature.kronecker import eigendecompose, kronecker_factors, load, save
from jaxunlearn.data import collate, shapes_of
from jaxunlearn.methods import Method
from jaxunlearn.objectives import NLL, Objective
from jaxunlearn.runs.curvature import warn_if_moved
from jaxunlearn.runs.forget import forget
from jaxunlearn.runs.options import make_method
from jaxunlearn.runs.references import Stored
from jaxunlearn.transforms import anchor_by_curvature
from jaxunlearn.types import Model, Reference

NOTHING = Stored(Reference(), Reference(), None, None)


@pytest.fixture(scope="module")
def folder(encoded, tmp_path_factory):
    length, places = shapes_of(encoded.retain)
    batch = collate(encoded.retain, length=length, places=places)
    recipe = KFAC(only=("layers/*",))
    eigen = eigendecompose(kronecker_factors(encoded.model, encoded.params, batch, recipe), encoded.params)
    return str(save(tmp_path_factory.mktemp("stored") / "factors", eigen))


@pytest.mark.parametrize(
    ("name", "options"), [("kfade", ("max_kl=1e-2",)), ("kfac_edit", ("rho=0.5",))], ids=["kfade", "kfac_edit"]
)
def test_a_run_reads_factors_from_their_folder(encoded, folder, name, options):
    method = make_method(name, [*options, f"factors={folder}"])
    done = forget(
        method, encoded.model, jax.tree.map(jnp.copy, encoded.params), encoded.forget, encoded.retain, NOTHING,
        steps=2, batch_size=4, retain_size=4,
    )  # fmt: skip
    assert all(line["applied"] == 1.0 for line in done.history)
    assert done.history[0]["update_norm"] > 0
    layers = lambda params: np.concatenate([np.ravel(x) for x in jax.tree.leaves(params["layers"])])
    assert np.abs(layers(done.state.params) - layers(encoded.params)).max() > 0
    if name == "kfade":
        assert done.history[1]["forget_nll"] > done.history[0]["forget_nll"]
        rest = {key: value for key, value in encoded.params.items() if key != "layers"}
        for path, value in jax.tree.leaves_with_path(rest):
            after = done.state.params
            for key in path:
                after = after[key.key]
            np.testing.assert_array_equal(after, value)  # they have no factor


@pytest.mark.parametrize(
    ("kind", "method", "options"),
    [
        ("ekfac", "kfade", ()),
        ("kfac", "win_u", ("share=0.2", "draws=1")),
        ("gradients", "fisher_removal", ()),
        ("ekfac", "anchored_matching", ()),
        ("ekfac", "anchored_matching", ("max_kl=1e-6",)),
    ],
)
def test_the_command_stores_what_a_run_without_retain_set_reads(world, tmp_path, kind, method, options):
    kept, out = tmp_path / "kept", tmp_path / "out"
    taking = ["--model", world.model, "--data", world.forget, "--data", world.retain, "--out", str(kept)]
    softer = ["--temperature", "3"] if method == "anchored_matching" else []
    assert main(["curvature", *taking, "--kind", kind, "--samples", "6", *softer]) == 0
    record = json.loads((kept / "jaxunlearn.json").read_text())
    if softer:
        assert load(kept, models.load(world.model)[1]).settings.temperature == 3.0
    assert record["records"] == len(world.rows.forget) + len(world.rows.retain)
    forgetting = ["--model", world.model, "--forget", world.forget, "--out", str(out), "--method", method]
    chosen = [word for option in (f"factors={kept}", *options) for word in ("--option", option)]
    assert main(["unlearn", *forgetting, *chosen, "--steps", "2"]) == 0
    found = json.loads((out / "jaxunlearn.json").read_text())
    assert "retain" not in found["inputs"]
    assert found["history"][0]["update_norm"] > 0
    if method == "anchored_matching":  # it has a minimum, which for a blank model is no higher loss
        assert found["history"][1]["objective"] < found["history"][0]["objective"]
    else:
        assert found["certificate"]["forget_after"] > found["certificate"]["forget_before"]
    assert warn_if_moved(kept, record["weights"]) is None
    assert "was taken at other weights" in warn_if_moved(kept, found["weights"])


def test_an_anchor_of_a_part_holds_the_same_part():
    """A step of SGD at rate 1 differs by (theta - theta_0) / 2."""
    model = Model(logits=lambda p, tokens: p["table"][tokens] + p["bias"])
    here = lambda: {"table": table(), "bias": jnp.arange(16.0) / 16}  # given up by each run
    elsewhere = lambda: jax.tree.map(lambda p: p + 0.25, here())
    anchor = anchor_by_curvature(Identity(), strength=0.5, metric=(("retain", 1.0),))
    method = Method("held", Objective(((1.0, NLL("forget")),)), optax.chain(anchor, optax.sgd(1.0)))
    free, held = (
        forget(
            method, model, here(), GONE, KEPT, NOTHING,
            steps=1, batch_size=4, retain_size=4, trainable=("table",), anchor=start,
        ).state.whole()
        for start in (None, elsewhere)
    )  # fmt: skip
    np.testing.assert_allclose(held["table"] - free["table"], 0.125, rtol=1e-4)
    np.testing.assert_array_equal(held["bias"], here()["bias"])


def test_a_second_request_can_be_held_where_the_curvature_was_taken(world, tmp_path, capsys):
    """So strong an anchor undoes the first request; begun anew at its result, it keeps it."""
    kept = tmp_path / "kept"
    taking = ["--model", world.model, "--data", world.forget, "--data", world.retain, "--out", str(kept)]
    assert main(["curvature", *taking, "--kind", "ekfac", "--temperature", "3"]) == 0

    def ask(model, out, strength, *more):
        method = ["--method", "anchored_matching", "--option", f"factors={kept}", "--option", f"strength={strength}"]
        files = ["--model", str(model), "--forget", world.forget, "--out", str(tmp_path / out)]
        return main(["unlearn", *files, *method, "--option", "learning_rate=1e-3", "--steps", "12", *more])

    def apart(out):
        ours, first = (load_file(f"{folder}/model.safetensors") for folder in (tmp_path / out, world.model))
        return sum(float(np.sum((ours[name] - value) ** 2)) for name, value in first.items()) ** 0.5

    assert ask(world.model, "first", 1e-6) == 0
    capsys.readouterr()
    for out, more in (("anew", ()), ("held", ("--anchor", world.model))):
        assert ask(tmp_path / "first", out, 1e6, *more) == 0
        warned = "was taken at other weights" in " ".join(capsys.readouterr().out.split())
        assert warned == (out == "anew")
    assert apart("held") < 0.8 * apart("first") < apart("anew")
    assert json.loads((tmp_path / "held" / "jaxunlearn.json").read_text())["inputs"]["anchor"]
    for message, more in (
        ("adapters begin at nothing", ("--anchor", world.model, "--lora-rank", "2")),
        ("--anchor:", ("--anchor", str(tmp_path / "nowhere"))),
    ):
        capsys.readouterr()
        assert ask(tmp_path / "first", "none", 1.0, *more) == 2
        assert message in capsys.readouterr().err
    assert main(["unlearn", "--model", world.model, "--forget", world.forget, "--retain", world.retain, "--out",
                 str(tmp_path / "none"), "--method", "npo", "--anchor", world.model]) == 2  # fmt: skip
    assert "--method npo has no anchor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "remedy"),
    [("npo", "--option retain=none"), ("kfade", "--option factors=FOLDER"), ("newton_removal", "another method")],
)
def test_a_method_that_needs_a_retain_set_says_what_else_would_do(world, tmp_path, method, remedy, capsys):
    asked = ["--model", world.model, "--forget", world.forget, "--out", str(tmp_path / "out"), "--method", method]
    assert main(["unlearn", *asked]) == 2
    shown = capsys.readouterr().err
    assert f"{method} needs examples of what must be kept: give --retain FILE; or" in shown
    assert remedy in shown


def test_a_folder_that_is_not_there_is_named(encoded, tmp_path):
    method = make_method("kfade", [f"factors={tmp_path / 'nowhere'}"])
    with pytest.raises(ValueError, match="nowhere holds no stored curvature"):
        forget(
            method, encoded.model, encoded.params, encoded.forget, encoded.retain, NOTHING,
            steps=1, batch_size=4, retain_size=4,
        )  # fmt: skip
