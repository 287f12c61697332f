"""`jaxunlearn demo`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.demo import Demo, demo

    demo(parse(Demo, "demo", argv))
