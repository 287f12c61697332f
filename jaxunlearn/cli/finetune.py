"""`jaxunlearn finetune`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Finetune

    settings = parse(Finetune, "finetune", argv)
    from jaxunlearn.runs.finetune import finetune

    finetune(settings)
