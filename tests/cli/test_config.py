"""Options from a YAML file: what it says holds unless the command line says otherwise, and mistakes are named."""

import types
import typing
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest
import yaml

from jaxunlearn.cli import main
from jaxunlearn.cli.parse import parse
from jaxunlearn.runs import settings as known
from jaxunlearn.runs.record import configuration, refuse_result, write_options
from jaxunlearn.runs.settings import Unlearn

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


WRITERS = {
    "finetune": (known.Finetune, ()),
    "unlearn": (known.Unlearn, ()),
    "curvature": (known.StoreCurvature, ()),
    "evaluate": (known.Evaluate, ()),
    "compare": (known.Compare, ("run", "reference")),
    "attack": (known.Attack, ()),
    "report": (known.Report, ("run",)),
    "canary insert": (known.CanaryInsert, ()),
    "canary score": (known.CanaryScore, ()),
    "spectrum": (known.Spectrum, ()),
    "plan": (known.Plan, ()),
    "bench": (known.Bench, ()),
    "demo": (known.Demo, ()),
}


def written(settings, positional=()):
    """Arguments that give every option that is recorded a value that is not its default."""
    alone, flags = [], []
    for field in fields(settings):
        kind = typing.get_type_hints(settings)[field.name]
        if not field.metadata.get("recorded", True):
            continue
        if is_dataclass(kind):
            flags += written(kind)
        elif field.name in positional:
            alone.append(f"a {field.name}: here.json")
        else:
            flags += [part for one in values(field, kind) for part in (f"--{field.name.replace('_', '-')}", str(one))]
    return [*alone, *flags]


def values(field, kind):
    if typing.get_origin(kind) is tuple:
        return values(field, typing.get_args(kind)[0]) + values(field, typing.get_args(kind)[0])[::-1]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return [one for one in typing.get_args(kind) if one != field.default][-1:]
    return [{bool: not field.default, int: 7, float: 1e-5}.get(kind, f"no: {field.name} # ü")]


@pytest.mark.parametrize("command", WRITERS)
def test_all_options_of_a_command_with_an_output_read_back_from_the_file_beside_it(command, tmp_path):
    settings, positional = WRITERS[command]
    argv = [*written(settings, positional), "--out", str(tmp_path / "numbers.json")]
    first = parse(settings, command, argv, positional)
    refuse_result(first.out)
    write_options(first.out, command, first)
    assert yaml.safe_load((tmp_path / "numbers.yaml").read_text()).keys() >= {
        arg.removeprefix("--").replace("-", "_") for arg in argv if arg.startswith("--")
    }
    again = ["--config", str(tmp_path / "numbers.yaml"), "--out", str(tmp_path / "again.json")]
    assert parse(settings, command, again, positional) == replace(first, out=tmp_path / "again.json")
    with pytest.raises(ValueError, match=r"numbers\.yaml, which exists already"):
        refuse_result(first.out)


def test_every_command_with_an_output_is_in_the_table():
    writers = [one for name in known.__all__ if is_dataclass(one := getattr(known, name))]
    assert {one for one, _ in WRITERS.values()} == {
        one for one in writers if "out" in {field.name for field in fields(one)}
    }


PLACES = [  # the file, the command line, what holds
    ({"run": "a", "reference": "b"}, [], ("a", "b")),
    ({"run": "a", "reference": "b"}, ["x"], ("x", "b")),
    ({"run": "a", "reference": "b"}, ["--seed", "1", "x", "--column", "y", "z"], ("x", "z")),
    ({"reference": "b"}, ["--seed=1", "x"], ("x", "b")),
    ({"reference": "b"}, [], "Result of the model in question"),  # b is not taken for RUN
    ({"run": "a"}, [], "Result of the reference"),
    ({"run": ["a", "b"]}, [], ValueError),
]


@pytest.mark.parametrize(("content", "argv", "holds"), PLACES)
def test_arguments_without_a_flag_come_from_the_file_where_the_command_line_has_none(
    content, argv, holds, file, capsys
):
    argv = ["--config", file(content), *argv]
    if holds is ValueError:
        with pytest.raises(ValueError, match=r"run holds \['a', 'b'\]; give one value"):
            parse(known.Compare, "compare", argv, ("run", "reference"))
    elif isinstance(holds, str):
        with pytest.raises(SystemExit):
            parse(known.Compare, "compare", argv, ("run", "reference"))
        assert holds in capsys.readouterr().err
    else:
        found = parse(known.Compare, "compare", argv, ("run", "reference"))
        assert (found.run, found.reference) == tuple(map(Path, holds))


def test_a_switch_before_an_argument_does_not_swallow_it(file):
    found = parse(known.Report, "report", ["--config", file({"run": "a"}), "--show-text", "b"], ("run",))
    assert (found.run, found.show_text) == (Path("b"), True)


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
