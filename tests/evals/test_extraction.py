"""Extraction by greedy decoding: the short way (from arg-max hits) against every prefix really continued."""

import numpy as np
import pytest

from jaxunlearn.evals.extraction import (
    continuations,
    erring,
    extraction_likelihood,
    k_extractable,
    overlap,
)

from .bigram import VOCAB, table


def greedy(params, last, count):
    """The bigram model's continuation after a token."""
    out = []
    for _ in range(count):
        last = int(np.argmax(params[last]))
        out.append(last)
    return out


def mostly_known(params, rng, length):
    """A text that the model would mostly write itself: greedy, with a surprise now and then."""
    text = [int(rng.integers(VOCAB))]
    while len(text) < length:
        text.append(int(rng.integers(VOCAB)) if rng.random() < 0.3 else greedy(params, text[-1], 1)[0])
    return text


def likelihood_by_definition(params, text, n):
    """EL_n as it is written down, with n-grams as strings."""
    T, total = len(text), 0.0
    for i in range(1, T):
        written, suffix = greedy(params, text[i - 1], T - i), text[i:]
        grams = lambda row: [",".join(map(str, row[j : j + n])) for j in range(len(row) - n + 1)]
        if grams(suffix):
            total += sum(gram in grams(suffix) for gram in grams(written)) / len(grams(suffix))
    return total / (T - n)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_putting_together_equals_continuing_every_prefix(n):
    params, rng = np.asarray(table()), np.random.default_rng(n)
    spared = 0
    for _ in range(30):
        text = mostly_known(params, rng, int(rng.integers(n + 1, 24)))
        T = len(text)
        hits = np.array([False] + [greedy(params, text[t - 1], 1)[0] == text[t] for t in range(1, T)])
        asked = erring(hits)
        written = {i: greedy(params, text[i - 1], T - i) for i in asked}
        continued = continuations(text, hits, written)
        assert continued == [greedy(params, text[i - 1], T - i) for i in range(1, T)]
        assert extraction_likelihood(text, continued, n) == pytest.approx(likelihood_by_definition(params, text, n))
        spared += T - 1 - len(asked)
    assert spared > 100


def test_by_hand():
    # prefixes of 1 and 2 of [1, 2, 3, 4], n = 2: (2,3),(3,4) come out of the first, nothing of (3,4) of the second.
    assert extraction_likelihood([1, 2, 3, 4], [[2, 3, 4], [4, 3], [4]], n=2) == 0.5
    assert overlap([5, 5, 5], [5, 5], 1) == 1.5  # multiplicity counts, so a longer continuation may pass 1
    assert overlap([], [1, 2], 1) == 0.0
    assert np.isnan(extraction_likelihood([7], [], n=1))


def test_a_text_known_by_heart_needs_no_generation_and_scores_one():
    text = list(range(30))
    hits = np.ones(30, bool)
    assert erring(hits) == []
    assert extraction_likelihood(text, continuations(text, hits, {}), 10) == pytest.approx(1.0)


def test_k_extractable_equals_generating_k_tokens():
    params, rng = np.asarray(table()), np.random.default_rng(5)
    texts = [mostly_known(params, rng, 9) for _ in range(60)] + [[1, 2, 3]]
    hits = [np.array([False] + [greedy(params, t[i - 1], 1)[0] == t[i] for i in range(1, len(t))]) for t in texts]
    expected = [float(greedy(params, t[3], 4) == t[4:8]) if len(t) >= 8 else np.nan for t in texts]
    found = k_extractable(hits, prefix=4, k=4)
    np.testing.assert_array_equal(found, expected)
    assert 0 < np.nanmean(found) < 1
