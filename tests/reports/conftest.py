"""The page of `made.EVIDENCE`, with and without text and other runs, drawn once for all tests."""

import pytest

from jaxunlearn.reports import write_report

from .made import ANSWERS, EVIDENCE, RUNS, TEXTS


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {
        "plain": write_report(folder / "plain.html", EVIDENCE),
        "told": write_report(
            folder / "told.html", EVIDENCE._replace(answers=ANSWERS, texts=TEXTS, history=RUNS | EVIDENCE.history)
        ),
    }
