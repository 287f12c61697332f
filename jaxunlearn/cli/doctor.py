"""`jaxunlearn doctor`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Doctor

    settings = parse(Doctor, "doctor", argv)
    from jaxunlearn.runs.doctor import doctor

    if any(line.problem for line in doctor(settings)):
        raise SystemExit(1)
