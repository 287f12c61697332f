"""Settings from arguments, by tyro: flags, help and types all come from the settings dataclasses.

`--config FILE.yaml` fills in whatever the command line does not say: a mapping from names of flags (`max-length` or
`max_length`) to values, a list where a flag may be repeated. Arguments that go without a flag, such as RUN of `report`,
stand there under their names too. Every run that writes something leaves such a file with it.
"""

import dataclasses
import difflib
import inspect
import itertools
import math
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxunlearn.cli.examples import shown
from jaxunlearn.cli.option_help import registry

Settings = TypeVar("Settings")


def parse(settings: type[Settings], name: str, argv: Sequence[str], positional: Sequence[str] = ()) -> Settings:
    """Fill `settings` from `argv`; prints help or a usage error and exits where argparse would.

    With a group `devices` the process joins the others of the run, if there are any. `positional` are the fields
    without a default, in their order, where they are given without a flag.

    Raises:
        ValueError: a name that is no flag of the command, on the command line or in a configuration file; such a file
            that cannot be read; a negative seed; a number that is none (NaN); other processes of the run that are
            asked for in vain.
    """
    import tyro

    argv = list(argv)
    # Flags of nested groups need no prefix, and lists are given by repeating a flag.
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction, tyro.conf.FlagConversionOff)
    config += (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName) if positional else ()
    about = inspect.cleandoc(settings.__doc__ or "")
    description = f"{about}\n\nOptions may also stand in a file: --config FILE.yaml\n\n{shown(name)}"
    arguments = _from_file(settings, name, argv, positional)
    try:
        found = tyro.cli(
            settings,
            prog=f"jaxunlearn {name}",
            args=arguments,
            config=config,
            description=description,
            registry=registry(),
        )
    except SystemExit as end:
        if end.code and (file := _take(argv)[0]):
            print(f"jaxunlearn {name}: some of the options stand in {file}", file=sys.stderr)
        raise
    if getattr(found, "seed", 0) < 0:
        raise ValueError(f"--seed {found.seed}: give a number of at least 0")
    _refuse_nan(found)
    if hasattr(found, "devices"):
        # First of all: which process this is decides who speaks and who writes, and JAX cannot be told later.
        found.devices.start()
    return found


def _refuse_nan(settings: Any) -> None:
    """A NaN compares with nothing: a bound of it would never be reached, and nobody would be told."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            _refuse_nan(value)
        elif isinstance(value, float) and math.isnan(value):
            raise ValueError(f"--{field.name.replace('_', '-')} {value}: give a number")


def _from_file(settings: type, name: str, argv: list[str], positional: Sequence[str]) -> list[str]:
    """The arguments with those of `--config` in front of them, where the command line does not give the same one."""
    file, argv = _take(argv)
    argv = _switched(settings, argv)
    known = _flags(settings)
    given, alone = _told_apart(argv)
    for flag, written in given.items():
        if flag not in known and not {"-h", "--help"} & set(argv):
            raise ValueError(f"no option {written}; {_nearest(flag, known, name, '--')}")
    if file is None:
        return argv
    arguments: list[str] = []
    places: dict[str, str] = {}
    for key, value in _read(file).items():
        flag = str(key).replace("-", "_")
        if flag not in known:
            raise ValueError(f"{file}: jaxunlearn {name} has no option {key!r}; {_nearest(flag, known, name)}")
        if flag in given or value is None:
            continue
        if flag in positional and isinstance(value, list):
            raise ValueError(f"{file}: {key} holds {value!r}; give one value")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list):
                raise ValueError(f"{file}: {key} holds {one!r}; give a value, or a list of values for a repeated flag")
            if flag in positional:
                places[flag] = str(one)
            else:
                arguments += [f"--{flag.replace('_', '-')}", str(one)]
    # One that is missing in both ends the list: what follows would be taken for it.
    found = itertools.takewhile(places.__contains__, positional[len(alone) :])
    return arguments + argv + [places[one] for one in found]


def _nearest(flag: str, known: list[str], command: str, dashes: str = "") -> str:
    """What to say after the name of an option that there is not."""
    near = difflib.get_close_matches(flag, known, n=1)
    if not near:
        return f"`jaxunlearn {command} --help` lists them"
    return f"did you mean {dashes}{near[0].replace('_', '-') if dashes else near[0]}?"


def _told_apart(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The flags that are given, by name, as written; and what stands without one. All but --help take a value."""
    flags, alone = {}, []
    rest = iter(argv)
    for arg in rest:
        if not arg.startswith("-"):
            alone.append(arg)
        elif arg not in ("-h", "--help"):
            written = arg.partition("=")[0]
            flags[written.lstrip("-").replace("-", "_")] = written
            if "=" not in arg:
                next(rest, None)
    return flags, alone


def _switched(settings: type, argv: list[str]) -> list[str]:
    """A switch alone, `--resume`, is one that is on; a file and whoever likes may write `--resume True`."""
    switches = {f"--{name.replace('_', '-')}" for name, kind in _kinds(settings).items() if kind is bool}
    found = []
    for arg, following in itertools.pairwise([*argv, ""]):
        found.append(arg)
        if arg.replace("_", "-") in switches and following not in ("True", "False"):
            found.append("True")
    return found


def _take(argv: list[str]) -> tuple[Path | None, list[str]]:
    """The file after `--config`, and the other arguments."""
    for index, arg in enumerate(argv):
        if arg == "--config":
            if index + 1 == len(argv):
                raise ValueError("--config needs the name of a YAML file")
            return Path(argv[index + 1]), argv[:index] + argv[index + 2 :]
        if arg.startswith("--config="):
            return Path(arg.partition("=")[2]), argv[:index] + argv[index + 1 :]
    return None, argv


def _read(file: Path) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        raise ValueError(f"--config {file}: no such file")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {file} is not valid YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--config {file} must hold option: value, one a line, such as `method: npo`")
    return found


def _flags(settings: type) -> list[str]:
    """The names of all flags, those of nested groups among them."""
    return list(_kinds(settings))


def _kinds(settings: type) -> dict[str, Any]:
    """The type of each flag."""
    hints = typing.get_type_hints(settings)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        kind = hints[field.name]
        found |= _kinds(kind) if dataclasses.is_dataclass(kind) else {field.name: kind}
    return found
