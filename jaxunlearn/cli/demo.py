"""`jaxunlearn demo`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Demo

    settings = parse(Demo, "demo", argv)
    from jaxunlearn.runs.demo import demo

    demo(settings)
