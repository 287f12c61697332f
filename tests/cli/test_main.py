"""The command line before any work starts: help, versions, suggestions and exit codes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from jaxunlearn.cli import COMMANDS, main
from jaxunlearn.cli.examples import EXAMPLES
from jaxunlearn.version import __version__

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "exit_codes.md"
CODES = [line.split("|")[1].strip() for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
CODES = [code for code in CODES if code.isdigit()]


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_usage_lists_every_command(argv, capsys):
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    told = shown.partition("exit codes:\n")[2].splitlines()
    assert [line.split()[0] for line in told] == CODES


@pytest.mark.parametrize("argv", [["-V"], ["--version"]])
def test_version(argv, capsys):
    assert main(argv) == 0
    assert capsys.readouterr().out == f"jaxunlearn {__version__}\n"


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("demo", ["--out", "--seed"]),
        ("finetune", ["--model", "--data", "--out", "--epochs", "--learning-rate", "--mesh", "--coordinator"]),
        ("unlearn", ["--model", "--forget", "--retain", "--out", "--method", "--option", "--steps", "--seed"]),
        ("evaluate", ["--model", "--reference-model", "--before-model", "--forget", "--suite", "--data", "--out"]),
        ("compare", ["--out", "--column", "--limit", "--open-unlearning"]),
        ("methods", []),
    ],
)
def test_help_of_each_command_names_its_options(command, flags, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"jaxunlearn {command}" in shown
    assert not [flag for flag in flags if flag not in shown]


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["unlern"], "no command 'unlern'; did you mean unlearn?"),
        (["zzzz"], f"choose one of {', '.join(COMMANDS)}"),
    ],
)
def test_unknown_commands_exit_with_2(argv, hint, capsys):
    assert main(argv) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["unlearn", "--modle", "x"], "no option --modle; did you mean --model?"),
        (["evaluate", "--referencemodel=x"], "no option --referencemodel; did you mean --reference-model?"),
        (["plan", "-q", "x"], "no option -q; `jaxunlearn plan --help` lists them"),
        (["demo", "--seed", "-1"], "--seed -1: give a number of at least 0"),
    ],
)
def test_options_there_are_not_and_seeds_exit_with_2_and_a_remedy(argv, hint, capsys):
    assert main(argv) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["unlearn"], "--forget RECORDS"),
        (["finetune", "--model", "m", "--out", "o", "--stop-at-loss", "many"], "--stop-at-loss: could not convert"),
    ],
)
def test_missing_options_and_values_that_cannot_be_read_exit_with_2(argv, hint, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert hint in " ".join(shown.replace("│", "").split())
    assert not [word for word in ("Traceback", "NoneType") if word in shown]


def test_help_says_what_follows_a_flag_and_of_defaults_only_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["unlearn", "--help"])
    shown = capsys.readouterr().out
    lines = {line.lstrip("│ ").split("  ")[0].strip("│ ") for line in shown.splitlines()}
    assert lines >= {"--steps INT", "--option NAME=VALUE", "--resume", "--log PATH", "--memory-budget BYTES"}
    assert "None" not in shown
    with pytest.raises(SystemExit):
        main(["canary", "score", "--help"])
    assert "--ranks {exact,sampled,skew_normal}" in capsys.readouterr().out
    assert "(default: 10.0)" in shown
    assert r"(default: 'Question: {prompt}\nAnswer: {completion}')" in " ".join(shown.replace("│", "").split())


def test_methods_are_listed_with_their_options(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    from jaxunlearn.methods import CATALOGUE

    assert not [name for name in CATALOGUE if name not in shown]
    assert "cg_steps=20" in shown
    assert "optimizer" not in shown


def test_only_bad_input_becomes_a_message(monkeypatch):
    """A ValueError of some other library is a defect, not the user's input: its traceback must be seen."""
    import jaxunlearn.cli.methods as command

    class ForeignError(ValueError):
        pass

    def fail(argv):
        raise ForeignError

    monkeypatch.setattr(command, "main", fail)
    with pytest.raises(ForeignError):
        main(["methods"])


def test_interrupting_exits_with_130(monkeypatch, capsys):
    import jaxunlearn.cli.methods as command

    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupt)
    assert main(["methods"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_and_mistakes_import_neither_jax_nor_transformers():
    code = (
        "import sys\nfrom jaxunlearn.cli import main\nmain([]); main(['unlern'])\n"
        "print([m for m in ('jax', 'transformers', 'tyro', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_help_of_a_command_does_not_wait_for_jax():
    code = (
        "import sys\nfrom jaxunlearn.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "    print('loaded by', name, [m for m in ('jax', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("loaded by")]
    assert found == [f"loaded by {name} []" for name in COMMANDS]


class ParsedError(Exception):
    """Raised in the place of a run."""


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "canary"), "canary insert", "canary score"])
def test_help_shows_two_examples_whose_options_exist(command, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert len(EXAMPLES[command]) == 2
    assert all(f"\n  {example}\n" in shown for example in EXAMPLES[command])
    parse = tyro.cli

    def parsed(*args, **options):
        parse(*args, **options)
        raise ParsedError

    monkeypatch.setattr(tyro, "cli", parsed)
    for example in EXAMPLES[command]:
        name, *argv = shlex.split(example)
        assert name == "jaxunlearn"
        with pytest.raises(ParsedError):
            main(argv)


def test_the_options_of_a_method_are_explained_with_units_and_defaults(capsys):
    assert main(["methods", "newton_removal"]) == 0
    shown = capsys.readouterr().out
    assert "max_kl=FLOAT|none  (default 0.001)" in shown
    assert "nats of KL on retain per step" in shown
    with pytest.raises(SystemExit):
        main(["unlearn", "--method", "pdu", "--help"])
    shown = capsys.readouterr().out
    assert "eps=FLOAT  (required)" in shown
    assert "--retain" in shown
    assert main(["methods", "newton_remval"]) == 2
    assert "did you mean newton_removal" in capsys.readouterr().err
