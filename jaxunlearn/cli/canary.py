"""`jaxunlearn canary insert` and `jaxunlearn canary score`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse

USAGE = """usage: jaxunlearn canary insert|score [OPTIONS]

  insert     put made-up secrets into training records, and keep the key
  score      exposure of inserted canaries: how many bits of each secret a model gives away

jaxunlearn canary insert --help and jaxunlearn canary score --help list the options."""


def main(argv: Sequence[str]) -> None:
    action, *rest = argv or ["--help"]
    if action in ("-h", "--help"):
        print(USAGE)
        # As with the options of any other command: help is no result.
        raise SystemExit(0)
    if action not in ("insert", "score"):
        raise ValueError(f"no action {action!r}; choose insert or score")
    from jaxunlearn.runs.settings import CanaryInsert, CanaryScore

    settings = parse(CanaryInsert if action == "insert" else CanaryScore, f"canary {action}", rest)
    from jaxunlearn.runs import canary

    getattr(canary, action)(settings)
