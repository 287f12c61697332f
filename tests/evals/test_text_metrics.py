"""Metrics of generated and preferred text against independent implementations and by hand, ties and empty texts too."""

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxunlearn.evals import conflict, diversity, muse
from jaxunlearn.evals.faithfulness import faithfulness
from jaxunlearn.evals.knowundo import retention_success, unlearn_success
from jaxunlearn.evals.privacy import attack, membership_by_min_k
from jaxunlearn.evals.tug_of_war import tug_of_war, tug_of_war_kl


def lcs(a, b):
    """Longest common subsequence by the plain recurrence."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def f1_by_hand(generated, truth):
    a, b = generated.split(), truth.split()
    shared = lcs(a, b)
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def test_rouge_f1_equals_the_plain_recurrence():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdef"), rng.integers(0, 12))) for _ in range(80)]
    expected = [f1_by_hand(g, t) for g, t in zip(texts[:40], texts[40:], strict=True)]
    np.testing.assert_allclose(muse.rouge_l_f1(texts[:40], texts[40:]), expected, atol=1e-12)
    assert muse.rouge_l_f1(["", "a", "a"], ["", "", "a"]).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "cut"),
    [("", ""), ("a\nb", "a\nb"), ("a\n\nb", "a"), ("a\nQuestion: b", "a"), ("a Question: b\n\nc", "a "), ("\n\nb", "")],
)
def test_answers_end_at_a_blank_line_or_the_next_question(text, cut):
    assert muse.cut_answer(text) == cut


def test_both_forms_of_privleak_are_one_number_in_two_conventions():
    rng = np.random.default_rng(1)
    members, others = (rng.normal(shift, 1, 50) for shift in (1.0, 0.0))
    again = rng.normal(0.2, 1, 50)
    ours, retrained = attack(members, others, resamples=10).auc, attack(again, others, resamples=10).auc
    # MUSE's own AUC: forget 0, holdout 1, scored by the mean of the lowest log-probs.
    theirs = [roc_auc_score(np.r_[np.zeros(50), np.ones(50)], np.r_[x, others]) for x in (members, again)]
    expected = (theirs[0] - theirs[1]) / theirs[1] * 100
    assert muse.privleak_muse(*theirs) == pytest.approx(expected)
    assert muse.privleak_open_unlearning(ours, retrained) == pytest.approx(expected)
    assert np.isnan(muse.privleak_muse(0.5, 0.0))
    assert membership_by_min_k([np.array([-1.0])], k=muse.MIN_K).tolist() == [-1.0]


def test_distinct_equals_a_counter_over_slices():
    rng = np.random.default_rng(2)
    texts = [rng.choice(list("abc"), rng.integers(0, 15)).tolist() for _ in range(50)]
    for n in (1, 2, 4):
        slices = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in texts]
        expected = [len(c) / c.total() if c else 1.0 for c in slices]
        np.testing.assert_allclose(diversity.distinct_n(texts, n), expected)
        np.testing.assert_allclose(diversity.repetition(texts, n), 1 - np.array(expected))
    with pytest.raises(ValueError, match="n is 0"):
        diversity.ngrams("ab", 0)


def test_a_loop_repeats_and_language_does_not():
    loop, fresh = ["no"] * 100, [str(i) for i in range(100)]
    assert diversity.repetition([loop, fresh]).tolist() == [1 - 1 / 97, 0.0]


def test_preference_counts_ties_half_and_keeps_nan():
    assert conflict.wins(np.array([1.0, 1.0, 2.0]), np.array([2.0, 1.0, 1.0])).tolist() == [1.0, 0.5, 0.0]
    assert np.isnan(conflict.wins(np.array([np.nan]), np.array([1.0])))[0]
    assert conflict.first_false({"perturbed_answer": [" ", "b", "c"]}) == "b"
    assert conflict.first_false({"perturbed_answer": 3}) is None
    with pytest.raises(ValueError, match="'shouted'; choose one of formal, informal"):
        conflict.worded("x", "shouted")


def test_knowundo_counts_tokens_within_answers_and_answers_alike():
    hits = [np.array([True]), np.array([True, False, False, False])]
    assert unlearn_success(hits).tolist() == [0.0, 75.0]
    np.testing.assert_allclose(unlearn_success(hits) + retention_success(hits), 100.0)


def test_tug_of_war_is_a_product_and_kl_bounds_total_variation():
    assert tug_of_war([0.0, 0.0]) == 1.0
    assert tug_of_war([0.25, 1.0]) == 0.0
    rng = np.random.default_rng(3)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(6), 2)
        kl, tv = float(np.sum(p * np.log(p / q))), float(np.abs(p - q).sum() / 2)
        assert tv <= np.sqrt(1 - tug_of_war_kl([kl])) + 1e-12
    for bad in ([], [1.5], [-0.1]):
        with pytest.raises(ValueError, match="tug of war takes"):
            tug_of_war(bad)
    with pytest.raises(ValueError, match="tug of war takes"):
        tug_of_war_kl([-1.0])


def test_faithfulness_is_the_auc_between_two_pools_of_models():
    rng = np.random.default_rng(4)
    knows, never = rng.normal(1, 1, 30), rng.normal(0, 1, 20)
    labels = np.r_[np.ones(30), np.zeros(20)]
    found = faithfulness(knows, never)
    assert found.auc == pytest.approx(roc_auc_score(labels, np.r_[knows, never]))
    assert faithfulness(knows, never, knowing_is="lower").auc == pytest.approx(1 - found.auc)
