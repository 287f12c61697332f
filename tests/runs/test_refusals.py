"""Bad input ends with exit code 2 and one message that names the place, before any weight is read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxunlearn.cli import main


@pytest.fixture
def weightless(world, tmp_path):
    """The model's folder without its weights: whoever refuses it for anything else has not read them."""
    shutil.copytree(world.model, tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    return str(tmp_path / "weightless")


def run(argv, capsys):
    """The message of a command that must end with exit code 2."""
    assert main([str(part) for part in argv]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert shown.err.startswith(f"jaxunlearn {argv[0]}: ")
    return shown.err


def unlearning(world, model, out, **changed):
    parts = {"model": model, "forget": world.forget, "retain": world.retain, "out": out} | changed
    return ["unlearn", *(x for name, value in parts.items() for x in (f"--{name.replace('_', '-')}", value))]


def test_a_step_that_cannot_be_cut_is_refused_before_weights_are_read(world, weightless, tmp_path, capsys):
    argv = unlearning(world, weightless, tmp_path / "out", method="gauss_newton_ascent", option="microbatch=2")
    assert "--option microbatch=2: a step of 3 records" in run([*argv, "--batch-size", "3"], capsys)


def test_overlap_is_refused_before_weights_are_read(world, weightless, tmp_path, capsys):
    retain = tmp_path / "retain.jsonl"
    shared = {**world.rows.forget[1], "answer": world.rows.forget[1]["answer"].upper()}
    retain.write_text(f"{json.dumps(world.rows.retain[0])}\n{json.dumps(shared)}\n")
    message = run(unlearning(world, weightless, tmp_path / "out", retain=retain), capsys)
    assert f"{world.forget}, line 2" in message
    assert f"{retain}, line 2" in message
    assert "retain set too" in message
    assert not (tmp_path / "out").exists()


BAD_FILES = {
    "missing": (None, "no such file"),
    "empty": ("", "is empty"),
    "blank": (" \n", "is empty"),
    "broken line": ('{"question": "a", "answer": "b"}\n{"question": "a", \n', "line 2: not JSON at column"),
    "broken array": ('[{"question": "a"},\n', "line 2: not JSON"),
    "wrong fields": ('{"q": "a", "a": "b"}\n', 'line 1: no usable fields; the record has "q", "a"'),
    "blank answer": ('{"question": "a", "answer": " "}\n', 'line 1: field "answer" is blank'),
    "too long": (json.dumps({"question": "a", "answer": "b c" * 100}) + "\n", "tokens, but sequences hold at most 64"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_with_their_line(case, world, weightless, tmp_path, capsys):
    content, message = BAD_FILES[case]
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_text(content)
    commands = {
        "finetune": ["finetune", "--model", weightless, "--data", bad, "--out", tmp_path / "out"],
        "unlearn": unlearning(world, weightless, tmp_path / "out", forget=bad),
        "evaluate": ["evaluate", "--model", weightless, "--forget", bad, "--out", tmp_path / "out"],
    }
    for argv in commands.values():
        shown = run(argv, capsys)
        assert str(bad) in shown
        assert message in shown
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_left_alone(world, weightless, tmp_path, capsys):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    file = tmp_path / "mine.json"
    file.write_text("{}")
    data = ["--data", world.retain]
    for argv in (
        ["finetune", "--model", weightless, *data, "--out", out],
        ["finetune", "--model", weightless, *data, "--out", file],
        unlearning(world, weightless, out),
        ["evaluate", "--model", weightless, "--forget", world.forget, "--out", file],
    ):
        assert "nothing of yours is overwritten" in run(argv, capsys)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    assert file.read_text() == "{}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "newton_remove"}, "did you mean newton_removal?"),
        ({"option": "max_lk=1"}, "did you mean max_kl?"),
        ({"steps": 0}, "--steps 0"),
        ({"batch_size": -1}, "--batch-size -1"),
        ({"retain_size": 0}, "--retain-size 0"),
        ({"top_k": 0}, "--top-k 0"),
        ({"substitutes": 0}, "--substitutes 0"),
        ({"max_length": 1000}, "has a context of 64 tokens"),
        ({"max_length": 1}, "use 2 to 64"),
        ({"prompt_field": "question"}, "--completion-field"),
        ({"entity_field": "who"}, 'no field "who"'),
        ({"question_template": "no places"}, "template"),
        ({"stream_retain": True}, "choose newton_removal or gauss_newton_ascent, or leave it out"),
    ],
)
def test_bad_settings_are_named(changed, message, world, weightless, tmp_path, capsys):
    assert message in run(unlearning(world, weightless, tmp_path / "out", **changed), capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flag", "value"), [("--epochs", 0), ("--batch-size", 0), ("--pack", 65), ("--pack", 3)])
def test_finetuning_needs_sizes_that_can_be(flag, value, world, weightless, tmp_path, capsys):
    argv = ["finetune", "--model", weightless, "--data", world.retain, "--out", tmp_path / "out", flag, value]
    assert f"{flag} {value}" in run(argv, capsys)


def test_a_private_run_packs_no_records(world, weightless, tmp_path, capsys):
    argv = ["finetune", "--model", weightless, "--data", world.retain, "--out", tmp_path / "out", "--pack", 64]
    argv += ["--noise-multiplier", 1, "--private-delta", 1e-3]
    assert "a private run clips the gradient of each record; leave out --pack" in run(argv, capsys)


def test_a_model_that_is_none_is_named(world, weightless, tmp_path, capsys):
    missing = tmp_path / "nowhere"
    assert str(missing) in run(unlearning(world, missing, tmp_path / "out"), capsys)
    assert "safetensors" in run(unlearning(world, weightless, tmp_path / "out", method="grad_diff"), capsys)
    assert not (tmp_path / "out").exists()


def test_records_without_names_cannot_be_matched(world, weightless, tmp_path, capsys):
    forget = tmp_path / "forget.jsonl"
    forget.write_text('{"question": "what is it?", "answer": "it is so."}\n')
    message = run(unlearning(world, weightless, tmp_path / "out", forget=forget), capsys)
    assert f"{forget}, line 1" in message
    assert '"entity" field' in message


def test_a_mesh_that_does_not_fit_is_refused(world, tmp_path, capsys):
    argv = unlearning(world, world.model, tmp_path / "out", method="grad_diff", mesh="tensor=3")
    assert "there are 8; tensor=3 does not divide them; choose sizes whose product is 8" in run(argv, capsys)
    assert not (tmp_path / "out").exists()


def test_the_installed_command_reports_and_exits_with_2(tmp_path):
    code = "import sys; from jaxunlearn.cli import main; sys.exit(main())"
    argv = ["unlearn", "--model", "m", "--forget", "f.jsonl", "--retain", "r.jsonl", "--out", "o", "--method", "x"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no such method" in done.stderr
    assert not list(Path(tmp_path).iterdir())
