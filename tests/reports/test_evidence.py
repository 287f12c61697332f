"""From evidence to the page: every part shown, none invented, no text unless it was given to be shown."""

import re

import numpy as np
import pytest

from jaxunlearn.evals.result import measured
from jaxunlearn.reports import Evidence, figures, number, verdict_of, write_report
from jaxunlearn.reports.certified import certificate_rows
from jaxunlearn.reports.distributions import Losses, loss_distributions, roc
from jaxunlearn.reports.documents import MOST, documents
from jaxunlearn.reports.solves import solve_of, solve_record

from .made import CERTIFICATE, COLUMNS, EVIDENCE, RECORDS, RUNS, SECRET, STEPS
from .test_page import parsed

SECTIONS = (
    "comparison", "attacks", "plane", "losses", "steps", "solves", "documents", "missing", "limits", "terms", "record",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(pages):
    return pages["plain"]


def test_the_page_has_every_section_in_its_order_and_an_index_that_leads_to_each(page):
    reader = parsed(page)
    order = [attributes["id"] for tag, attributes in reader.seen if tag == "h2" and attributes["id"] != "index"]
    assert order == list(SECTIONS)
    assert [a["href"] for tag, a in reader.seen if tag == "a"][1:] == [f"#{name}" for name in SECTIONS]
    text = page.read_text()
    assert text.index('class="headline"') < text.index('id="comparison"')


def test_no_text_of_a_record_is_on_the_page_unless_it_was_given(page, pages):
    assert SECRET in str(EVIDENCE.columns)
    assert SECRET not in page.read_text()
    told = pages["told"].read_text()
    assert told.count(SECRET) >= RECORDS + 4


def test_without_numbers_there_is_no_verdict_and_with_doubts_none_either():
    assert verdict_of(EVIDENCE).good is True
    doubted = verdict_of(EVIDENCE._replace(doubts=["They are of other weights."]))
    assert doubted.good is None
    assert "They are of other weights." in doubted.sentences
    bare = verdict_of(Evidence("A model", "after", {}, certificate=CERTIFICATE))
    assert bare.good is None
    assert "from 3.9000 to 4.4000" in bare.sentences[0]


def test_a_trace_that_a_stress_test_found_takes_the_success_back():
    found = {"after": {"forget_zlib_auc": COLUMNS["before"]["forget_loss_auc"]}}
    verdict = verdict_of(EVIDENCE._replace(attacked=found))
    assert verdict.good is None
    assert "stress tests still find traces" in verdict.headline


def test_alternative_texts_say_the_numbers_of_the_pictures(page):
    labels = [attributes["aria-label"] for tag, attributes in parsed(page).seen if tag == "svg"]
    assert len(labels) == 4
    plane, losses, steps, solves = labels
    assert "after: 0.900 on forget, 0.045 on retain" in plane
    assert f"area {COLUMNS['after']['forget_loss_auc']['agg_value']:.2f}" in losses
    assert "8 steps: NLL on forget 0.500 to 4.000" in steps
    low, *_, high = np.linalg.eigvalsh([[5.0, 2.0, 0.0], [2.0, 3.0, 1.0], [0.0, 1.0, -0.5]])
    assert f"3 Ritz values between {low:.2e} and {high:.2e}" in solves


def test_several_runs_stand_beside_each_other_and_the_own_one_by_itself(pages):
    labels = {a["aria-label"] for tag, a in parsed(pages["told"]).seen if tag == "svg"}
    own, several = sorted((one for one in labels if one.startswith("From the first step")), key=len)
    assert own.startswith("From the first step to the last of 8 steps: NLL on forget 0.500 to 4.000")
    assert "damping 0.100 to 0.100" in own
    assert "damping" not in several
    for name in (*RUNS, "after"):
        steps = RUNS.get(name, STEPS)
        first, last = (number(steps[at]["forget_nll"]) for at in (0, -1))
        assert f"{name}, {len(steps)} steps: NLL on forget {first} to {last}, NLL on retain" in several
    assert figures.runs({"after": STEPS, "empty": [], "bare": [{"status": 0}]}, "after") is None


def test_the_area_of_the_roc_is_the_share_of_pairs_in_order():
    draws = np.random.default_rng(0)
    losses = Losses(draws.normal(0, 1, 37), draws.normal(0.7, 2, 23))
    false, true, area = roc(losses)
    assert area == pytest.approx(np.mean(losses.forget[:, None] < losses.unseen), abs=1e-12)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()


def test_losses_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="needs finite losses"):
        loss_distributions({"after": Losses(np.array([1.0, np.nan]), np.array([1.0]))})
    with pytest.raises(ValueError, match="one to 4"):
        loss_distributions({})


def test_ritz_values_and_weights_are_those_of_the_tridiagonal_matrix():
    solve = solve_of(STEPS, CERTIFICATE)
    T = np.diag([5.0, 3.0, -0.5]) + np.diag([2.0, 1.0], 1) + np.diag([2.0, 1.0], -1)
    np.testing.assert_allclose(solve.ritz, np.linalg.eigvalsh(T), atol=1e-12)
    for power in range(4):  # the measure's moments are e1.T^p.e1
        moment = np.linalg.matrix_power(T, power)[0, 0]
        assert np.sum(solve.weights * solve.ritz**power) == pytest.approx(moment, rel=1e-12)
    np.testing.assert_allclose(solve.by_step, [step["residual"] for step in STEPS])
    np.testing.assert_allclose(solve.by_product, [1.0, 0.5, 0.05, 0.001])


@pytest.mark.parametrize("alphas", [[5.0, 3.0, -0.5], [5.0, 3.0, 4.0], [1e-8, 1e-9, 0.0]])
def test_any_spectrum_can_be_drawn(alphas):
    picture = solve_record(solve_of([], CERTIFICATE | {"alphas": alphas, "betas": [1e-9, 1e-9, 0.0]}), damping=0.1)
    assert b"<svg" in picture


def test_a_first_order_run_has_no_solve_and_other_certificates_say_what_they_have():
    assert solve_of([{"forget_nll": 1.0}], {"forget_before": 1.0}) is None
    assert certificate_rows({}) == {}
    rows = certificate_rows(CERTIFICATE | {"noise_status": 1, "noise_residual": 0.02})
    assert rows["Cost on retain, KL in nats per token"] == "1.20e-04, predicted 1.00e-04"
    assert rows["Solve"].startswith("3 products; converged")
    assert "relative error 2.00e-02" in rows["Noise"]


def test_a_place_to_stop_that_is_out_of_reach_is_told_and_not_drawn():
    drawn, told = (figures.steps(STEPS, stop) for stop in (4.0, 1e9))
    assert (b">stop<" in drawn.svg, b">stop<" in told.svg) == (True, False)
    assert "dashed line is the loss at which the run was to stop, 4.000" in drawn.caption
    assert "to stop at a loss on forget of 1e+09, far above" in told.caption


def test_documents_stand_by_themselves_and_only_beside_what_was_measured_alike():
    columns = COLUMNS | {"before": {"forget_nll": measured("forget_nll", np.ones(3))}}
    found = documents(columns, "after")
    assert found.heads[:3] == ("Record", "Loss, after", "Loss, retrained")
    assert [row[1].value for row in found.rows] == list(COLUMNS["after"]["forget_nll"]["value_by_index"].values())
    assert [row[0].text for row in found.rows] == [str(i) for i in range(1, RECORDS + 1)]
    assert documents(COLUMNS, "nobody") is None


def test_a_long_table_of_documents_says_that_it_was_cut(tmp_path):
    many = {"after": {"forget_nll": measured("forget_nll", np.ones(MOST + 7))}}
    text = write_report(tmp_path / "r.html", Evidence("A model", "after", many)).read_text()
    assert re.search(rf"first {MOST} of {MOST + 7} are shown", " ".join(text.split()))
