"""How options look in `--help`: their text as one paragraph, what may follow the flag, and a default where one is set.

tyro makes flags of the settings' dataclasses; left alone it shows `--steps {None}|INT (default: None)` for an option
that may be left out, says of `--steps many` that it is no NoneType, and keeps the line breaks of the source.
"""

import dataclasses
import functools
import types
import typing
from typing import Annotated, Any

# What follows a flag where its type does not say it.
FOLLOWS = {
    "coordinator": "HOST:PORT",
    "data": "DATA",
    "evaluate_data": "FOLDER",
    "forget": "RECORDS",
    "holdout": "RECORDS",
    "keep_while": "RULE",
    "max_shard_size": "BYTES",
    "memory_budget": "BYTES",
    "mesh": "AXES",
    "method": "NAME",
    "name": "[NAME]",
    "option": "NAME=VALUE",
    "retain": "RECORDS",
    "stop_when": "RULE",
    "template": "TEXT",
}


def registry():
    """Rules for `tyro.cli` by which it reads and shows dataclasses of settings."""
    from tyro.constructors import (
        MISSING_NONPROP,
        ConstructorRegistry,
        PrimitiveTypeInfo,
        StructConstructorSpec,
        StructFieldSpec,
    )

    found = ConstructorRegistry()

    @found.struct_rule
    def settings(info):
        if not dataclasses.is_dataclass(info.type):
            return None
        hints = typing.get_type_hints(info.type, include_extras=True)
        fields = []
        for field in dataclasses.fields(info.type):
            default = field.default
            if dataclasses.is_dataclass(info.default):
                default = getattr(info.default, field.name)
            elif field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            kind = _shown(field.name, hints[field.name], default)
            text = functools.partial(_text, info.type, field.name)
            fields.append(
                StructFieldSpec(field.name, kind, MISSING_NONPROP if default is dataclasses.MISSING else default, text)
            )
        return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))

    @found.primitive_rule
    def optional(info):
        kinds = [kind for kind in typing.get_args(info.type) if kind is not type(None)]
        if info.type_origin not in (types.UnionType, typing.Union) or len(kinds) != 1:
            return None
        one: Any = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], info.markers))
        return dataclasses.replace(
            one,
            instance_from_str=lambda given: None if given == ["None"] else one.instance_from_str(given),
            is_instance=lambda value: value is None or one.is_instance(value),
            str_from_instance=lambda value: ["None"] if value is None else one.str_from_instance(value),
            choices=one.choices and (*one.choices, "None"),
        )

    return found


def _shown(name: str, kind: Any, default: Any) -> Any:
    """The type of an option, with what `--help` says after its flag and of its default."""
    import tyro

    if dataclasses.is_dataclass(kind):
        return kind
    hint = None  # tyro's own
    if default is None or default is False or default == ():
        hint = ""
    elif isinstance(default, str) and "\n" in default:
        hint = f"(default: {default!r})"
    return Annotated[kind, tyro.conf.arg(metavar=follows(name, kind, default), help_behavior_hint=hint)]


def follows(name: str, kind: Any, default: Any = None) -> str | None:
    """What is to be written after a flag; None leaves it to the type.

    Example:
        >>> follows("option", tuple[str, ...]), follows("dry_run", bool, False), follows("steps", int | None)
        ('NAME=VALUE', '', None)
    """
    if name in FOLLOWS and not any(typing.get_origin(one) is typing.Literal for one in (kind, *typing.get_args(kind))):
        return FOLLOWS[name]
    return "" if kind is bool and default is False else None  # a switch: alone, it is on


def _text(settings: type, name: str) -> str | None:
    """The docstring of a field, as one paragraph."""
    text = _texts(settings).get(name)
    return text and " ".join(text.split())


@functools.cache
def _texts(settings: type) -> dict[str, str]:
    import docstring_parser

    told = [p for kind in settings.__mro__[-2::-1] for p in docstring_parser.parse_from_object(kind).params]
    return {p.arg_name: p.description for p in told if p.description}
