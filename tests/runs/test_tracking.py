"""What a run shows and writes while it lasts: read back from the event file, the offline run and the lines."""

import io
import json
import struct
import time
from pathlib import Path

import pytest
from rich.console import Console

from jaxunlearn.cli import main
from jaxunlearn.runs import progress
from jaxunlearn.runs.board import board
from jaxunlearn.runs.facts import in_words, peak_memory
from jaxunlearn.runs.fit import Fitted
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Finetune, Tracking
from jaxunlearn.runs.work import plain_options
from jaxunlearn.solvers import Status

STEPS = [
    {
        "forget_nll": 1.0,
        "retain_nll": 0.5,
        "damping": 0.1,
        "residual": 0.02,
        "status": int(Status.MAX_STEPS),
        "applied": 1.0,
    },
    {
        "forget_nll": 2.5,
        "retain_nll": 0.6,
        "damping": 0.2,
        "residual": 0.03,
        "status": int(Status.CONVERGED),
        "applied": 1.0,
    },
]


def logged(folder, track=()):
    reporter = Reporter(folder, quiet=True, track=track, options={"seed": 7})
    with reporter, reporter.stage("newton_removal", 2, tokens=64) as stage:
        for facts in STEPS:
            stage.advance(**facts)


def records_of(file):
    """The records of a run's file, a LevelDB log: blocks of 32 KiB, each piece after checksum, length and kind."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a piece that is whole, or the last one
            yield whole
            whole = b""


def test_lines_hold_the_numbers_and_what_the_machine_did(tmp_path):
    logged(tmp_path)
    *steps, end = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [{key: step[key] for key in STEPS[0]} for step in steps] == STEPS
    assert [step["step"] for step in steps] == [1, 2]
    assert "tokens_per_second" not in steps[0]  # the first step compiles: its speed is nobody's
    assert steps[1]["tokens_per_second"] > 0
    assert 2**20 < steps[1]["peak_memory"] <= peak_memory()
    assert {"stage", "seconds"} <= set(end)
    logged(tmp_path)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 6  # a run that goes on appends


def test_the_event_file_of_tensorboard_is_read_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged(tmp_path, ("tensorboard",))
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("newton_removal/forget_nll")] == [(1, 1.0), (2, 2.5)]
    assert {f"newton_removal/{name}" for name in STEPS[0]} <= set(found.Tags()["scalars"])


def test_weights_and_biases_stays_offline_and_has_the_history(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    logged(tmp_path, ("wandb",))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    rows, config = [], {}
    until = time.monotonic() + 20
    # A process of its own writes the file, and on a busy machine is behind.
    while len(rows) < 2 and time.monotonic() < until:
        rows = []
        for data in records_of(file):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
            if record.WhichOneof("record_type") == "run":
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert record.run.project == "jaxunlearn"
    assert [row["newton_removal/forget_nll"] for row in rows] == [1.0, 2.5]
    assert [row["newton_removal/step"] for row in rows] == [1, 2]
    assert config["seed"] == 7


def test_only_the_first_process_shows_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with Reporter(tmp_path / "log", track=("tensorboard",)) as reporter, reporter.stage("a", 2) as stage:
        stage.advance(loss=1.0)
    assert not (tmp_path / "log").exists()
    assert capsys.readouterr().out == ""


def test_lines_are_shown_as_they_are_whatever_a_folder_is_called(capsys):
    long = "x" * 300
    with Reporter() as reporter:
        reporter.say(f"-> run[bold]/[red]{long}")
        reporter.warn("out[/dim] is old")
        with reporter.stage("reading [green]", 1):
            pass
    said, warned, done = capsys.readouterr().out.splitlines()
    assert (said, warned) == (f"-> run[bold]/[red]{long}", "warning: out[/dim] is old")
    assert done.startswith("✓ reading [green] ")


def test_a_pipe_gets_plain_lines_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with Reporter() as reporter, reporter.stage("newton_removal", 9, tokens=64) as stage:
        for facts in STEPS:
            stage.advance(**facts)
    first, second, end = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "newton_removal: 1/9  loss on forget 1  loss on retain 0.5  damping 0.1  solver residual 0.02"
    )
    assert "solver max steps" in first
    assert "left" not in first
    assert "tokens/s" in second
    assert second.endswith("left 0 s")
    assert "\x1b" not in first + second + end


@pytest.mark.parametrize("width", [60, 160])
def test_a_terminal_gets_a_bar_and_the_numbers(width):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    with board(console) as bar:
        task = bar.add_task("newton_removal", total=9, facts={})
        bar.update(task, completed=2, facts=STEPS[1] | {"tokens_per_second": 12345.6, "peak_memory": 3 * 2**30})
        bar.refresh()
    shown = out.getvalue()
    for text in (
        "newton_removal",
        "2/9",
        "loss on forget 2.5",
        "solver converged",
        "tokens/s 12,346",
        "3.00 GiB",
        "left",
    ):
        assert text in shown
    assert max(len(line) for line in shown.splitlines() if "\x1b" not in line) <= width


def test_a_step_that_was_thrown_away_says_so():
    assert ("step", "NOT APPLIED, not finite") in in_words({"applied": 0.0})
    assert in_words({"applied": 1.0}) == []


def train(world, out, *flags):
    argv = ["finetune", "--model", world.model, "--data", world.retain, "--out", str(out), "--epochs", "2"]
    return main([*argv, "--batch-size", "100", *flags])


def test_a_run_logs_beside_its_output_and_the_record_does_not_ask_for_it(world, tmp_path, monkeypatch, capsys):
    def fit(model, params, rows, *, advance, **_):
        for epoch in (1, 2):
            advance(epoch=epoch, loss=1.0 / epoch)
        return Fitted(params, [1.0, 0.5], 2, "epochs", 2)

    monkeypatch.setattr("jaxunlearn.runs.finetune.fit", fit)
    assert train(world, tmp_path / "plain") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    assert "the numbers of every step" not in capsys.readouterr().out
    assert train(world, tmp_path / "out", "--track", "tensorboard") == 0
    assert sorted(path.name for path in (tmp_path / "out.log").iterdir()) == ["history.jsonl", "tensorboard"]
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"the numbers of every step -> {tmp_path}/out.log; tensorboard --logdir {tmp_path}/out.log shows" in shown
    assert train(world, tmp_path / "again", "--log", str(tmp_path / "mine")) == 0
    losses = [json.loads(line).get("loss") for line in (tmp_path / "mine" / "history.jsonl").read_text().splitlines()]
    assert losses == [1.0, 0.5, None]
    assert "track" not in (tmp_path / "out" / "jaxunlearn.yaml").read_text()


def test_a_run_may_go_on_with_other_trackers():
    settings = Finetune(Path("m"), ("d",), Path("o"), tracking=Tracking(track=("wandb",)))
    assert plain_options(settings) == plain_options(Finetune(Path("m"), ("d",), Path("o")))


def test_a_missing_package_is_named_before_anything_starts(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("jaxunlearn.models.load", lambda *_, **__: pytest.fail("weights were read"))
    assert train(world, tmp_path / "out", "--track", "wandb") == 2
    assert 'needs the package wandb, which is not here: pip install "jaxunlearn[track]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
