"""`jaxunlearn evaluate`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Evaluate

    settings = parse(Evaluate, "evaluate", argv)
    from jaxunlearn.runs.evaluate import evaluate

    evaluate(settings)
