"""`jaxunlearn unlearn`."""

import itertools
from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Unlearn

    method = _method(argv)
    if method is not None and {"-h", "--help"} & set(argv):
        from jaxunlearn.runs.options import describe, require_method

        require_method(method)
        print(describe(method), end="\n\n")
    settings = parse(Unlearn, "unlearn", argv)
    from jaxunlearn.runs.unlearn import unlearn

    unlearn(settings)


def _method(argv: Sequence[str]) -> str | None:
    """The method named beside `--help`, whose own options are then explained as well."""
    for flag, value in itertools.pairwise([*argv, ""]):
        if flag == "--method":
            return value
        if flag.startswith("--method="):
            return flag.partition("=")[2]
    return None
