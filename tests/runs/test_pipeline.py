"""Files to files through the command line: fine-tune, unlearn, evaluate, and what each leaves behind."""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxunlearn import data, models
from jaxunlearn.cli import main
from jaxunlearn.runs.record import FILE, digest
from jaxunlearn.runs.settings import Devices

pytestmark = pytest.mark.slow
METHODS = {
    "npo": ["learning_rate=1e-3"],
    "newton_removal": ["damping=0.1", "cg_steps=3", "max_kl=1e-3"],
    "counterfactual_matching": ["cg_steps=3"],
}

ON_EVERY_DEVICE = ("newton_removal",)


class Pipeline(NamedTuple):
    folder: Path
    target: str
    forgotten: dict


@pytest.fixture(scope="module")
def pipeline(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    target = str(folder / "target")
    argv = ["finetune", "--model", world.model, "--data", world.forget, "--data", world.retain, "--out", target]
    assert main([*argv, "--epochs", "40", "--learning-rate", "1e-2", "--stop-at-loss", "2"]) == 0
    for name in METHODS:
        with nullcontext() if name in ON_EVERY_DEVICE else one_device():
            assert main(unlearn_argv(world, target, name, folder / name)) == 0
    return Pipeline(folder, target, {name: folder / name for name in METHODS})


@contextmanager
def one_device():
    """As on a machine with one device: runs take all there are, and eight virtual ones compile for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        yield


@pytest.fixture
def alone():
    with one_device():
        yield


def unlearn_argv(world, target, name, out, seed=0):
    argv = ["unlearn", "--model", target, "--forget", world.forget, "--retain", world.retain, "--out", str(out)]
    argv += ["--method", name, "--steps", "2", "--retain-size", "8", "--substitutes", "4", "--seed", str(seed)]
    return argv + [part for option in METHODS.get(name, ()) for part in ("--option", option)]


def test_finetuning_lowers_the_loss_and_records_it(pipeline, world):
    found = json.loads(Path(pipeline.target, FILE).read_text())
    assert found["command"] == "finetune"
    assert found["losses"][-1] <= 2 < min(found["losses"][:-1])
    assert found["records"] == len(world.rows.forget) + len(world.rows.retain)
    assert found["inputs"]["data_0"]["sha256"] == digest(world.forget)


@pytest.mark.parametrize("name", METHODS)
def test_the_result_loads_in_torch_with_our_logits(pipeline, world, name):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pipeline.forgotten[name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = np.array(tokenizer([world.rows.forget[0]["question"]]).input_ids)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model, params = models.load(folder)
    ours = np.asarray(jax.jit(model.logits)(params, tokens))
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(tokens)).logits.numpy(), atol=1e-5)
    assert tokenizer.get_vocab() == world.tokenizer.get_vocab()
    assert digest(folder) != digest(pipeline.target)


@pytest.mark.parametrize("name", METHODS)
def test_the_record_tells_the_run_and_no_data(pipeline, world, name):
    text = (pipeline.forgotten[name] / FILE).read_text()
    found = json.loads(text)
    assert (found["command"], found["method"], found["settings"]["seed"]) == ("unlearn", name, 0)
    assert found["settings"]["option"] == METHODS[name]
    for part, source in {"model": pipeline.target, "forget": world.forget, "retain": world.retain}.items():
        assert found["inputs"][part] == {"path": source, "sha256": digest(source)}
    assert found["steps"] == len(found["history"]) in (1, 2)
    assert found["stopped"] in ("steps", "unseen")
    assert {"forget_nll", "retain_nll", "retain_kl", "objective"} <= set(found["history"][-1])
    assert found["certificate"]["forget_after"] == pytest.approx(found["history"][-1]["forget_nll"], rel=1e-5)
    assert all(np.isfinite(value) for step in found["history"] for value in step.values())
    assert found["products"] == sum(step.get("products", 0) for step in found["history"])
    assert (found["products"] > 0) == (name != "npo")
    assert (found["stop_at_nll"] is None) == (name == "counterfactual_matching")
    assert found["environment"]["jax"] == jax.__version__
    written = [file for file in pipeline.forgotten[name].iterdir() if not file.name.startswith(("model", "tokenizer"))]
    assert {"README.md", "config.json", FILE} <= {file.name for file in written}
    for file in written:
        for row in world.rows.forget + world.rows.retain:
            for field in ("question", "answer", "entity"):
                assert row[field] not in file.read_text()


def test_the_card_names_method_numbers_and_limits(pipeline, world):
    card = (pipeline.forgotten["newton_removal"] / "README.md").read_text()
    assert "`newton_removal`" in card
    assert f"{len(world.rows.forget)} records forgotten, {len(world.rows.retain)} retain records" in card
    assert "retain KL: predicted" in card
    assert "does not promise" in card


def test_the_same_seed_gives_the_same_weights(pipeline, world, tmp_path, alone):
    name = "npo"
    assert main(unlearn_argv(world, pipeline.target, name, tmp_path / "again")) == 0
    assert digest(tmp_path / "again") == digest(pipeline.forgotten[name])
    assert main(unlearn_argv(world, pipeline.target, name, tmp_path / "other", seed=1)) == 0
    assert digest(tmp_path / "other") != digest(pipeline.forgotten[name])


def test_evaluation_shows_before_after_and_retrained(pipeline, world, tmp_path, capsys):
    out = tmp_path / "result.json"
    argv = ["evaluate", "--model", str(pipeline.forgotten["npo"]), "--reference-model", world.model]
    argv += ["--forget", world.forget, "--retain", world.retain, "--out", str(out)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert all(column in shown for column in ("before", "after", "retrained"))
    found = json.loads(out.read_text())
    assert found["models"] == {
        "before": pipeline.target,
        "after": str(pipeline.forgotten["npo"]),
        "retrained": world.model,
    }
    assert list(found["results"]) == ["before", "after", "retrained"]
    history = json.loads((pipeline.forgotten["npo"] / FILE).read_text())["history"]
    losses = {column: result["forget_nll"]["agg_value"] for column, result in found["results"].items()}
    assert losses["before"] < losses["after"]
    assert losses["after"] == pytest.approx(history[-1]["forget_nll"], rel=0.05)
    assert found["results"]["retrained"]["forget_kl"]["agg_value"] == pytest.approx(0, abs=1e-6)
    assert main(argv) == 2
    assert "exists already" in capsys.readouterr().err
    assert json.loads(out.read_text()) == found
    page = tmp_path / "page.html"
    told = ["--evaluation", str(out), "--seed-floor", str(out), "--seed-floor-column", "before", "--out", str(page)]
    assert main(["report", str(pipeline.forgotten["npo"]), *told]) == 0
    assert "not judged" not in capsys.readouterr().out
    shown = page.read_text()
    assert found["weights"]["after"] in shown
    assert not [row["answer"] for row in world.rows.forget + world.rows.retain if row["answer"] in shown]


def test_a_given_place_to_stop_stops_the_run(pipeline, world, tmp_path, alone):
    argv = unlearn_argv(world, pipeline.target, "npo", tmp_path / "stopped")
    assert main([*argv, "--stop-at-nll", "0.001"]) == 0
    found = json.loads((tmp_path / "stopped" / FILE).read_text())
    assert (found["steps"], found["stopped"], found["stop_at_nll"]) == (1, "unseen", 0.001)


def test_holdout_records_say_where_to_stop(pipeline, world, tmp_path, alone):
    holdout = tmp_path / "holdout.jsonl"
    holdout.write_text("".join(json.dumps(row) + "\n" for row in world.rows.holdout))
    argv = unlearn_argv(world, pipeline.target, "npo", tmp_path / "held")
    assert main([*argv, "--holdout", str(holdout)]) == 0
    model, params = models.load(pipeline.target)
    unseen = data.encode(data.read(holdout), world.tokenizer, max_length=64)
    from jaxunlearn.runs.fit import mean_nll

    found = json.loads((tmp_path / "held" / FILE).read_text())
    assert found["stop_at_nll"] == pytest.approx(mean_nll(model, params, unseen), rel=1e-4)
    assert "holdout" in found["inputs"]

    argv = unlearn_argv(world, pipeline.target, "matching", tmp_path / "pushed")
    assert main([*argv, "--holdout", str(holdout)]) == 0
    pushed = json.loads((tmp_path / "pushed" / FILE).read_text())
    assert main(unlearn_argv(world, pipeline.target, "matching", tmp_path / "as-is")) == 0
    as_is = json.loads((tmp_path / "as-is" / FILE).read_text())
    assert as_is["generic_alpha"] == 0.0
    assert pushed["counterfactual_nll"] > 0.99 * found["stop_at_nll"]
    assert pushed["corrupted"] == (as_is["counterfactual_nll"] < found["stop_at_nll"])
    assert not as_is["corrupted"]


def test_generic_alpha_is_of_methods_that_match_and_not_negative(pipeline, world, tmp_path, capsys):
    argv = unlearn_argv(world, pipeline.target, "npo", tmp_path / "x")
    assert main([*argv, "--generic-alpha", "2"]) == 2
    assert "--generic-alpha 2.0: --method npo matches no counterfactual answers" in capsys.readouterr().err
    argv = unlearn_argv(world, pipeline.target, "matching", tmp_path / "x")
    assert main([*argv, "--generic-alpha", "-1"]) == 2
    assert "--generic-alpha -1.0: give a number of at least 0" in capsys.readouterr().err
    assert main([*argv, "--corrupt", "20"]) == 2
    assert "--corrupt 20.0: give a share from 0 to 1" in capsys.readouterr().err
