"""`jaxunlearn report RUN`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Report

    settings = parse(Report, "report", argv, positional=("run",))
    from jaxunlearn.runs.report import report

    report(settings)
