"""`jaxunlearn report` from files: what it takes for evidence, what it takes for doubt, and what it does not show."""

import json
import re
import shlex

import pytest
import yaml
from report_home import (
    MARKER,
    PICTURES,
    checkpoint,
    measure,
    named,
    reported,
    verdict,
)

from jaxunlearn.cli import main
from jaxunlearn.reports import figures
from jaxunlearn.runs.record import FILE, digest


def test_a_bare_run_is_not_judged_and_the_page_says_how_to_measure_it(home):
    page = reported(home)
    assert verdict(page) == "Whether this model has forgotten has not been measured."
    commands = [shlex.split(found) for found in re.findall(r"<pre[^>]*><code>(.*?)</code>", page)]
    assert [command[1] for command in commands] == ["evaluate", "evaluate", "attack"]
    first = commands[0]
    assert first[first.index("--model") + 1] == str(home / "gone")
    assert first[first.index("--before-model") + 1] == str(home / "before")
    assert first[first.index("--max-length") + 1] == "32"
    for command in commands:  # they are commands of ours, with options of ours
        with pytest.raises(SystemExit) as end:
            main([*command[1:], "--help"])
        assert end.value.code == 0
    assert digest(home / "gone") in page
    assert "when the loss on the records to be forgotten reached that of unseen text" in page


def test_evidence_beside_the_run_is_found_and_judged(home, capsys):
    measure(home, "any-name.json")
    measure(home, "stress.json", "attack")
    (home / "unrelated.json").write_text('{"results": 1}')
    (home / "broken.json").write_text("{")
    floor = measure(home, "floor.json", after="second", kl=1.0)
    page = reported(home, "--seed-floor", floor)
    assert verdict(page) == "The model answers like one that never saw what was to be forgotten, and kept the rest."
    assert verdict(page) in capsys.readouterr().out.replace("\n", " ")
    for piece in ("any-name.json", "stress.json", "0.500", "1.000", "What attacks bring back", digest(floor)):
        assert piece in page
    assert "What was not measured" not in page
    assert verdict(reported(home)) == "Whether the model has forgotten is open; it kept the rest."


DOUBTS = {
    "other weights": (lambda home: measure(home, "e.json", after="other"), "was measured on other weights"),
    "other records": (
        lambda home: measure(home, "e.json", inputs={"forget": named(home / "retain.jsonl")["retain"]}),
        "on other records",
    ),
    "unknown records": (lambda home: measure(home, "e.json", inputs={}), "on other records"),
    "another start": (
        lambda home: measure(home, "e.json", weights={"before": "0", "after": digest(home / "gone")}),
        "not the one that the run began with",
    ),
    "weights replaced": (
        lambda home: [measure(home, "e.json"), (home / "gone" / "model.safetensors").write_bytes(b"new")][0],
        "not those that its record was written for",
    ),
}


@pytest.mark.parametrize("case", DOUBTS)
def test_numbers_that_may_be_about_something_else_get_no_verdict(home, case):
    make, said = DOUBTS[case]
    page = reported(home, "--evaluation", make(home), "--seed-floor", measure(home, "f.json", after="second", kl=9.0))
    assert verdict(page).startswith("Whether this model has forgotten is not judged")
    assert said in page
    assert 'class="verdict good"' not in page


def test_another_retrained_model_than_the_one_given_is_a_doubt(home):
    evaluation = measure(home, "e.json")
    assert "is not judged" not in verdict(
        reported(home, "--evaluation", evaluation, "--reference-model", home / "retrained")
    )
    assert "is not judged" in verdict(reported(home, "--evaluation", evaluation, "--reference-model", home / "second"))


def test_results_of_other_weights_nearby_are_passed_over_and_a_moved_model_is_known_by_its_hash(home):
    measure(home, "others.json", after="other")
    assert "has not been measured" in verdict(reported(home))
    measure(home, "mine.json")
    (home / "gone").rename(home / "renamed")
    assert "it kept the rest" in verdict(reported(home, run="renamed"))


def test_without_hashes_the_folder_tells(home):
    measure(home, "e.json", hashes=False)
    assert "it kept the rest" in verdict(reported(home))


def test_compared_models_are_columns_and_points(home):
    measure(home, "e.json")
    page = reported(home, "--compare", measure(home, "npo.json", after="other", kl=3.3))
    assert "npo: 3.300 on forget, 0.330 on retain" in page
    assert re.search(r'<th scope="col" class="number">npo</th>', page)


def test_the_options_beside_a_page_write_it_again_whatever_has_come_since(home):
    for name, command in (("e.json", "evaluate"), ("stress.json", "attack")):
        measure(home, name, command)
    floor = measure(home, "floor.json", after="second", kl=1.0)
    assert main(["report", "gone", "--seed-floor", floor, "--show-text"]) == 0
    options = yaml.safe_load((home / "gone" / "report.yaml").read_text())
    assert [options[name] for name in ("run", "evaluation", "attack")] == ["gone", ["e.json"], "stress.json"]
    measure(home, "later.json", kl=2.0)
    assert main(["report", "--config", "gone/report.yaml", "--out", "again.html"]) == 0
    assert (home / "again.html").read_bytes() == (home / "gone" / "report.html").read_bytes()
    assert yaml.safe_load((home / "again.yaml").read_text()) == options | {"out": "again.html"}


def test_no_text_of_a_record_or_an_answer_is_on_the_page_unless_asked(home, monkeypatch):
    for name, draw in PICTURES.items():
        monkeypatch.setattr(figures, name, draw)
    measure(home, "e.json")
    page = reported(home)
    assert MARKER in (home / "e.json").read_text()
    assert MARKER not in page
    assert page.count("<svg") == 4
    for name in PICTURES:
        monkeypatch.setattr(figures, name, lambda *known: None)
    told = reported(home, "--show-text")
    for piece in (
        f"Where forget 3 {MARKER}?",
        f"Here 0 {MARKER}.",
        f"wrote forget 1 {MARKER}",
        f"wrote retain 9 {MARKER}",
    ):
        assert piece in told
    assert f"wrote retain 10 {MARKER}" not in told


def test_records_that_have_changed_are_not_shown_beside_old_answers(home):
    measure(home, "e.json")
    with (home / "forget.jsonl").open("a") as file:
        file.write('{"question": "Another?", "answer": "One."}\n')
    page = reported(home, "--show-text")
    assert "The forget records are not where they were, or have changed" in page
    assert "wrote forget" not in page
    assert "wrote retain" in page
    assert 'class="changed">changed' in page


def test_earlier_requests_are_listed_and_asked_after(home):
    record = json.loads((home / "gone" / FILE).read_text())
    (home / "first.jsonl").write_text("{}")
    last = record["requests"][0]
    record["requests"] = [dict(last), last | {"number": 2}]
    record["requests"][0]["forget"] = named(home / "first.jsonl")["first"]
    (home / "gone" / FILE).write_text(json.dumps(record))
    measure(home, "e.json", kl=0.7)
    page = reported(home)
    assert page.count("2026-11-25 09:29:24 UTC") == 2
    assert "Whether what request 1 asked for is still forgotten." in page
    assert re.search(r"first.jsonl</td> *<td[^>]*>not measured</td>.*forget.jsonl</td> *<td[^>]*>0.700</td>", page)
    measure(home, "first.json", inputs={"forget": named(home / "first.jsonl")["first"]}, kl=1.9)
    page = reported(home)
    assert "Whether what request 1" not in page
    assert re.search(r"first.jsonl</td> *<td[^>]*>1.900</td>.*forget.jsonl</td> *<td[^>]*>0.700</td>", page)
    assert "after: 0.700 on forget" in page


REFUSED = {
    "itself": (["report", "gone", "--compare", "gone"], "is the model that the page is about"),
    "no folder": (["report", "nowhere"], "no such folder"),
    "no record": (["report", "before"], f"holds no {FILE}"),
    "not a file": (["report", "gone", "--evaluation", "none.json"], "none.json: no such file"),
    "not JSON": (["report", "gone", "--evaluation", "forget.jsonl"], "not JSON"),
    "not ours": (["report", "gone", "--attack", f"gone/{FILE}"], "no results of models in it"),
    "floor of itself": (["report", "gone", "--seed-floor", "mine.json"], "is the unlearned model itself"),
    "floor on other records": (["report", "gone", "--seed-floor", "elsewhere.json"], "on other records"),
    "no such column": (["report", "gone", "--seed-floor", "mine.json", "--seed-floor-column", "x"], "no column 'x'"),
    "no other": (["report", "gone", "--compare", "mine.json"], "holds no other unlearned model"),
    "other standard": (["report", "gone", "--compare", "foreign.json"], "another retrained model"),
    "no weights": (["report", "gone", "--reference-model", "."], "no checkpoint folder"),
    "exists": (["report", "gone", "--out", "forget.jsonl"], "exists already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_error_and_nothing_is_written(home, case, capsys):
    argv, said = REFUSED[case]
    measure(home, "mine.json")
    measure(home, "foreign.json", after="other", weights={"after": "1", "retrained": "2"})
    measure(home, "elsewhere.json", after="second", inputs={})
    before = sorted(home.folder.rglob("*"))
    assert main(argv) == 2
    assert said in capsys.readouterr().err
    assert sorted(home.folder.rglob("*")) == before


def test_a_folder_that_holds_the_run_is_enough_and_several_are_named(home, capsys):
    (home / "work").mkdir()
    (home / "gone").rename(home / "work" / "gone")
    assert main(["report", str(home / "work")]) == 0
    assert (home / "work" / "report.html").is_file()
    checkpoint(home / "work" / "again", b"again")
    (home / "work" / "again" / FILE).write_text('{"command": "unlearn"}')
    assert main(["report", str(home / "work"), "--out", "x.html"]) == 2
    assert "2 unlearned folders: again, gone" in capsys.readouterr().err
