"""`jaxunlearn attack`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Attack

    settings = parse(Attack, "attack", argv)
    from jaxunlearn.runs.attack import attack

    attack(settings)
