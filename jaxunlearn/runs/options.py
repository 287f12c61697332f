"""Hyperparameters of a method given as name=value: their help, and a check against the recipe's own signature."""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxunlearn.methods import CATALOGUE, Method
from jaxunlearn.runs.flags import of_flag


class Option(NamedTuple):
    """A hyperparameter as a command shows it.

    Attributes:
        name: of the recipe's argument.
        kind: what may be written for it, "FLOAT", "INT", "TEXT" or the choices.
        default: what a run takes unless told otherwise; `inspect.Parameter.empty` where it must be told.
        help: what the recipe's docstring says, units included.
    """

    name: str
    kind: str
    default: Any
    help: str


def options_of(method: str) -> list[Option]:
    """The hyperparameters of a method, from the signature and the docstring of its recipe.

    Example:
        >>> [option.name for option in options_of("gauss_newton_ascent")][:2]
        ['max_kl', 'damping']
    """
    import docstring_parser

    entry = CATALOGUE[method]
    hints = typing.get_type_hints(entry.make)
    told = {p.arg_name: p.description for p in docstring_parser.parse(inspect.getdoc(entry.make) or "").params}
    here = dict(entry.run_options)
    return [
        Option(p.name, _kind(hints[p.name]), here.get(p.name, p.default), " ".join((told.get(p.name) or "").split()))
        for p in inspect.signature(entry.make).parameters.values()
        if p.name != "optimizer"
    ]


def describe(method: str) -> str:
    """The help of a method: what it is, what it needs and costs, and every option with default and unit."""
    import textwrap

    entry = CATALOGUE[method]
    about = (inspect.getdoc(entry.make) or "").split("\n\n")[0].replace("\n", " ")
    needs = f"needs {entry.needs}; costs {entry.cost} a step; {entry.source}"
    lines = [f"{method} ({entry.family}): {about}", needs, "", "set with --option NAME=VALUE:"]
    for option in options_of(method):
        default = "required" if option.default is inspect.Parameter.empty else f"default {option.default}"
        lines.append(f"  {option.name}={option.kind}  ({default})")
        lines += textwrap.wrap(option.help, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _kind(hint: Any) -> str:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = []
    for choice in typing.get_args(hint) if union else (hint,):
        if typing.get_origin(choice) is typing.Literal:
            kinds.append("|".join(map(str, typing.get_args(choice))))
        else:
            kinds.append({int: "INT", float: "FLOAT", str: "TEXT", type(None): "none"}[choice])
    return "|".join(kinds)


def make_method(name: str, options: Sequence[str] = ()) -> Method:
    """The method `name` with `options` such as `("damping=0.1", "cg_steps=8")`.

    Raises:
        ValueError: an unknown method or option (the nearest name is suggested), or a value of the wrong type.

    Example:
        >>> make_method("gauss_newton_ascent", ["max_kl=1e-4"]).name
        'gauss_newton_ascent'
    """
    values = hyperparameters(name, options)
    with of_flag("--option"):
        return CATALOGUE[name].make(**values)


def hyperparameters(name: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """What `make_method` passes to the recipe, values by name; raises like it.

    Example:
        >>> hyperparameters("newton_removal", ["damping=0.1"])
        {'max_kl': 0.001, 'damping': 0.1}
    """
    require_method(name)
    recipe = CATALOGUE[name].make
    known = {p.name: p for p in inspect.signature(recipe).parameters.values() if p.name != "optimizer"}
    hints = typing.get_type_hints(recipe)
    values = dict(CATALOGUE[name].run_options)
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--option {option}: write it as name=value, for example --option {next(iter(known))}=...")
        if key not in known:
            raise ValueError(
                f"--option {option}: {name} has no such option{_nearest(key, known)}; it has {', '.join(known)}"
            )
        values[key] = _convert(option, value, hints[key])
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise ValueError(f"--method {name} needs a value for {', '.join(missing)}: add --option {missing[0]}=...")
    return values


def require_method(name: str) -> None:
    """Raises ValueError, suggesting the nearest name, when there is no method of this name."""
    if name not in CATALOGUE:
        raise ValueError(f"--method {name}: no such method{_nearest(name, CATALOGUE)}; `jaxunlearn methods` lists them")


def _convert(option: str, value: str, hint: type):
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if type(None) in choices and value.lower() == "none":
        return None
    kind = next(c for c in choices if c is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"--option {option}: choose one of {', '.join(typing.get_args(kind))}")
        return value
    if kind is str:
        return value
    try:
        number = kind(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    except ValueError:
        raise ValueError(
            f"--option {option}: {value!r} is not {'a whole number' if kind is int else 'a finite number'}"
        ) from None


def _nearest(name: str, names) -> str:
    found = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
