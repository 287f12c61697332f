"""`jaxunlearn spectrum`."""

from collections.abc import Sequence

from jaxunlearn.cli.parse import parse


def main(argv: Sequence[str]) -> None:
    from jaxunlearn.runs.settings import Spectrum

    settings = parse(Spectrum, "spectrum", argv)
    from jaxunlearn.runs.spectrum import spectrum

    spectrum(settings)
