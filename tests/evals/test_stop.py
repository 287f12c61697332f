"""Stop rules: read, resolved, judged; the best checkpoint by hand; and an interval against scipy's bootstrap."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from jaxunlearn.evals.bootstrap import bootstrap, mean, weighted_mean
from jaxunlearn.evals.perplexity import example_perplexity, perplexity, perplexity_interval
from jaxunlearn.evals.stop import NAMED, best, holds, miss, of_first, parse_rule, resolve


def result(**values):
    return {name: {"agg_value": value} for name, value in values.items()}


def test_published_rules_are_what_their_papers_say():
    jang = resolve(parse_rule("jang"), {"unseen": result(forget_el_10=0.1, forget_exact_memorisation=0.3)})
    assert [str(c) for c in jang] == ["forget_el_10 <= 0.1", "forget_exact_memorisation <= 0.3"]
    assert holds(jang, result(forget_el_10=0.1, forget_exact_memorisation=0.3))
    assert not holds(jang, result(forget_el_10=0.0, forget_exact_memorisation=0.31))
    muse = resolve(parse_rule(" muse "), {"retrained": result(muse_knowmem_forget=0.32)})
    assert holds(muse, result(muse_knowmem_forget=0.32))
    assert not holds(muse, result(muse_knowmem_forget=0.33))
    assert set(NAMED) == {"jang", "muse"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no condition; write METRIC<=BOUND"),
        ("forget_nll", "'forget_nll' is no condition"),
        ("forget_nll<3", "'forget_nll<3' is no condition"),
        ("forget_nl>=3", "no metric is called 'forget_nl'; did you mean forget_nll"),
        ("forget_nll>=high", "the bound 'high' is neither a number nor retrained, before, unseen"),
        ("forget_nll>=nan", "the bound 'nan' is neither a number"),
        ("forget_nll>=3,", "'' is no condition"),
    ],
)
def test_rules_that_cannot_be_read_say_why(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(text)


def test_bounds_that_were_not_measured_are_named():
    rule = parse_rule("retain_nll<=before")
    with pytest.raises(ValueError, match="nothing was measured that is called 'before'"):
        resolve(rule, {})
    missing = {"before": {"retain_nll": {"agg_value": None, "skipped": "no retain set given"}}}
    with pytest.raises(ValueError, match="before has no value of retain_nll \\(no retain set given\\)"):
        resolve(rule, missing)


def test_a_bound_is_taken_from_as_many_records_as_the_looks_see():
    values, tokens = {"0": 1.0, "1": 4.0, "2": 7.0}, {"0": 3, "1": 1, "2": 2}
    found = {
        "muse_knowmem_forget": {"agg_value": 4.0, "value_by_index": values},
        "forget_nll": {"agg_value": 21 / 6, "value_by_index": values, "tokens_by_index": tokens},
        "forget_perplexity": {"agg_value": 9.0, "value_by_index": values},
        "model_utility": {"agg_value": 0.5, "value_by_index": {}},
    }
    cut = of_first(found, 2)
    assert [cut[name]["agg_value"] for name in found] == [2.5, 7 / 4, None, 0.5]
    assert of_first(found, 3) == found
    with pytest.raises(ValueError, match="on 3 records, and looks see 2: give --evaluate-limit 3"):
        resolve(parse_rule("forget_perplexity>=retrained"), {"retrained": cut})


def test_a_miss_is_relative_to_the_bound_and_adds_up():
    rule = parse_rule("forget_nll>=4, retain_nll<=2, forget_kl<=0")
    assert miss(rule, result(forget_nll=3, retain_nll=3, forget_kl=0)) == pytest.approx(0.25 + 0.5)
    assert miss(rule, result(forget_nll=4, retain_nll=2, forget_kl=1e-6)) == pytest.approx(1.0)
    assert miss(rule, result(forget_nll=4, retain_nll=2)) == math.inf
    assert miss(rule, {"forget_nll": {"agg_value": None}}) == math.inf


def test_the_best_checkpoint_by_hand():
    looks = [result(forget_nll=f, retain_nll=r) for f, r in [(1, 1.0), (3, 1.1), (4, 1.5), (6, 1.5), (9, 5.0)]]
    goal, limit = parse_rule("forget_nll>=4"), parse_rule("retain_nll<=2")
    assert best([goal], [limit], looks) == 2  # the first of those that reach the goal
    assert best([goal], [limit], looks[:2]) == 1  # nearest, where none does
    assert best([], [limit], looks) == 3  # the last that keeps the limit
    assert best([parse_rule("forget_nll>=9")], [limit], looks) == 3
    assert best([goal, parse_rule("forget_nll>=2.9")], [limit], looks) == 1  # alternatives
    assert best([goal], [parse_rule("retain_nll<=0.5")], looks) is None
    assert best([goal], [], [{"forget_nll": {"agg_value": None}}]) == 0


def test_intervals_agree_with_another_bootstrap():
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 1.0, 80)
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    ours = bootstrap(mean, values, resamples=4000, seed=2)
    spread = values.std() / np.sqrt(80)
    np.testing.assert_allclose(ours, theirs.confidence_interval, atol=0.15 * spread)
    assert bootstrap(mean, values, seed=3) == bootstrap(mean, values, seed=3) != bootstrap(mean, values, seed=4)


def test_weights_and_chunks_change_nothing_they_should_not():
    rng = np.random.default_rng(1)
    values = rng.normal(size=30)
    ones = np.stack([values, np.ones(30)], axis=1)
    assert bootstrap(weighted_mean, ones, seed=5) == pytest.approx(bootstrap(mean, values, seed=5))
    repeated = np.repeat(values, 3)
    weighted = np.stack([values, np.full(30, 3.0)], axis=1)
    assert weighted_mean(weighted[None]) == pytest.approx(mean(repeated[None]))
    # Draws are made in chunks so that memory stays bounded; 5000 resamples of 3000 values take several.
    many = rng.normal(size=3000)
    low, high = bootstrap(mean, many, resamples=5000)
    assert high - low == pytest.approx(2 * 1.96 * many.std() / math.sqrt(3000), rel=0.1)
    assert all(map(math.isnan, bootstrap(mean, np.zeros(0))))
    assert all(map(math.isnan, bootstrap(mean, values, resamples=0)))


def test_perplexity_is_torchs_cross_entropy():
    import torch

    rng = np.random.default_rng(2)
    logits = [rng.normal(size=(n, 7)) for n in (1, 4, 9)]
    targets = [rng.integers(0, 7, len(rows)) for rows in logits]
    loss = lambda a, b: torch.nn.functional.cross_entropy(torch.tensor(a), torch.tensor(b)).item()
    nll = np.array([loss(a, b) for a, b in zip(logits, targets, strict=True)])
    whole = math.exp(loss(np.concatenate(logits), np.concatenate(targets)))
    assert perplexity(nll, np.array([1, 4, 9])) == pytest.approx(whole)
    np.testing.assert_allclose(example_perplexity(nll), np.exp(nll))
    low, high = perplexity_interval(nll, np.array([1, 4, 9]))
    assert low < whole < high
    assert perplexity(np.array([1e4])) == math.inf
