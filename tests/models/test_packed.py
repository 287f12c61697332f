"""A record among others in its row is what it is alone: logits, losses, gradients and curvature products."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import largest_difference, toy

from jaxunlearn import losses, models, private, sharding, tree
from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
from jaxunlearn.data import Encoded, collate, pack
from jaxunlearn.methods.features import head_features
from jaxunlearn.models.attention import causal_attention
from jaxunlearn.objectives.preference import NPO
from jaxunlearn.packed import PackedTokens
from jaxunlearn.types import Model

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.3, 2.0],
    "long_factor": [2.0, 5.0, 9.0],
    "original_max_position_embeddings": 10,  # more than a record has, less than a row
}
LEARNED = "learned positions, a window in one layer, soft caps"
CASES = {
    "rotary, all tokens seen": {},
    LEARNED: {
        "model_type": "gpt_neo",
        "position_offset": 2,
        "rope_parameters": None,
        "sliding_windows": (3, None),
        "attn_logit_softcapping": 2.0,
    },
    "frequencies that change with the length": {"rope_parameters": LONGROPE},
}


def records(*lengths):
    random = np.random.default_rng(0)
    return [
        Encoded(
            random.integers(3, 61, n).astype(np.int32), np.r_[0.0, random.integers(0, 2, n - 2), 1.0], None, "", None
        )
        for n in lengths
    ]


RECORDS = records(9, 5, 8, 2, 7, 6, 4)


def batches():
    """The same records one a row, and packed."""
    return tuple(jax.tree.map(jnp.asarray, collate(rows)) for rows in (RECORDS, pack(RECORDS, 24)))


@pytest.mark.parametrize(("case", "attention"), [("rotary, all tokens seen", "xla"), (LEARNED, "blockwise")])
def test_packed_losses_gradients_and_products_are_those_of_single_records(case, attention):
    model, params = toy(**CASES[case], attention=attention, remat="none")
    v = tree.normal_like(jax.random.key(1), params)

    @jax.jit
    def all_orders(params, batch):
        def mean(p):
            total, count = losses.nll(model, p, batch)
            return total / count

        gradient, product = jax.jvp(jax.grad(mean), (params,), (v,))
        return mean(params), gradient, product

    alone, packed = batches()
    assert packed.tokens.shape[0] == 2 < alone.tokens.shape[0]
    expected, found = all_orders(params, alone), all_orders(params, packed)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest_difference(expected, found) < 1e-5 * largest
    assert min(float(tree.norm(one)) for one in expected[1:]) > 0.1


@pytest.mark.parametrize("case", CASES)
def test_packed_logits_are_those_of_single_records(case):
    model, params = toy(**CASES[case])
    (alone, packed), rows = batches(), pack(RECORDS, 24)
    theirs = jax.jit(model.logits)(params, alone.tokens)
    ours = jax.jit(model.logits)(params, PackedTokens(packed.tokens, packed.segments))
    for row, one in enumerate(rows):
        ends = np.cumsum([len(RECORDS[i].tokens) for i in one.records])
        for i, end in zip(one.records, ends, strict=True):
            n = len(RECORDS[i].tokens)
            np.testing.assert_allclose(ours[row, end - n : end], theirs[i, :n], atol=1e-5)


def test_attention_by_segments_is_that_of_each_alone_to_second_order():
    T, window = 13, 3
    segments = np.repeat([[1, 2, 0], [1, 1, 2]], [3, 6, T - 9], axis=1)

    def derivatives(x, implementation):
        def together(x):
            options = {"window": window, "segments": jnp.asarray(segments)}
            return causal_attention(*x, implementation, 4, **options)

        def apart(x):
            parts = []
            for row, numbers in enumerate(segments):
                edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), T]
                pieces = [
                    causal_attention(*(y[row : row + 1, a:b] for y in x), "xla", window=window)
                    for a, b in pairwise(edges)
                ]
                parts.append(jnp.concatenate(pieces, axis=1))
            return jnp.concatenate(parts)

        f = apart if implementation is None else together
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))
        return f(x), *jax.jvp(gradient, (x,), (jax.tree.map(jnp.cos, x),))

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(T), 3)
        x = tuple(2 * jax.random.normal(key, (2, T, h, 8), jnp.float64) for key, h in zip(keys, (4, 2, 2), strict=True))
        expected, *found = (
            jax.jit(lambda x, form=form: derivatives(x, form))(x) for form in (None, "xla", "blockwise")
        )
        for one in found:
            assert largest_difference(expected, one) < 1e-11


def test_tiles_that_hold_no_common_record_are_skipped():
    """With NaN for all keys of the first record, the second comes out right only if they are never touched."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 8, 2, 4)) for i in range(3))
    k = k.at[:, :4].set(jnp.nan)
    segments = jnp.asarray([[1] * 4 + [2] * 4])
    out = causal_attention(q, k, v, "blockwise", 4, segments=segments)
    np.testing.assert_allclose(out[:, 4:], causal_attention(q[:, 4:], k[:, 4:], v[:, 4:], "xla"), atol=1e-5)


@pytest.mark.parametrize("explicit", [False, True])
def test_packed_rows_on_eight_devices_are_those_of_one(explicit):
    model, params = toy(attention="blockwise")
    rows = pack(RECORDS, 9)
    batch = collate((rows * 2)[:8])
    value = jax.jit(losses.nll, static_argnums=0)
    expected = value(model, params, jax.tree.map(jnp.asarray, batch))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    model, params = toy(mesh=mesh, attention="blockwise")
    np.testing.assert_allclose(value(model, params, sharding.shard_batch(batch, mesh)), expected, rtol=1e-5)


def test_what_belongs_to_single_records_refuses_packed_rows():
    model, params = toy()
    _, packed = batches()
    asks = (
        lambda: losses.example_nll(model, params, packed),
        lambda: private.clipped_sum(private.record_nll(model), params, packed, clip_norm=1.0),
        lambda: NPO().total(model, params, {"data": packed, "nll": jnp.zeros(2)}),
        lambda: kronecker_factors(model, params, packed, Settings(fisher="empirical")),
        lambda: head_features(model, params, packed),
    )
    for ask in asks:
        with pytest.raises(ValueError, match="is that of one record, but the rows of a PackedBatch hold several"):
            ask()
    for other in (Model(logits=model.logits), models.offset(model, model, model)):
        with pytest.raises(ValueError, match=r"takes no segments .* leave out --pack"):
            losses.nll(other, (params,) * 3, packed)
