"""The page: complete in itself, safe with hostile model output, well-formed, written whole or not at all."""

import itertools
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxunlearn.evals.result import measured, skipped
from jaxunlearn.reports import Answer, Figure, Point, Verdict, forget_keep_plane, lay_out, write_page

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Reader(HTMLParser):
    """Collects elements and checks that they nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    results = {
        name: {
            "forget_kl": measured("forget_kl", np.array([value])),
            "forget_truth_ratio": measured("forget_truth_ratio", np.array([0.5])),
            "retain_truth_ratio": measured("retain_truth_ratio", np.array([0.5])),
            "retain_kl": skipped("retain_kl", f"no {HOSTILE} given"),
        }
        for name, value in (("before", 7.6), ("after", 2.06), (HOSTILE, 1.0))
    }
    plane = forget_keep_plane([Point(HOSTILE, 2.0, 0.1), Point("before", 7.0, 0.1)], floor=(2.6, 0.01))
    return write_page(
        tmp_path / "out" / "report.html",
        title=f"Report {HOSTILE}",
        verdict=Verdict("The model has forgotten.", ["It kept the rest."], good=True),
        table=lay_out(results, floor={"forget_kl": 2.6}),
        figures=[
            Figure(plane, "Forgotten and kept", "Left is better.", f"Scatter {HOSTILE}"),
            Figure(plane, "b", "", ""),
        ],
        answers=[
            Answer(f"Who is {HOSTILE}?", "Ada.", HOSTILE, "", "Bob."),
            Answer("Kept?", "Yes.", "Yes.", "Yes.", part="To be kept"),
        ],
        certificate={"relative residual": 3.2e-4, "converged": False},
        config={"method": {"name": "npo", "widths": [1, 2]}, "seed": None},
        environment={"jax": "0.10"},
        notes=[HOSTILE],
    )


def parsed(page):
    reader = Reader()
    reader.feed(page.read_text())
    return reader


def test_nothing_is_fetched_and_nothing_runs(page):
    text = page.read_text()
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", text)
    tags = parsed(page).seen
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed"}
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_hostile_text_is_shown_as_text(page):
    shown = "".join(parsed(page).text)
    assert shown.count(HOSTILE) >= 6
    assert "<script" not in page.read_text()


def test_elements_nest_and_ids_are_unique(page):
    reader = parsed(page)
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [attributes["aria-labelledby"] for _, attributes in reader.seen if "aria-labelledby" in attributes]
    assert set(wanted) <= set(ids)


def test_tables_and_pictures_are_accessible(page):
    reader = parsed(page)
    tags = [tag for tag, _ in reader.seen]
    assert tags.count("table") == tags.count("caption") == 4
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in reader.seen if tag == "th")
    pictures = [attributes for tag, attributes in reader.seen if tag == "svg"]
    assert len(pictures) == 2
    assert all(attributes["role"] == "img" and "aria-label" in attributes for attributes in pictures)
    assert [attributes.get("lang") for tag, attributes in reader.seen if tag == "html"] == ["en"]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_the_verdict_comes_before_the_evidence(page):
    text = page.read_text()
    assert text.index("The model has forgotten.") < text.index("<table")
    assert 'class="verdict good"' in text


def test_values_settings_and_gaps_are_on_the_page(page):
    shown = "".join(parsed(page).text)
    for piece in ("2.060", "2.600", "method.name", "npo", "1, 2", "0.00032", "says nothing", "To be kept", "no "):
        assert piece in shown
    assert "Truth ratio, forget" in shown
    assert 'class="number good">2.060' in page.read_text()


def test_an_existing_page_is_not_overwritten_and_no_part_is_left_behind(page):
    before = page.read_bytes()
    with pytest.raises(ValueError, match="not overwritten"):
        write_page(page, title="t", verdict=Verdict("v"), table=lay_out({"a": {"forget_kl": {"agg_value": 1.0}}}))
    assert page.read_bytes() == before
    assert [file.name for file in page.parent.iterdir()] == ["report.html"]


def test_a_minimal_page_has_no_empty_sections(tmp_path):
    table = lay_out({"a": {"forget_kl": {"agg_value": 1.0}}})
    text = write_page(tmp_path / "r.html", title="t", verdict=Verdict("v"), table=table).read_text()
    for heading in ("What the models answer", "What this does not show", "Record of the run", "seed floor"):
        assert heading not in text
    assert 'class="verdict"' in text
