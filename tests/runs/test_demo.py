"""The demo, cut down to seconds: everything it promises to write is there, whole and readable."""

import functools
import json

import numpy as np
import pytest

from jaxunlearn import data, models
from jaxunlearn.methods import CATALOGUE
from jaxunlearn.runs import demo as module
from jaxunlearn.runs.demo import demo
from jaxunlearn.runs.record import CONFIG, read_record
from jaxunlearn.runs.settings import Demo


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "corpus", functools.partial(data.corpus, people=6, facts=2, holdout=2))
    for name, value in {"EPOCHS": 2, "STEPS": 2, "MATCHING_STEPS": 2, "RETAIN_ROWS": 8}.items():
        monkeypatch.setattr(module, name, value)
    few = {"npo": {}, "counterfactual_matching": {"cg_steps": 2}}
    monkeypatch.setattr(module, "OPTIONS", few)


def test_the_demo_shows_npo_and_four_second_order_methods_the_lead_last():
    names = list(module.OPTIONS)
    assert len(names) == 5
    assert names[0] == "npo"
    assert names[-1] == "counterfactual_matching"
    assert all(CATALOGUE[name].family == "second order" for name in names[1:])
    made = [CATALOGUE[name].make(**options) for name, options in module.OPTIONS.items()]
    assert [method.name for method in made] == names


@pytest.mark.slow
def test_the_demo_writes_what_it_promises(small, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    out = demo(Demo(out=tmp_path / "d", seed=3))
    assert out == tmp_path / "d-2"
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["mine.txt"]
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    table, results = (out / "table.md").read_text(), json.loads((out / "results.json").read_text())
    columns = results["results"]
    assert set(columns) == {"before", "npo", "counterfactual_matching", "retrained"}
    assert all(name in text for name in columns for text in (page, table))
    assert results["floor"]["forget_kl"] > 0
    assert columns["retrained"]["forget_kl"]["agg_value"] == pytest.approx(0, abs=1e-6)
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert {"training: before", "counterfactual_matching"} <= {line["stage"] for line in history}
    written = data.read(out / "data" / "forget.jsonl")
    data.check_overlap(written, data.read(out / "data" / "retain.jsonl"))
    for name in ("before", "retrained", "forgotten"):
        model, params = models.load(out / name)
        assert np.isfinite(np.asarray(model.logits(params, np.array([[1, 2, 3]])))).all()
        assert models.load_tokenizer(out / name).bos_token == "<s>"
    assert read_record(out / "forgotten")["settings"]["seed"] == 3
    assert "\nseed: 3\n" in (out / CONFIG).read_text()
    assert (out / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert str(out / "report.html") in capsys.readouterr().out.replace("\n", "")
