"""`jaxunlearn curvature`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import StoreCurvature

    settings = parse(StoreCurvature, "curvature", argv)
    from jaxunlearn.runs.curvature import store_curvature

    store_curvature(settings)
