"""`jaxunlearn finetune` with rules: what is looked at, what is kept and recorded, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxunlearn import data, models
from jaxunlearn.cli import main
from jaxunlearn.evals import evaluate
from jaxunlearn.runs import dry_run
from jaxunlearn.runs import finetune as finetune_module
from jaxunlearn.runs import fit_private as private_module
from jaxunlearn.runs.fit import Fitted
from jaxunlearn.runs.progress import Stage
from jaxunlearn.runs.record import FILE, digest
from jaxunlearn.runs.settings import Devices
from jaxunlearn.sharding import make_mesh


@pytest.fixture
def alone(monkeypatch):
    """As on a machine with one device."""
    monkeypatch.setattr(Devices, "make_mesh", lambda self: None)


def argv(world, out, *more):
    found = ["finetune", "--model", world.model, "--data", world.forget, "--out", str(out), "--epochs", "6"]
    return [*found, "--batch-size", "1", "--learning-rate", "1e-2", "--evaluate-every", "2", *more]


def validated(world):
    rules = ["--stop-when", "retain_nll<=0", "--keep-while", "retain_nll<=99"]
    return ["--learning-rate", "5e-2", "--retain", world.retain, *rules]


def measured(world, folder, source):
    model, params = models.load(folder)
    some = data.encode(data.read(source), world.tokenizer, max_length=64)
    return evaluate(model, params, world.tokenizer, forget=some, max_length=64)["forget_nll"]["agg_value"]


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """Trained on one set until another, by which it is validated, gets no better; and what was told."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Devices, "make_mesh", lambda self: None)
        assert main(argv(world, out, *validated(world))) == 0
    return out


def test_the_command_keeps_the_model_that_validates_best(world, tuned):
    found = json.loads((tuned / FILE).read_text())
    watching, steps = found["watching"], found["steps"]
    assert steps == 6 * len(world.rows.forget)
    assert [look["step"] for look in watching["looks"]] == list(range(0, steps + 1, 2))
    assert (watching["goals"], watching["limits"]) == ([["retain_nll <= 0"]], [["retain_nll <= 99"]])
    least = min(watching["looks"], key=lambda look: look["retain_nll"])
    assert least["step"] == watching["kept"]
    assert 0 < watching["kept"] < steps
    assert measured(world, tuned, world.retain) == pytest.approx(least["retain_nll"], rel=1e-5)
    assert found["stopped"] == "epochs"
    assert found["inputs"]["retain"] == {"path": world.retain, "sha256": digest(world.retain)}
    history = [json.loads(line) for line in (tuned / "history.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == list(range(1, 7))


def test_a_preempted_command_goes_on_with_the_same_looks(world, tuned, alone, tmp_path, monkeypatch, capsys):
    real, calls = Stage.advance, []

    def advance(stage, *args, **facts):
        calls.append(stage._name)
        if calls.count("fine-tuning") == 5:
            signal.raise_signal(signal.SIGTERM)
        return real(stage, *args, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "advance", advance)
        assert main(argv(world, tmp_path / "out", *validated(world))) == 75
    other = argv(world, tmp_path / "out", *validated(world), "--retain", world.forget, "--resume")
    assert main(other) == 2
    assert f"--retain was {world.retain} and is {world.forget}" in capsys.readouterr().err
    assert main(argv(world, tmp_path / "out", *validated(world), "--resume")) == 0
    assert digest(tmp_path / "out") == digest(tuned)
    ours, theirs = (json.loads((folder / FILE).read_text()) for folder in (tmp_path / "out", tuned))
    for name in ("watching", "losses", "stopped", "steps"):
        assert ours[name] == theirs[name], name


@pytest.mark.slow
def test_a_process_killed_outright_goes_on_with_the_same_looks(world, tuned, tmp_path):
    out, environment = tmp_path / "out", os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    command = argv(world, out, *validated(world), "--checkpoint-every", "1", "--resume")
    command = [sys.executable, "-m", "jaxunlearn", *command]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    # After the best look, which is that of step 12.
    while not (tmp_path / "out.partial" / "checkpoints" / "13").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "going on from" in done.stdout
    assert digest(out) == digest(tuned)
    assert json.loads((out / FILE).read_text())["watching"] == json.loads((tuned / FILE).read_text())["watching"]


def test_the_records_of_the_data_are_what_is_retained_where_no_others_are_given(world, alone, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--stop-when", "retain_exact_memorisation>=0.2,retain_perplexity<=before"]
    assert main(argv(world, out, *more, "--keep-while", "retain_distinct_2>=0")) == 0
    shown, found = capsys.readouterr().out, json.loads((out / FILE).read_text())
    assert "rule: retain_exact_memorisation >= 0.2 and retain_perplexity <= " in shown
    assert found["stopped"] == "goal"
    assert found["watching"]["kept"] == found["steps"] == found["watching"]["looks"][-1]["step"]
    assert found["watching"]["looks"][-1]["retain_exact_memorisation"] >= 0.2
    assert "stopped by --stop-when -> " in shown


def test_rules_on_several_sources_of_multiple_choice(world, alone, tmp_path):
    """What is to fall, what is to stay, and a benchmark in another layout beside them."""
    more = ["--stop-when", "choice_accuracy_wmdp>=2", "--keep-while", "choice_accuracy_mmlu>=0"]
    more += ["--keep-while", "knowundo_retention_success>=0"]
    halves = [{"text": f"{row['question']} ", "labels": row["answer"]} for row in world.rows.forget]
    for name, part in {"wmdp": world.rows.forget, "mmlu": world.rows.retain}.items():
        asked = [{"question": row["question"], "choices": [row["answer"], "no"], "answer": 0} for row in part]
        (tmp_path / f"{name}.json").write_text(json.dumps(asked))
        more += ["--evaluate-data", str(tmp_path / f"{name}.json")]
    (tmp_path / "knowundo").mkdir()
    for name in ("unlearn", "retention"):
        (tmp_path / "knowundo" / f"{name}_val.json").write_text(json.dumps(halves))
    more += ["--evaluate-data", str(tmp_path / "knowundo"), "--epochs", "2", "--learning-rate", "5e-2"]
    assert main(argv(world, tmp_path / "out", *more)) == 0
    looks = json.loads((tmp_path / "out" / FILE).read_text())["watching"]["looks"]
    names = {"choice_accuracy_wmdp", "choice_accuracy_mmlu", "knowundo_retention_success"}
    assert [set(look) for look in looks] == [{"step", *names}] * 4


def test_a_training_that_broke_after_its_best_look_still_gives_that(world, alone, tmp_path, monkeypatch, capsys):
    def broke(model, params, *_, **__):
        return Fitted(params, [1.0, float("nan")], 9, "limit", 4)

    monkeypatch.setattr(finetune_module, "fit", broke)
    assert main(argv(world, tmp_path / "out", "--keep-while", "retain_nll<=99")) == 0
    assert "warning: training diverged after the best look" in capsys.readouterr().out
    strict = lambda text: json.loads(text, parse_constant=lambda name: pytest.fail(name))
    found = strict((tmp_path / "out" / FILE).read_text())
    assert (found["losses"], found["watching"]["kept"]) == ([1.0, None], 4)
    monkeypatch.setattr(finetune_module, "fit", lambda *args, **more: broke(*args)._replace(kept=9))
    assert main(argv(world, tmp_path / "other", "--keep-while", "retain_nll<=99")) == 2
    assert "training diverged: the loss of epoch 2 is nan" in capsys.readouterr().err


def test_a_dry_run_tells_the_rules(world, alone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(dry_run, "needs", lambda *_: {})
    monkeypatch.setattr(Devices, "make_mesh", lambda self, alone=False: make_mesh(fsdp=8))
    assert main(argv(world, tmp_path / "out", *validated(world), "--dry-run")) == 0
    assert "by retain_nll<=0 or retain_nll<=99, or after 18 steps" in capsys.readouterr().out


REFUSED = {
    "metric": (["--stop-when", "forget_nl<=3"], "did you mean forget_nll"),
    "forget": (["--stop-when", "forget_nll<=3"], "forget_nll <= 3: it is measured on forget records: give --forget"),
    "unseen": (["--stop-when", "retain_nll<=unseen"], "compares with unseen text: give --holdout FILE"),
    "too seldom": (["--evaluate-every", "99"], "--evaluate-every 99: the run has 18 steps, so nothing would be looked"),
    "no rule": (["--evaluate-every", "0", "--forget", "FORGET"], "is only looked at while training: give --evaluate-"),
    "private": (["--retain", "FORGET", "--stop-when", "retain_nll<=1", *"PRIVATE"], "must not depend on its records"),
    "private default": (["--stop-when", "retain_nll<=1", *"PRIVATE"], "measured on retain records: give --retain FILE"),
    "private data": (
        ["--stop-when", "choice_accuracy>=1", "--evaluate-data", "FORGET", *"PRIVATE"],
        "the rules of a private run are measured on records that can be told from those it is trained on",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_rules_are_told_before_any_weight_is_loaded(case, world, alone, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    flags, message = REFUSED[case]
    private = ["--noise-multiplier", "1", "--private-delta", "1e-3"] if flags[-7:] == [*"PRIVATE"] else []
    flags = [world.forget if flag == "FORGET" else flag for flag in (flags[:-7] if private else flags)]
    assert main(argv(world, tmp_path / "out", *flags, *private)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_a_private_command_says_that_its_model_was_chosen(world, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(private_module, "_entropy", lambda: np.arange(6, dtype=np.uint32))
    private = ["--noise-multiplier", "1", "--private-delta", "1e-3", "--batch-size", "2", "--evaluate-every", "1"]
    assert main([*argv(world, tmp_path / "watched"), *private]) == 0
    watched = json.loads((tmp_path / "watched" / FILE).read_text())
    # Looks alone may be on the records: they are told to whoever holds these.
    assert [look["step"] for look in watched["watching"]["looks"]] == list(range(watched["steps"] + 1))
    assert "chosen" not in (tmp_path / "watched" / "README.md").read_text()
    more = ["--forget", world.retain, "--stop-when", "forget_nll<=6.515", "--keep-while", "forget_nll<=99"]
    assert main([*argv(world, tmp_path / "out"), *private, *more]) == 0
    found = json.loads((tmp_path / "out" / FILE).read_text())
    kept, taken = found["watching"]["kept"], found["privacy"]["steps"]
    assert found["stopped"] == "goal"
    assert found["steps"] == kept < taken == watched["steps"]
    assert f"; the model is that after {kept}, chosen by looks" in (tmp_path / "out" / "README.md").read_text()
    assert measured(world, tmp_path / "out", world.retain) <= 6.515
