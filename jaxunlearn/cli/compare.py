"""`jaxunlearn compare RUN REFERENCE`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    import tyro

    from jaxunlearn.runs.settings import Compare

    settings = parse(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Compare), "compare", argv)
    from jaxunlearn.runs.compare import compare

    compare(settings)
