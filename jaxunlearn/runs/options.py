"""Hyperparameters of a method given as name=value, checked against the recipe's own signature."""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Sequence

from jaxunlearn.methods import CATALOGUE, Method


def make_method(name: str, options: Sequence[str] = ()) -> Method:
    """The method `name` with `options` such as `("damping=0.1", "cg_steps=8")`.

    Raises:
        ValueError: an unknown method or option (the nearest name is suggested), or a value of the wrong type.

    Example:
        >>> make_method("gauss_newton_ascent", ["max_kl=1e-4"]).name
        'gauss_newton_ascent'
    """
    if name not in CATALOGUE:
        raise ValueError(f"--method {name}: no such method{_nearest(name, CATALOGUE)}; `jaxunlearn methods` lists them")
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
    return recipe(**values)


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
