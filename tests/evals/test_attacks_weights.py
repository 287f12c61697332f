"""Attacks on the weights: rounding and relearning, against NumPy and torch, with the ratios by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn.evals.attacks.memorised import memorised
from jaxunlearn.evals.attacks.quantisation import quantisation, quantise, robustness
from jaxunlearn.evals.attacks.relearning import ratio, relearning
from jaxunlearn.sharding import make_mesh

from .attack_world import by_hand
from .bigram import MODEL, VOCAB, example, table

TEXTS = [example([1, 2, 3, 4], prompt=1), example([5, 6, 7], prompt=2), example([8, 9, 10, 1, 3], prompt=1)] * 3


def rounded_by_torch(w, bits, group=None):
    """Column by column, group by group, as the definition says."""
    out = torch.tensor(np.asarray(w, np.float32))
    for column in out.T:
        for start in range(0, len(column), group or len(column)):
            part = column[start : start + (group or len(column))]
            scale = part.abs().max() / (2 ** (bits - 1) - 1)
            if scale > 0:
                part.copy_((part / scale).round() * scale)
    return out.numpy()


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 8), (4, 5), (4, 64), (3, 3)])
def test_rounding_equals_the_definition(bits, group):
    w = np.random.default_rng(bits).normal(size=(16, 6)).astype(np.float32)
    w[:, 2] = 0.0
    found = np.asarray(quantise(jnp.asarray(w), bits=bits, group=group))
    np.testing.assert_allclose(found, rounded_by_torch(w, bits, group), rtol=1e-6, atol=1e-7)
    # No column has more levels than the bits give, and each keeps its largest entry.
    assert max(len(np.unique(column.round(6))) for column in found.T) <= (2**bits - 1) * -(-16 // (group or 16))
    np.testing.assert_allclose(np.abs(found).max(0), np.abs(w).max(0), rtol=1e-6)
    step = np.abs(w).max() / (2 ** (bits - 1) - 1)
    assert np.abs(found - w).max() <= step / 2 * (1 + 1e-5)


def test_rounding_twice_is_rounding_once_and_stacked_layers_are_rounded_one_by_one():
    w = jax.random.normal(jax.random.key(0), (3, 12, 5))
    once = quantise({"kernel": w}, bits=4, group=4)
    np.testing.assert_allclose(quantise(once, bits=4, group=4)["kernel"], once["kernel"], rtol=1e-6)
    for layer in range(3):
        np.testing.assert_array_equal(once["kernel"][layer], quantise(w[layer], bits=4, group=4))


def test_only_matrices_are_rounded_and_embeddings_by_choice():
    w = jax.random.normal(jax.random.key(1), (4, 6), jnp.bfloat16)
    params = {"q_proj": {"kernel": w, "bias": w}, "norm": {"scale": w}, "embedding": w, "v": w[0]}
    plain, every = quantise(params, bits=4), quantise(params, bits=4, embeddings=True)
    assert jax.tree.map(lambda a, b: bool(jnp.all(a == b)), plain, params) == {
        "q_proj": {"kernel": False, "bias": True},
        "norm": {"scale": True},
        "embedding": True,
        "v": True,
    }
    assert plain["q_proj"]["kernel"].dtype == jnp.bfloat16
    # The row of a token is the column of the tied head.
    np.testing.assert_array_equal(every["embedding"], quantise(w.T, bits=4).T)
    chosen = quantise(params, bits=4, where=lambda path, leaf: path == ("norm", "scale"))
    assert bool(jnp.any(chosen["norm"]["scale"] != w))
    assert bool(jnp.all(chosen["q_proj"]["kernel"] == w))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_rounding_is_the_same_on_eight_devices_and_keeps_the_layout(explicit):
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    alone = {"kernel": jax.random.normal(jax.random.key(3), (2, 16, 8)), "embedding": table(4)[:10, :8]}
    layouts = {"kernel": P(None, "fsdp", "tensor"), "embedding": P("tensor", "fsdp")}
    spread = {name: jax.device_put(x, NamedSharding(mesh, layouts[name])) for name, x in alone.items()}
    round_them = jax.jit(lambda p: quantise(p, bits=4, group=5, embeddings=True))
    found = round_them(spread)
    for name, whole in quantise(alone, bits=4, group=5, embeddings=True).items():
        np.testing.assert_allclose(found[name], whole, rtol=1e-6)
        assert found[name].sharding.is_equivalent_to(spread[name].sharding, whole.ndim)


def test_what_rounding_brought_back_is_the_ratio_of_the_means():
    params = table(0)
    found = quantisation(MODEL, params, TEXTS, bits=2, metric="probability")
    rounded = jnp.asarray(rounded_by_torch(params, 2))
    for values, weights in ((found.before, params), (found.after, rounded)):
        expected = [np.exp(by_hand(MODEL, weights, text).mean()) for text in TEXTS]
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert found.robustness == pytest.approx(min(found.before.mean() / found.after.mean(), 1.0))
    assert found.interval[0] <= found.robustness <= found.interval[1]
    np.testing.assert_array_equal(params, table(0))


def test_eight_bits_change_little_and_a_step_that_rounds_away_is_found():
    known = quantise(table(0), bits=4)
    assert quantisation(MODEL, known, TEXTS, bits=8).robustness > 0.95
    # Forgetting within less than half a level of the rounding, away from every text; the largest entries set the scale.
    largest = jnp.max(jnp.abs(known), axis=0)
    taught = jnp.zeros((VOCAB, VOCAB), bool)
    for text in TEXTS:
        taught = taught.at[text.tokens[:-1], text.tokens[1:]].set(True)
    hidden = jnp.where(taught & (jnp.abs(known) < largest), known - 0.45 * largest / 7, known)
    found = quantisation(MODEL, hidden, TEXTS, bits=4)
    np.testing.assert_allclose(found.after, memorised(MODEL, known, TEXTS), rtol=1e-5)
    assert found.robustness == pytest.approx(found.before.mean() / found.after.mean())
    assert found.robustness < 0.95


def test_ratios_by_hand():
    assert robustness(np.array([0.2, 0.8, 0.0, 0.0]), np.array([0.8, 0.2, 0.0, 0.5])).tolist() == [0.25, 1, 1, 0]
    gains = np.array([0.1, 0.4, -0.1, 0.0, 0.2]), np.array([0.4, 0.1, 0.4, 0.0, -0.3])
    assert ratio(*gains).tolist() == [0.25, 1.0, 0.0, 1.0, 1.0]


def adamw_by_torch(params, batches, rate):
    """The same fine-tuning of the table of bigrams by torch's optimiser."""
    weights = torch.nn.Parameter(torch.tensor(np.asarray(params)))
    optimizer = torch.optim.AdamW([weights], lr=rate, weight_decay=0.0, eps=1e-8)
    for texts in batches:
        log_p = torch.log_softmax(weights, -1)
        pairs = [(t.tokens[i - 1], t.tokens[i]) for t in texts for i in np.flatnonzero(t.loss_mask)]
        optimizer.zero_grad()
        (-sum(log_p[int(a), int(b)] for a, b in pairs) / len(pairs)).backward()
        optimizer.step()
    return weights.detach().numpy()


def test_relearning_equals_torch_step_for_step():
    unlearned, retrained = table(1), table(2)
    found = relearning(
        MODEL, unlearned, TEXTS, reference=(MODEL, retrained), share=1.0, epochs=2, learning_rate=0.05,
        batch_size=len(TEXTS), points=2,
    )  # fmt: skip
    assert found.steps.tolist() == [0, 1, 2]
    assert found.shown.tolist() == found.measured.tolist() == list(range(9))
    for start, curve in ((unlearned, found.unlearned), (retrained, found.retrained)):
        for steps, values in zip(found.steps, curve, strict=True):
            weights = jnp.asarray(adamw_by_torch(start, [TEXTS] * steps, 0.05))
            expected = [np.exp(by_hand(MODEL, weights, text).mean()) for text in TEXTS]
            np.testing.assert_allclose(values, expected, rtol=2e-4)
    gains = [(curve[-1] - curve[0]).mean() for curve in (found.retrained, found.unlearned)]
    assert found.robustness == pytest.approx(min(gains[0] / gains[1], 1.0))
    assert found.curve[0] == 1.0
    assert found.curve[-1] == found.robustness
    assert found.interval[0] <= found.robustness <= found.interval[1]


def test_a_share_is_shown_and_the_rest_is_measured():
    found = relearning(MODEL, table(1), TEXTS, share=1 / 3, batch_size=2, points=9)
    assert (len(found.shown), len(found.measured)) == (3, 6)
    assert not set(found.shown) & set(found.measured)
    assert found.unlearned.shape == (3, 6)  # steps 0, 1, 2
    assert (found.robustness, found.retrained, found.curve) == (None, None, None)
    again = relearning(MODEL, table(1), TEXTS, share=1 / 3, batch_size=2, points=9, score_batch=1)
    np.testing.assert_allclose(again.unlearned, found.unlearned, rtol=1e-6)
    other = relearning(MODEL, table(1), TEXTS, share=1 / 3, batch_size=2, seed=1)
    assert other.shown.tolist() != found.shown.tolist()


def test_a_model_that_only_hid_its_knowledge_relearns_faster_than_one_that_never_had_it():
    seen = table(3, scale=6.0)
    # Pushed down along one direction only: the knowledge is still there below it.
    texts = [example([i, int(jnp.argmax(seen[i]))]) for i in range(VOCAB)]
    hidden = 0.2 * seen
    found = relearning(MODEL, hidden, texts, reference=(MODEL, jnp.zeros_like(seen)), share=1.0, learning_rate=0.3)
    assert found.robustness < 0.9
    same = relearning(MODEL, hidden, texts, reference=(MODEL, hidden), share=1.0, learning_rate=0.3)
    assert same.robustness == 1.0


def test_half_precision_weights_move_like_others():
    # At 1e-3 an update is under half a unit in the last place of most bf16 entries of this size.
    common = {"share": 1.0, "epochs": 4, "learning_rate": 1e-3, "batch_size": 9, "points": 1}
    half = relearning(MODEL, table(1).astype(jnp.bfloat16), TEXTS, **common)
    full = relearning(MODEL, table(1).astype(jnp.bfloat16).astype(jnp.float32), TEXTS, **common)
    np.testing.assert_allclose(half.unlearned, full.unlearned, rtol=1e-5)
    assert np.all(half.unlearned[-1] > half.unlearned[0])


def test_relearning_is_the_same_on_eight_devices():
    mesh = make_mesh(data=4, fsdp=2)
    spread = jax.device_put(table(1), NamedSharding(mesh, P()))
    common = {"share": 1.0, "learning_rate": 0.05, "batch_size": 8, "points": 1, "score_batch": 8}
    found = relearning(MODEL, spread, TEXTS, mesh=mesh, **common)
    np.testing.assert_allclose(found.unlearned, relearning(MODEL, table(1), TEXTS, **common).unlearned, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"points": 0}, "points=0"),
        ({"forget": []}, "forget set is empty"),
        ({"metric": "rouge"}, "metric 'rouge'"),
        ({"params": jnp.full((VOCAB, VOCAB), jnp.nan)}, "not finite"),
    ],
)
def test_bad_doses_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        relearning(MODEL, **({"params": table(0), "forget": TEXTS} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits=1"),
        ({"bits": 16}, "bits=16"),
        ({"group": 0}, "group=0"),
        ({"where": lambda path, leaf: True}, "b has shape"),
    ],
)
def test_bad_roundings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantise({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, **arguments)
