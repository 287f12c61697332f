"""Membership scores by hand and against scikit-learn and scipy."""

import zlib

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from jaxunlearn.evals.privacy import (
    attack,
    auc_draws,
    membership_by_gradient_norm,
    membership_by_loss,
    membership_by_min_k,
    membership_by_min_k_plus_plus,
    membership_by_neighbourhood,
    membership_by_recall,
    membership_by_reference,
    membership_by_zlib,
)

ROWS = [np.array([-1.0, -5.0, -3.0, -2.0, -4.0]), np.array([-7.0])]


def test_loss_and_min_k_by_hand():
    assert membership_by_loss(ROWS).tolist() == [-3.0, -7.0]
    assert membership_by_min_k(ROWS, k=0.4).tolist() == [-4.5, -7.0]
    assert membership_by_min_k(ROWS, k=1.0).tolist() == membership_by_loss(ROWS).tolist()


def test_min_k_plus_plus_standardises_and_takes_a_certain_model_as_silent():
    means, stds = [np.array([-3.0, -3.0]), np.array([0.0])], [np.array([2.0, 1.0]), np.array([0.0])]
    scores = membership_by_min_k_plus_plus([np.array([-1.0, -5.0]), np.array([0.0])], means, stds, k=0.5)
    assert scores.tolist() == [-2.0, 0.0]


def test_min_k_plus_plus_keeps_nan():
    assert np.isnan(membership_by_min_k_plus_plus([np.array([np.nan])], [np.array([0.0])], [np.array([0.0])]))[0]


def test_zlib_divides_by_compressed_bytes():
    compressed = len(zlib.compress("héé".encode()))
    assert membership_by_zlib([np.array([-6.0])], ["héé"])[0] == pytest.approx(-6.0 / compressed)


def test_the_costlier_scores_by_hand():
    other = [row - 1.0 for row in ROWS]
    assert membership_by_gradient_norm(np.array([0.0, 3.0])).tolist() == [0.0, -3.0]
    assert membership_by_reference(ROWS, other).tolist() == [1.0, 1.0]
    assert membership_by_neighbourhood(ROWS, np.array([[4.0, 6.0], [7.0, 7.0]])).tolist() == [2.0, 0.0]
    assert membership_by_recall(ROWS, other).tolist() == [4 / 3, 8 / 7]
    assert membership_by_recall([np.zeros(2)], [np.full(2, -1.0)])[0] == pytest.approx(1e9)


@pytest.mark.parametrize("k", [0.0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        membership_by_min_k(ROWS, k=k)


def test_auc_agrees_with_two_independent_implementations_on_ties():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 8, 60).astype(float), rng.integers(0, 7, 45).astype(float)
    found = attack(members, others)
    u = mannwhitneyu(members, others).statistic / (60 * 45)
    labels = np.r_[np.ones(60), np.zeros(45)]
    assert found.auc == pytest.approx(u) == pytest.approx(roc_auc_score(labels, np.r_[members, others]))
    assert found.interval[0] < found.auc < found.interval[1]
    assert found.n == (60, 45)


def test_true_positive_rates_at_low_false_positive_rates_by_hand():
    # Of 200 non-members one scores 9 and one 8: 1% allows both, .1% allows neither.
    others = np.r_[np.zeros(198), 8.0, 9.0]
    members = np.array([10.0, 8.5, 7.0, 0.0])
    found = attack(members, others)
    assert found.tpr_at_1pct == 0.75
    assert found.tpr_at_01pct == 0.25


def test_sign_convention_members_score_higher():
    learned, unseen = [np.array([-0.1])] * 3, [np.array([-4.0])] * 3
    assert attack(membership_by_loss(learned), membership_by_loss(unseen)).auc == 1.0
    assert attack(membership_by_loss(unseen), membership_by_loss(learned)).auc == 0.0


def test_bootstrap_is_seeded_and_degenerate_where_nothing_varies():
    members, others = np.arange(10.0), np.arange(10.0) - 3
    assert attack(members, others, seed=3) == attack(members, others, seed=3)
    assert attack(members, others, seed=3).interval != attack(members, others, seed=4).interval
    assert attack(members + 100, others).interval == (1.0, 1.0)


def test_resamples_of_whole_groups_equal_ranking_each_of_them_again():
    rng = np.random.default_rng(4)
    inside, outside = rng.integers(0, 9, 12).astype(float), rng.integers(0, 8, 8).astype(float)
    groups = [[i // 3 for i in range(12)], [i // 2 for i in range(8)]]
    auc, draws = auc_draws(inside, outside, 50, np.random.default_rng(5), groups=groups)
    again = np.random.default_rng(5)
    drawn = [again.multinomial(4, np.full(4, 1 / 4), 50) for _ in groups]
    for number, found in enumerate(draws):
        x, y = (np.repeat(v, times[number][g]) for v, times, g in zip((inside, outside), drawn, groups, strict=True))
        assert found == pytest.approx(mannwhitneyu(x, y).statistic / (x.size * y.size))
    assert auc == pytest.approx(mannwhitneyu(inside, outside).statistic / 96)
    _, alone = auc_draws(inside, outside, 500, np.random.default_rng(6))
    _, whole = auc_draws(
        np.repeat(inside[::3], 3), outside, 500, np.random.default_rng(6), groups=[groups[0], range(8)]
    )
    assert whole.std() > alone.std()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least one text among the non-members"):
        attack(np.ones(2), np.zeros(0))
    with pytest.raises(ValueError, match="1 of 2 scores of the members are not finite"):
        attack(np.array([1.0, np.nan]), np.zeros(2))
