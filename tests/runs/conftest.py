"""A tiny model folder with its own tokenizer, record files, and the encoded records of both."""

from typing import NamedTuple

import pytest
import report_home
import tiny

from jaxunlearn import data, models
from jaxunlearn.reports import figures


class World(NamedTuple):
    """Folders, files and objects every test of a run can read and none changes."""

    model: str
    forget: str
    retain: str
    rows: data.Corpus
    tokenizer: object


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    made = tiny.write(folder)
    return World(*(str(folder / name) for name in ("base", "forget.jsonl", "retain.jsonl")), made.rows, made.tokenizer)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """`report_home.make`, around the working folder; nothing is drawn."""
    found = report_home.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in report_home.PICTURES:  # they take most of the time, and reports/test_evidence.py looks at them
        monkeypatch.setattr(figures, name, lambda *known: None)
    return found


class Encoded(NamedTuple):
    """The world's model and records in memory."""

    model: object
    params: object
    forget: list
    retain: list


@pytest.fixture(scope="session")
def encoded(world):
    model, params = models.load(world.model)
    sets = (data.encode(data.from_rows(part), world.tokenizer, max_length=64) for part in world.rows[:2])
    return Encoded(model, params, *sets)
