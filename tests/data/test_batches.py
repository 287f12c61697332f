"""Batches keep every loss token exactly once an epoch, in one shape, in an order that resumes anywhere."""

from itertools import combinations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.data import DataError, batches, collate, encode, from_rows, pack, pair, shapes_of, steps_per_epoch
from jaxunlearn.data.encode import Encoded
from jaxunlearn.data.records import Record
from jaxunlearn.types import Model


@st.composite
def encoded_sets(draw, least=1):
    masks = draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=least, max_size=9))
    out = []
    for number, mask in enumerate(masks):
        mask = np.array([False, *mask, True], np.float32)
        tokens = np.arange(1, len(mask) + 1, dtype=np.int32) + 100 * number
        out.append(Encoded(tokens, mask, np.zeros((len(mask), 2), np.int32), "", None))
    return out


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def same_step(a, b):
    return equal(a[:6], b[:6]) and equal(a.batch, b.batch)


@settings(max_examples=60, deadline=None)
@given(encoded_sets())
def test_positions_are_the_places_of_the_loss_mask(encoded):
    batch = collate(encoded)
    assert batch.tokens.shape == (len(encoded), shapes_of(encoded)[0])
    assert batch.positions.shape == (len(encoded), shapes_of(encoded)[1])
    assert batch.tokens.shape[1] % 16 == batch.positions.shape[1] % 8 == 0
    for one, tokens, mask, positions in zip(encoded, *batch, strict=True):
        np.testing.assert_array_equal(tokens[: len(one.tokens)], one.tokens)
        np.testing.assert_array_equal(positions[positions > 0], np.flatnonzero(mask))
        assert mask.sum() == one.loss_mask.sum()


@settings(max_examples=60, deadline=None)
@given(encoded_sets(), st.integers(1, 12), st.integers(0, 5), st.booleans())
def test_an_epoch_holds_every_loss_token_exactly_once(encoded, size, seed, shuffle):
    steps = list(batches(encoded, size, seed=seed, shuffle=shuffle))
    assert len(steps) == steps_per_epoch(len(encoded), size)
    seen = np.concatenate([step.batch.tokens[step.batch.loss_mask > 0] for step in steps])
    wanted = np.concatenate([one.tokens[one.loss_mask > 0] for one in encoded])
    np.testing.assert_array_equal(np.sort(seen), np.sort(wanted))
    assert len({step.batch.tokens.shape for step in steps}) == 1
    assert sorted(np.concatenate([step.rows[: step.real] for step in steps])) == list(range(len(encoded)))
    if not shuffle:
        np.testing.assert_array_equal(seen, wanted)


@settings(max_examples=60, deadline=None)
@given(encoded_sets(), st.integers(22, 60), st.integers(1, 4))
def test_packed_rows_hold_every_record_once_and_whole(encoded, length, size):
    rows = pack(encoded, length)
    assert sorted(i for row in rows for i in row.records) == list(range(len(encoded)))
    lengths = [len(row.tokens) for row in rows]
    assert max(lengths) <= length
    assert all(a + b > length for a, b in combinations(lengths, 2))  # no two rows would fit into one
    for row in rows:
        assert row.segments.tolist() == sorted(row.segments)
        for number, i in enumerate(row.records, start=1):
            mine = row.segments == number
            np.testing.assert_array_equal(row.tokens[mine], encoded[i].tokens)
            np.testing.assert_array_equal(row.loss_mask[mine], encoded[i].loss_mask)
    for step in batches(rows, size):
        assert ((step.batch.segments > 0) >= (step.batch.loss_mask > 0)).all()
        assert step.batch.segments.shape == step.batch.tokens.shape == (size, shapes_of(rows)[0])
    with pytest.raises(DataError, match="do not fit in a packed row of 2; make rows longer"):
        pack([encoded[0]._replace(record=Record("text", "", ""))], 2)


@settings(max_examples=30, deadline=None)
@given(encoded_sets(least=2), st.integers(1, 4), st.data())
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(encoded, size, data):
    whole = list(pair(encoded, encoded[1:], size, seed=7, epochs=3))
    cut = data.draw(st.integers(0, len(whole) - 1))
    rest = list(pair(encoded, encoded[1:], size, seed=7, epochs=3, start=whole[cut].next))
    assert len(rest) == len(whole) - cut - 1
    assert all(same_step(a, b) for a, b in zip(rest, whole[cut + 1 :], strict=True))


@settings(max_examples=30, deadline=None)
@given(encoded_sets(), st.integers(1, 8), st.data())
def test_some_rows_of_a_batch_are_those_of_the_whole(encoded, size, data):
    """Shapes, fillers and padding of a part do not depend on the part."""
    for step in batches(encoded, size, seed=3):
        places = np.sort(data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)))
        assert equal(step.make(places), jax.tree.map(lambda x, places=places: x[places], step.batch))


def test_seeds_and_epochs_change_the_order(made, small_tokenizer):
    encoded = encode(from_rows(made.retain), small_tokenizer, max_length=64)
    orders = [[tuple(step.rows) for step in batches(encoded, 4, seed=seed, epochs=2)] for seed in (0, 1)]
    half = len(orders[0]) // 2
    assert orders[0] != orders[1]
    assert orders[0][:half] != orders[0][half:]


def test_a_pair_is_a_pass_over_the_forget_set_with_distinct_random_retain_rows(made, small_tokenizer):
    forget, retain = (encode(from_rows(part), small_tokenizer, max_length=64) for part in (made.forget, made.retain))
    steps = list(pair(forget, retain, 3, retain_size=5, epochs=2))
    assert len(steps) == 2 * steps_per_epoch(len(forget), 3)
    for step in steps:
        assert len(set(step.retain_rows)) == 5
        assert equal(step.batch.retain, collate([retain[row] for row in step.retain_rows], length=32, places=16))
        assert step.batch.retain.tokens.shape == (5, 32)
    assert next(pair(forget, [], 3)).batch.retain is None


def test_a_batch_is_what_the_model_floor_expects(made, small_tokenizer):
    """Predictions through `positions` and through the whole mask have the same weights and targets."""
    step = next(batches(encode(from_rows(made.forget), small_tokenizer, max_length=64), 4))
    model = Model(logits=lambda params, tokens: params[tokens])
    table = np.eye(len(small_tokenizer), dtype=np.float32)
    narrow = step.batch.predict(model, table)
    wide = step.batch._replace(positions=None).predict(model, table)
    np.testing.assert_array_equal(narrow.targets[narrow.weights > 0], wide.targets[wide.weights > 0])


def test_what_cannot_be_batched_is_told(made, small_tokenizer):
    encoded = encode(from_rows(made.forget, name="f.jsonl"), small_tokenizer, max_length=64)
    with pytest.raises(DataError, match=r"f.jsonl, record 1: 2\d tokens, .* do not fit in length=16.*shapes_of"):
        collate(encoded, length=16)
    with pytest.raises(DataError, match="batch size 0 is below 1"):
        next(batches(encoded, 0))
    with pytest.raises(DataError, match="no records to make batches of"):
        next(batches([], 4))
