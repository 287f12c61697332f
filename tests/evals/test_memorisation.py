"""Hits counted by hand, and a slow definition of extraction strength against the fast one."""

import numpy as np
import pytest

from jaxunlearn.evals.memorisation import exact_memorisation, extraction_strength


@pytest.mark.parametrize(
    ("hits", "exact", "strength"),
    [
        ("1111", 1.0, 1.0),
        ("0000", 0.0, 0.0),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),
        ("1110", 0.75, 0.0),
        ("0111", 0.75, 0.75),
        ("1011", 0.75, 0.5),
        ("1001", 0.5, 0.25),
    ],
)
def test_by_hand(hits, exact, strength):
    row = [np.array([c == "1" for c in hits])]
    assert exact_memorisation(row)[0] == exact
    assert extraction_strength(row)[0] == strength


def test_fast_form_equals_the_definition():
    rng = np.random.default_rng(0)
    rows = [rng.random(rng.integers(1, 12)) < 0.8 for _ in range(200)]
    slow = [1 - min(k for k in range(len(row) + 1) if row[k:].all()) / len(row) for row in rows]
    np.testing.assert_allclose(extraction_strength(rows), slow)
    assert np.all(extraction_strength(rows) <= exact_memorisation(rows) + 1e-12)
