"""Every record is drawn by itself with the same probability, and padding carries no loss."""

import numpy as np
import pytest

from jaxunlearn.data import DataError, Encoded, poisson_batches

RECORDS = [
    Encoded(np.arange(1, 4 + i % 3), np.r_[0.0, np.ones(2 + i % 3)], np.zeros((3, 2)), "", None) for i in range(20)
]


def samples(rate, capacity, steps, seed=0, **rest):
    return list(
        poisson_batches(RECORDS, rate, capacity=capacity, steps=steps, random=np.random.default_rng(seed), **rest)
    )


def test_records_are_drawn_independently_at_the_rate():
    steps, q = 4000, 0.3
    drawn = np.zeros((steps, 20))
    for row, one in zip(drawn, samples(q, 20, steps), strict=True):
        row[one.drawn] += 1
    assert set(np.unique(drawn)) == {0, 1}
    spread = np.sqrt(q * (1 - q) / steps)
    np.testing.assert_allclose(drawn.mean(0), q, atol=5 * spread)
    sizes = drawn.sum(1)
    assert sizes.var() == pytest.approx(20 * q * (1 - q), rel=5 * np.sqrt(2 / steps))
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 5.5 / np.sqrt(steps)


def test_truncation_keeps_a_uniformly_random_subset():
    steps = 2000
    taken = [one.drawn for one in samples(1.0, 5, steps)]
    assert all(len(set(rows)) == 5 for rows in taken)
    counts = np.bincount(np.concatenate(taken), minlength=20)
    np.testing.assert_allclose(counts / steps, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / steps))


def test_rows_hold_the_drawn_records_and_nothing_else():
    seen = set()
    for one in samples(0.1, 20, 50, rows=24):
        seen.add(len(one.drawn))
        assert {leaf.shape[0] for leaf in one.batch} == {24}
        for row, record in enumerate(one.drawn):
            tokens = RECORDS[record].tokens
            np.testing.assert_array_equal(one.batch.tokens[row, : len(tokens)], tokens)
            assert one.batch.loss_mask[row].sum() == RECORDS[record].loss_mask.sum()
        assert all(not leaf[len(one.drawn) :].any() for leaf in one.batch)
    assert 0 in seen  # an empty sample is a batch too: its noise is released like any other
    assert len(seen) > 3


@pytest.mark.parametrize(("rate", "capacity", "rows"), [(0.0, 5, 5), (1.5, 5, 5), (0.5, 0, 5), (0.5, 6, 5)])
def test_impossible_samples_are_named(rate, capacity, rows):
    with pytest.raises(DataError, match=f"rate of {rate}, at most {capacity} records in {rows} rows"):
        samples(rate, capacity, 1, rows=rows)
    with pytest.raises(DataError, match="no records"):
        next(poisson_batches([], 0.5, capacity=1, steps=1, random=np.random.default_rng(0)))
