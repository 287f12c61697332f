"""Options from a YAML file: what it says holds unless the command line says otherwise, and mistakes are named."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from jaxunlearn.cli import main
from jaxunlearn.cli.parse import parse
from jaxunlearn.runs.record import configuration, refuse_result, write_options
from jaxunlearn.runs.settings import Attack, Bench, CanaryScore, Evaluate, Plan, Unlearn

GIVEN = {
    "model": "tuned",
    "forget": "forget.jsonl",
    "out": "out",
    "option": ["beta=0.2", "retain=kl"],
    "max-length": 40,
    "truncate": True,
    "stop_at_nll": 1.5,
    "lora_rank": 4,
    "retain": None,
}


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "run.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def test_a_file_fills_in_what_the_command_line_leaves_out(file):
    found = parse(Unlearn, "unlearn", ["--config", file(GIVEN), "--steps", "3", "--max-length=50"])
    assert (found.model, found.option, found.steps) == (Path("tuned"), ("beta=0.2", "retain=kl"), 3)
    assert (found.text.max_length, found.text.truncate, found.stop_at_nll) == (50, True, 1.5)
    assert (found.trainable.lora_rank, found.retain) == (4, None)
    replaced = parse(Unlearn, "unlearn", [f"--config={file(GIVEN)}", "--option", "beta=1.0"])
    assert replaced.option == ("beta=1.0",)  # a list is replaced, not added to


def test_the_resolved_options_of_a_run_read_back_as_the_same_settings(file):
    first = parse(Unlearn, "unlearn", ["--config", file(GIVEN), "--stop-when", "jang", "--mesh", "fsdp=2,data=-1"])
    text = configuration("unlearn", first)
    assert parse(Unlearn, "unlearn", ["--config", file(text)]) == first


RESULTS = {
    "evaluate": (Evaluate, ["--model", "m", "--forget", "f", "--more-model", "a", "--more-model", "b", "--limit", "3"]),
    "attack": (Attack, ["--model", "m", "--forget", "f", "--only", "lens", "--relearn-share", "0.25"]),
    "canary score": (CanaryScore, ["--model", "m", "--key", "k", "--method", "sampled"]),
    "plan": (Plan, ["--model", "m", "--topology", "cpu:8", "--program", "step", "--smallest"]),
    "bench": (Bench, ["--size", "1M", "--rounds", "2"]),
}


@pytest.mark.parametrize("command", RESULTS)
def test_options_stand_beside_a_result_file_and_run_it_again(command, tmp_path):
    settings, argv = RESULTS[command]
    first = parse(settings, command, [*argv, "--out", str(tmp_path / "numbers.json")])
    refuse_result(first.out)
    write_options(first.out, command, first)
    again = ["--config", str(tmp_path / "numbers.yaml"), "--out", str(tmp_path / "again.json")]
    assert parse(settings, command, again) == replace(first, out=tmp_path / "again.json")
    with pytest.raises(ValueError, match=r"numbers\.yaml, which exists already"):
        refuse_result(first.out)


@dataclass(frozen=True)
class _Awkward:
    """Values that YAML would take for something else."""

    name: str
    number: str
    rate: float
    several: tuple[str, ...] = ()


def test_awkward_values_survive(file):
    awkward = _Awkward("no", "1e3", 1e-5, ("yes: no", "# x", "ü"))
    assert parse(_Awkward, "x", ["--config", file(configuration("x", awkward))]) == awkward


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"metod": "npo"}, "has no option 'metod'; did you mean method?"),
        ({"nonsense_of_mine": 1}, "`jaxunlearn unlearn --help` lists them"),
        ("method: [", "is not valid YAML"),
        ("- method", "must hold option: value"),
        ({"method": {"name": "npo"}}, "method holds {'name': 'npo'}"),
        (None, "no such file"),
    ],
)
def test_mistakes_are_named(content, told, file, capsys):
    path = "nowhere.yaml" if content is None else file(content)
    assert main(["unlearn", "--config", path]) == 2
    assert told in capsys.readouterr().err
