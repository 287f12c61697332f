"""Every term against its formula written out in NumPy, float64, on a bigram model whose logits are its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_cases import (
    IN_CHUNKS,
    MODEL,
    TERMS,
    V,
    World,
    adversarial,
    lengths,
    logp,
    per_token,
    rows,
    sequence,
    stored,
)

import jaxunlearn as ju
from jaxunlearn import losses, methods, objectives, tree
from jaxunlearn.objectives import Objective, SharpnessAware, reference
from jaxunlearn.types import TopK


@pytest.fixture(scope="module")
def world():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        old, now = (2.0 * rng.normal(size=(V, V)) for _ in range(2))
        forget, retain, alternative = rows(1, [2, 4, 0, 3]), rows(2, [3, 0, 6, 1, 2, 2]), rows(3, [4, 1, 0, 2])
        refusal = rows(4, [1, 2, 0, 2, 3, 1])
        batch = ju.UnlearnBatch(forget, retain, alternative, stored(old, forget, retain, alternative, V), None, refusal)
        return World(batch, old, now)


def evaluated(world, microbatch=None, model=MODEL):
    """Value and gradient of every term, compiled once."""
    with jax.enable_x64(True):
        every = {name: Objective(((1.0, term),), microbatch) for name, (term, _) in TERMS.items()}
        call = jax.jit(lambda t, b: {name: o.value_and_grad(model, t, b) for name, o in every.items()})
        return jax.device_get(call(jnp.asarray(world.now), world.batch))


@pytest.fixture(scope="module")
def found(world):
    return evaluated(world)


@pytest.mark.parametrize("name", TERMS)
def test_losses_equal_their_formulas(name, found, world):
    """Each batch has rows without loss, which the formulas do not see."""
    expected = TERMS[name][1](world.now, only_pairs(world, name), world.now)
    assert float(found[name][0]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_equal_finite_differences_of_the_formulas(name, found, world):
    """With targets and weights that are constants held at the current table: nothing flows through them."""
    rng = np.random.default_rng(5)
    for _ in range(3):
        v = rng.normal(size=(V, V))
        f = lambda h, v=v: TERMS[name][1](world.now + h * v, only_pairs(world, name), world.now)
        slope = (f(1e-5) - f(-1e-5)) / 2e-5
        assert float((found[name][1] * v).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def only_pairs(world, name):
    """The world for the formula of a term over pairs of rows: those where both have loss."""
    if name != "answer_preservation":
        return world
    keep = np.asarray(world.batch.retain.loss_mask).any(1) & np.asarray(world.batch.retain_alternative.loss_mask).any(1)
    cut = lambda batch: jax.tree.map(lambda x: x[keep], batch)
    pairs = world.batch._replace(retain=cut(world.batch.retain), retain_alternative=cut(world.batch.retain_alternative))
    assert keep.sum() == 4  # one row has no answer, another no refusal
    return world._replace(batch=pairs)


@pytest.mark.parametrize("way", [{"microbatch": 2}, {"model": IN_CHUNKS}], ids=["microbatches", "chunks of the head"])
def test_how_the_sums_are_taken_changes_nothing(way, found, world):
    """Places are padded to whole chunks, and what fills them up adds nothing."""
    for name, (value, grad) in evaluated(world, **way).items():
        np.testing.assert_allclose(value, found[name][0], rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(grad, found[name][1], atol=1e-12, err_msg=name)


def test_nothing_flows_through_the_target_of_ce_u(found, world):
    """Its gradient in closed form is `p - q` at every place, q the distribution without the true token."""
    expected, count = np.zeros((V, V)), 0
    for tokens, mask in zip(*map(np.asarray, world.batch.forget[:2]), strict=True):
        for t in np.flatnonzero(mask):
            p = np.exp(logp(world.now[tokens[t - 1]]))
            q = np.where(np.arange(V) == tokens[t], 0, p)
            expected[tokens[t - 1]] += p - q / q.sum()
            count += 1
    np.testing.assert_allclose(found["ce_u"][1], expected / count, atol=1e-12)


def gradient(term, world, batch=None):
    with jax.enable_x64(True):
        objective = Objective(((1.0, term),))
        call = jax.jit(lambda table, b: objective.value_and_grad(MODEL, table, b)[1])
        return np.asarray(call(jnp.asarray(world.now), batch or world.batch))


def test_preference_losses_tend_to_ascent_as_beta_vanishes(world):
    """NPO to ascent on sequences, SimNPO on means of sequences, DPO to descent on the alternative besides."""

    def limits(table):
        forget, n = losses.example_nll(MODEL, table, world.batch.forget)
        other, _ = losses.example_nll(MODEL, table, world.batch.alternative)
        return -jnp.sum(forget) / 3, -jnp.sum(forget / jnp.maximum(n, 1)) / 3, jnp.sum(other - forget) / 3

    with jax.enable_x64(True):
        expecteds = jax.jit(jax.jacrev(limits))(jnp.asarray(world.now))
    terms = objectives.NPO(1e-5), objectives.SimNPO(1e-5, delta=3.0), objectives.DPO(1e-5)
    for term, expected in zip(terms, expecteds, strict=True):
        np.testing.assert_allclose(gradient(term, world), expected, atol=1e-3 * np.abs(expected).max())


def test_a_margin_shifts_the_logistic_of_simnpo(world):
    """The gradient of one example is that of its NLL by length, times `-2 s(-b (NLL / n - delta))`."""
    with jax.enable_x64(True):
        one = ju.UnlearnBatch(jax.tree.map(lambda x: x[1:2], world.batch.forget))
        ascent = gradient(objectives.NLL("forget"), world, one)
        length = sequence(world.now, one.forget) / lengths(world.now, one.forget)
        for delta in (0.0, 1.0, 4.0):
            expected = -2 / (1 + np.exp(4.5 * (length - delta))) * ascent
            np.testing.assert_allclose(gradient(objectives.SimNPO(4.5, delta), world, one), expected, rtol=1e-9)


def test_satimp_without_importance_is_weighted_ascent():
    same = {"learning_rate": 1e-3, "forget_weight": 1.0}
    assert methods.satimp(beta1=2.0, beta2=0.0, **same).objective == methods.wga(beta=2.0, **same).objective


def test_a_stored_top_always_holds_the_true_class(world):
    with jax.enable_x64(True):
        for k in (1, 2, 4):
            top = reference.top_with_target(MODEL, world.old, world.batch.forget, k)
            predictions = world.batch.forget.predict(MODEL, jnp.asarray(world.old))
            assert top.ids.shape[-1] == max(k, 2)
            assert bool(jnp.all(jnp.any(top.ids == predictions.targets[..., None], -1)))
            full = jax.nn.log_softmax(predictions.logits)
            np.testing.assert_allclose(top.log_probs, jnp.take_along_axis(full, top.ids, -1), atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jeffreys"])
def test_divergences_from_few_stored_classes_lump_the_others(world, divergence):
    """Two classes of q are stored, the rest is one bucket; where q leaves the bucket nothing, it counts as 1e-7."""
    logits, weights = np.random.default_rng(0).normal(size=(3, 5)), np.array([1.0, 0.5, 1.0])
    ids, q = np.array([[1, 4], [0, 2], [3, 1]]), np.array([[0.5, 0.2], [0.6, 0.3], [0.75, 0.25]])
    expected = 0.0
    for weight, z, kept, stored_q in zip(weights, logits, ids, q, strict=True):
        p = np.exp(logp(z))
        p = np.array([*p[kept], np.delete(p, kept).sum()])
        full = np.array([*stored_q, max(1 - stored_q.sum(), 1e-30)])
        there, back = (full * np.log(full / p)).sum(), (p * np.log(p / np.maximum(full, 1e-7))).sum()
        expected += weight * {"forward": there, "reverse": back, "jeffreys": 0.5 * (there + back)}[divergence]
    top = TopK(jnp.asarray(ids)[:, None], jnp.log(jnp.asarray(q))[:, None], jnp.ones((3, 1)))
    forget = ju.LabelledBatch(jnp.arange(3), jnp.zeros(3, jnp.int32), jnp.asarray(weights))
    batch = ju.UnlearnBatch(forget, reference=ju.Reference(counterfactual_top=top))
    term = objectives.CounterfactualKL(divergence)
    value = Objective(((1.0, term),)).value(ju.Model(logits=lambda z, at: z[at]), jnp.asarray(logits), batch)
    assert float(value) == pytest.approx(expected / 2.5, rel=1e-5)


def test_undial_and_adversarial_labels_with_few_stored_classes(world):
    """Lumped: k = 3 classes and one bucket for the rest, whose mass the teacher scales like the others."""
    with jax.enable_x64(True):
        w = world.batch
        few = w._replace(reference=stored(world.old, w.forget, w.retain, w.alternative, 3))
        now = jnp.asarray(world.now)
        value = lambda term: float(Objective(((1.0, term),)).value(MODEL, now, few))

        def lumped(z, y, z0, zc):
            others = [v for v in np.argsort(-z0) if v != y]
            groups = [[y], [others[0]], [others[1]], others[2:]]
            mass = lambda p: np.array([p[g].sum() for g in groups])
            q = mass(np.exp(logp(z0))) * np.array([np.exp(-10.0), 1, 1, 1])
            return -(q / q.sum() * np.log(mass(np.exp(logp(z))))).sum()

        assert value(objectives.UNDIAL(10.0)) == pytest.approx(per_token(lumped)(world.now, world, world.now), rel=1e-9)
        expected = per_token(adversarial)(world.now, world, world.now)
        assert value(objectives.AdversarialNLL()) == pytest.approx(expected, rel=1e-10)
        one_class = few._replace(reference=few.reference._replace(forget_top=few.reference.retain_top))
        cut = jax.tree.map(lambda x: x[..., :1] if x.ndim == 3 else x, one_class.reference.forget_top)
        with pytest.raises(ValueError, match="at least 2"):
            objectives.AdversarialNLL().total(MODEL, now, {"data": w.forget, "top": cut})


def test_sharpness_aware_takes_the_forget_gradient_at_the_worst_point(world):
    with jax.enable_x64(True):
        now = jnp.asarray(world.now)
        F, R = (Objective(((1.0, term),)) for term in (objectives.NPO(0.3), objectives.NLL("retain")))
        value, grad = SharpnessAware(F, R, 0.2).value_and_grad(MODEL, now, world.batch)
        g = F.value_and_grad(MODEL, now, world.batch)[1]
        there = now + 0.2 * g / jnp.linalg.norm(g)
        expected = F.value_and_grad(MODEL, there, world.batch)[1] + R.value_and_grad(MODEL, now, world.batch)[1]
        np.testing.assert_allclose(grad, expected, atol=1e-12)
        total = F.value(MODEL, there, world.batch) + R.value(MODEL, now, world.batch)
        assert float(value) == pytest.approx(float(total), rel=1e-12)
        assert float(SharpnessAware(F, R, 0.2).value(MODEL, now, world.batch)) == pytest.approx(float(total), rel=1e-12)
        plain = SharpnessAware(F, R, 1e-9).value_and_grad(MODEL, now, world.batch)[1]
        np.testing.assert_allclose(plain, g + R.value_and_grad(MODEL, now, world.batch)[1], atol=1e-7)
        nothing = SharpnessAware(Objective(()), R, 0.2).value_and_grad(MODEL, now, world.batch)[1]
        assert bool(tree.all_finite(nothing))


MISSING = {
    "npo": (objectives.NPO(), "reference.forget_nll"),
    "dpo": (objectives.DPO(), "UnlearnBatch.alternative"),
    "answer_preservation": (objectives.AnswerPreservation(), "retain"),
    "undial": (objectives.UNDIAL(), "reference.forget_top"),
    "adversarial": (objectives.AdversarialNLL(), "top_with_target"),
    "kl": (objectives.KLRetain(), "retain"),
    "rmu": (objectives.ActivationMatch(1), "retain"),
    "relabelled": (objectives.NLL("alternative"), "alternative"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(name, world):
    term, message = MISSING[name]
    with pytest.raises(ValueError, match=message):
        term.rows(ju.UnlearnBatch(world.batch.forget))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.SimNPO(beta=0.0), "SimNPO.beta=0.0.: beta must be positive"),
        (lambda: objectives.DPO(beta=-1.0), "beta must be positive"),
        (lambda: objectives.WeightedAscent(saturation=-1.0), "saturation=-1.0"),
        (lambda: objectives.UNDIAL(strength=0.0), "strength=0.0"),
        (lambda: objectives.KLRetain("everywhere"), "choose 'all_positions' or None"),
        (lambda: objectives.Misdirection(0), "layer=0"),
        (lambda: objectives.Misdirection(1, coefficient=0.0), "positive length"),
        (lambda: SharpnessAware(Objective(()), Objective(()), 0.0), "positive radius"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
