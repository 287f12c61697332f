"""`jaxunlearn bench`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Bench

    settings = parse(Bench, "bench", argv)
    from jaxunlearn.runs.bench import bench

    bench(settings)
