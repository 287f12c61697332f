"""`jaxunlearn report RUN`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    import tyro

    from jaxunlearn.runs.settings import Report

    settings = parse(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(Report), "report", argv)
    from jaxunlearn.runs.report import report

    report(settings)
