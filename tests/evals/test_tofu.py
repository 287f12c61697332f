"""TOFU's metrics against its own published logs, and by hand where a number can be worked out."""

import json
from math import comb, log10
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from jaxunlearn.evals.forget_quality import _log10_exact, forget_quality, ks_statistic
from jaxunlearn.evals.tofu import (
    log_truth_ratio,
    model_utility,
    normalised_probability,
    probability,
    rouge_l_recall,
    truth_ratio_forget,
    truth_ratio_retain,
)

FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "authors": "eval_real_author_wo_options.json",
    "world": "eval_real_world_wo_options.json",
}


@pytest.fixture(scope="module")
def logs() -> dict[str, dict]:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "tofu-logs"
    if not folder.is_dir():
        pytest.skip(f"needs TOFU's published logs, not found at {folder}")
    return {name: json.loads((folder / f"llama2-7b_{name}.json").read_text()) for name in ("full", "retain90")}


def column(logs: dict, model: str, part: str, key: str) -> np.ndarray:
    return np.array(list(logs[model][FILES[part]][key].values()))


def log_s(logs: dict, model: str, part: str) -> np.ndarray:
    return log_truth_ratio(
        column(logs, model, part, "avg_paraphrased_loss"), column(logs, model, part, "average_perturb_loss")
    )


def group(logs: dict, model: str, part: str) -> tuple[float, float, float]:
    nll = column(logs, model, part, "avg_gt_loss")
    if part in ("authors", "world"):
        likely = normalised_probability(nll, column(logs, model, part, "average_perturb_loss"))
    else:
        likely = probability(nll)
    ratio = truth_ratio_forget if part == "forget" else truth_ratio_retain
    recall = column(logs, model, part, "rougeL_recall")
    return float(likely.mean()), float(recall.mean()), float(ratio(log_s(logs, model, part)).mean())


@pytest.mark.parametrize(
    ("model", "part", "golden"),
    [
        ("full", "retain", (0.9895, 0.9857, 0.4747)),
        ("full", "authors", (0.4555, 0.933, 0.5962)),
        ("full", "world", (0.4186, 0.8825, 0.539)),
        ("full", "forget", (0.9909, 0.9854, 0.516)),
        ("retain90", "forget", (0.1476, 0.4082, 0.674)),
    ],
)
def test_group_numbers_of_the_published_logs(logs, model, part, golden):
    np.testing.assert_allclose(group(logs, model, part), golden, atol=5.1e-5)


@pytest.mark.parametrize(("model", "golden"), [("full", 0.622684), ("retain90", 0.613746)])
def test_model_utility_of_the_published_logs(logs, model, golden):
    parts = [value for part in ("retain", "authors", "world") for value in group(logs, model, part)]
    # The published figure is the harmonic mean of group numbers rounded to four decimals.
    assert model_utility(np.round(parts, 4)) == pytest.approx(golden, abs=5e-7)
    assert model_utility(parts) == pytest.approx(golden, abs=1e-5)


def test_forget_quality_of_the_published_logs(logs):
    quality = forget_quality(log_s(logs, "full", "forget"), log_s(logs, "retain90", "forget"))
    assert quality.statistic == pytest.approx(0.396667, abs=5e-7)
    assert quality.p_value == pytest.approx(1.834066e-21, rel=1e-6)
    assert quality.log10_p == pytest.approx(np.log10(1.834066e-21), abs=1e-6)
    assert quality.n == (300, 300)
    assert quality.interval[0] < 0.396667 < quality.interval[1]


def test_recall_of_the_published_generations_is_reproduced(logs):
    texts = list(logs["retain90"][FILES["forget"]]["generated_text"].values())[:40]
    recall = rouge_l_recall([row[1] for row in texts], [row[2] for row in texts])
    np.testing.assert_allclose(recall, column(logs, "retain90", "forget", "rougeL_recall")[:40], atol=1e-12)


def test_separated_samples_keep_their_digits_below_float32():
    quality = forget_quality(np.arange(400.0), np.arange(400.0) + 1000, resamples=10)
    assert quality.p_value == pytest.approx(1.0636e-239, rel=1e-4)
    assert quality.log10_p == pytest.approx(np.log10(1.0636) - 239, abs=1e-4)


def test_log10_p_stays_finite_where_float64_underflows():
    quality = forget_quality(np.arange(700.0), np.arange(700.0) + 1000, resamples=0)
    assert quality.p_value == 0.0
    assert quality.log10_p == pytest.approx(log10(2) - log10(comb(1400, 700)), rel=1e-12)
    assert quality.log10_p < -400


@pytest.mark.parametrize(("n", "m", "shift"), [(7, 7, 3.0), (9, 6, 2.0), (30, 20, 5.0), (12, 12, 0.5)])
def test_whole_number_count_agrees_with_scipy(n, m, shift):
    x, y = np.arange(float(n)), np.arange(float(m)) + shift + 0.25
    test = ks_2samp(x, y, method="exact")
    assert _log10_exact(n, m, test.statistic) == pytest.approx(np.log10(test.pvalue), rel=1e-9, abs=1e-9)


def test_statistic_with_ties_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.integers(1, 7, 25).astype(float)
    assert ks_statistic(x, y) == pytest.approx(ks_2samp(x, y).statistic, abs=1e-12)


def test_the_same_model_is_indistinguishable_from_itself():
    values = np.random.default_rng(1).normal(size=50)
    quality = forget_quality(values, values)
    assert (quality.p_value, quality.statistic, quality.log10_p) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("broken", [np.array([1.0, np.nan]), np.array([1.0, np.inf])])
def test_a_broken_model_has_no_forget_quality(broken):
    with pytest.raises(ValueError, match="1 of 2 truth ratios of the unlearned model are not finite"):
        forget_quality(broken, np.zeros(3))


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="at least one truth ratio of the retrained"):
        forget_quality(np.zeros(2), np.zeros(0))


def test_truth_ratio_by_hand():
    # wrong answers at 1 and 3 nats, right one at 2 - log 2: s = 2.
    log_ratio = log_truth_ratio(np.array([2 - np.log(2)]), [np.array([1.0, 3.0])])
    np.testing.assert_allclose(np.exp(log_ratio), [2.0])
    np.testing.assert_allclose(truth_ratio_forget(log_ratio), [0.5])
    np.testing.assert_allclose(truth_ratio_retain(log_ratio), [0.5])


def test_extreme_ratios_neither_overflow_nor_warn():
    with np.errstate(all="raise", under="ignore"):
        assert truth_ratio_forget(np.array([1e4, -1e4])).tolist() == [0.0, 0.0]
        assert truth_ratio_retain(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]


def test_normalised_probability_survives_losses_where_exp_underflows():
    assert normalised_probability(np.array([2000.0]), [np.array([2000.0, 5000.0])]).tolist() == [0.5]


def test_utility_is_zero_if_one_part_is_and_nan_if_one_is():
    assert model_utility([1.0, 1.0, 0.0]) == 0.0
    assert np.isnan(model_utility([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"in \[0, 1\], and one is -0\.5"):
        model_utility([1.0, -0.5])
    with pytest.raises(ValueError, match="none was given"):
        model_utility([])


def test_recall_divides_by_the_truth_and_stems():
    # "was born" of three words in the truth; stemming makes "writers" match "writer".
    assert rouge_l_recall(["was born"], ["he was born"])[0] == pytest.approx(2 / 3)
    assert rouge_l_recall(["writers"], ["writer"])[0] == 1.0
    assert rouge_l_recall(["", "x y"], ["a", "a"]).tolist() == [0.0, 0.0]
