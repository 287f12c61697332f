"""Settings from arguments, by tyro: flags, help and types all come from the settings dataclasses."""

from collections.abc import Sequence
from typing import TypeVar

Settings = TypeVar("Settings")


def parse(settings: type[Settings], name: str, argv: Sequence[str]) -> Settings:
    """Fill `settings` from `argv`; prints help or a usage error and exits where argparse would."""
    import tyro

    # Flags of nested groups need no prefix, and lists are given by repeating a flag.
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction, tyro.conf.FlagConversionOff)
    return tyro.cli(settings, prog=f"jaxunlearn {name}", args=list(argv), config=config)
