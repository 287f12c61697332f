"""`jaxunlearn unlearn`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Unlearn

    settings = parse(Unlearn, "unlearn", argv)
    from jaxunlearn.runs.unlearn import unlearn

    unlearn(settings)
