"""`jaxunlearn compare RUN REFERENCE`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Compare

    settings = parse(Compare, "compare", argv, positional=("run", "reference"))
    from jaxunlearn.runs.compare import compare

    compare(settings)
