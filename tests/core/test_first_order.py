"""First-order recipes: all in one compiled program, alone and on eight devices; multipliers; what RMU leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import flat, gathering, mlp, shard, token_batch, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import losses, methods, models, objectives, tree
from jaxunlearn.methods.primal_dual import DualState, primal_dual
from jaxunlearn.methods.representation import down_projections, only
from jaxunlearn.methods.sharpness import smooth
from jaxunlearn.objectives import Objective
from jaxunlearn.sharding import make_mesh

RATE = {"optimizer": optax.sgd(1e-2)}  # a step in proportion to the gradient, so that two of them can be compared
RECIPES = {
    "grad_ascent_kl": methods.grad_ascent_kl(**RATE),
    "grad_ascent_kl_released": methods.grad_ascent_kl(retain="kl_all_positions", **RATE),
    "wga": methods.wga(**RATE),
    "satimp": methods.satimp(retain="none", **RATE),
    "simnpo": methods.simnpo(**RATE),
    "dpo": methods.dpo(**RATE),
    "idk_dpo_answer": methods.idk_dpo(retain="answer", **RATE),
    "refusal": methods.refusal(**RATE),
    "adversarial_label": methods.adversarial_label(**RATE),
    "undial": methods.undial(**RATE),
    "matching": methods.matching(**RATE),
    "max_entropy": methods.max_entropy(**RATE),
    "ce_u": methods.ce_u(**RATE),
    "inverted_hinge": methods.inverted_hinge(**RATE),
    "pdu": methods.pdu(eps=0.5, **RATE),
    "sam": methods.sam(rho=0.05, **RATE),
    "smoothed": methods.smoothed(sigma=0.02, samples=2, **RATE),
}
SHARDED = ("grad_ascent_kl_released", "dpo", "adversarial_label", "undial", "inverted_hinge", "pdu", "smoothed")
MOVING = ("wga", "satimp", "ce_u", "pdu")  # a target or a weight that moves with the model: the value need not fall


def step_all(model, params, batch, names=tuple(RECIPES)):
    """One step of recipes, compiled as one program: `{name: (state, info, objective after, forget NLL after)}`."""
    made = {name: RECIPES[name]._replace(certify=False) for name in names}
    states = {name: ju.init(method, model, params, key=jax.random.key(0)) for name, method in made.items()}

    def run(states, batch):
        out = {}
        for name, method in made.items():
            state, info = ju.unlearn_step(method, model, states[name], batch)
            total, count = losses.nll(model, state.params, batch.forget)
            out[name] = state, info, method.objective.value(model, state.params, batch), total / count
        return out

    return jax.jit(run)(states, batch)


@pytest.fixture(scope="module")
def alone():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    total, count = losses.nll(model, params, batch.forget)
    return step_all(model, params, batch), float(total / count)


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_forgets(name, alone):
    after, forget_before = alone[0][name], alone[1]
    _, info, objective, forget = after
    assert bool(info.applied)
    assert float(info.update_norm) > 0
    if name in MOVING:
        assert float(forget) > forget_before or name == "pdu"
    else:
        assert float(objective) < float(info.objective)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit, alone):
    model, params = mlp()
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    sharded, batch = shard(params, unlearn_batch(model, params), mesh)
    if explicit:
        model = model._replace(logits=gathering(model.logits, mesh))
    for name, (state, *_) in step_all(model, sharded, batch, SHARDED).items():
        expected, got = (flat(jax.device_get(s.params)) for s in (alone[0][name][0], state))
        np.testing.assert_allclose(got, expected, atol=2e-6, err_msg=name)
        for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(sharded), strict=True):
            assert new.sharding.is_equivalent_to(old.sharding, old.ndim), name


DEFAULTS = {
    "grad_diff": ((-1.0, objectives.NLL("forget")), (1.0, objectives.NLL("retain"))),
    "simnpo": ((0.125, objectives.SimNPO(4.5, 0.0)), (1.0, objectives.NLL("retain"))),
    "idk_dpo": ((1.0, objectives.DPO(0.1)), (1.0, objectives.NLL("retain"))),
    "satimp": ((0.1, objectives.WeightedAscent(5.0, 1.0)), (1.0, objectives.NLL("retain"))),
    "matching": methods.counterfactual_matching().objective.terms,
    "undial": ((1.0, objectives.UNDIAL(10.0)),),
    "max_entropy": ((1.0, objectives.MaxEntropy()), (1.0, objectives.AnswerPreservation(0.1))),
    "rmu": ((1.0, objectives.Misdirection(8, 6.5)), (1200.0, objectives.ActivationMatch(8))),
    "random_label": ((1.0, objectives.NLL("alternative")), (1.0, objectives.NLL("retain"))),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_published_ones(name):
    assert methods.CATALOGUE[name].make().objective.terms == DEFAULTS[name]


def test_needs_and_alternatives_follow_from_the_terms():
    assert methods.npo(retain="kl_all_positions").needs == ("forget_nll", "retain_top_all")
    assert methods.refusal(retain="answer").needs == ("retain_alternative",)
    assert methods.sam(forget="simnpo", retain="none").needs == ()
    made = {name: methods.CATALOGUE[name].make().alternative for name in ("dpo", "idk_dpo", "altpo", "random_label")}
    assert made == {"dpo": "given", "idk_dpo": "refusal", "altpo": "sampled", "random_label": "mismatched"}


def test_the_multiplier_grows_while_the_bound_is_broken_and_vanishes_when_it_is_kept():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    R = Objective(((1.0, objectives.NLL("retain")),))
    g = tree.normal_like(jax.random.key(0), params)
    cases = [(0.25, 1.5), (9.0, 0.3)]

    @jax.jit
    def run(params):
        duals = [primal_dual(R, eps, step_size=2.0, multiplier=lam) for eps, lam in cases]
        ends = [d.update(g, d.init(params), params, model=model, batch=batch) for d in duals]
        return R.value_and_grad(model, params, batch), ends

    (value, grad), ends = run(params)
    for (eps, lam), (updates, state) in zip(cases, ends, strict=True):
        np.testing.assert_allclose(flat(updates), flat(g) + lam * flat(grad), rtol=1e-5, atol=1e-6)
        assert float(state.multiplier) == pytest.approx(max(0.0, lam + 2.0 * (float(value) - eps)), rel=1e-6)
        assert float(state.constraint) == pytest.approx(float(value))


def test_primal_dual_ends_on_the_bound():
    """Flat logits on forget alone end with 0.96 on retain; asked for less, the constraint holds with equality."""
    model, params = mlp(sizes=(6, 3))
    batch = unlearn_batch(model, params)
    method = methods.pdu(eps=0.88, dual_step=0.5, optimizer=optax.sgd(0.1))._replace(certify=False)
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    state = ju.init(method, model, params, key=jax.random.key(0))
    for _ in range(300):
        state, _ = step(method, model, state, batch)
    found = next(s for s in state.opt_state if isinstance(s, DualState))
    assert float(found.constraint) == pytest.approx(0.88, abs=5e-3)
    assert float(found.multiplier) > 0.1


def test_smoothing_is_the_mean_over_perturbations_of_its_key():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    F = Objective(((1.0, objectives.SimNPO()),))
    key, g = jax.random.key(7), tree.normal_like(jax.random.key(0), params)
    here = F.value_and_grad(model, params, batch)[1]

    @jax.jit
    def smoothed(key):
        return smooth(F, 0.1, 3).update(g, optax.EmptyState(), params, model=model, batch=batch, key=key)[0]

    gradient = jax.jit(lambda p: F.value_and_grad(model, p, batch)[1])
    there = [gradient(tree.axpy(0.1, tree.normal_like(k, params), params)) for k in jax.random.split(key, 3)]
    expected = flat(g) - flat(here) + sum(flat(t) for t in there) / 3
    np.testing.assert_allclose(flat(smoothed(key)), expected, atol=1e-5)
    assert float(jnp.abs(flat(smoothed(jax.random.key(8))) - expected).max()) > 1e-4  # drawn anew each step


LAYERS = 4


@pytest.fixture(scope="module")
def decoder():
    config = models.DecoderConfig(
        vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=2
    )
    model, params = models.init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    forget, retain = token_batch(rng, 4), token_batch(rng, 4)
    forget = forget._replace(loss_mask=forget.loss_mask.at[3].set(0.0))  # a row that only fills up
    reference = ju.Reference(
        forget_nll=objectives.reference.sequence_nll(model, params, forget),
        retain_hidden=objectives.reference.hidden(model, params, retain, 2),
    )
    return model, params, ju.UnlearnBatch(forget, retain, None, reference)


def test_npo_takes_no_more_memory_than_gradient_difference(decoder):
    """Stored numbers instead of a second model."""
    model, params, batch = decoder

    def peak(method):
        call = jax.jit(lambda p, b: method.objective.value_and_grad(model, p, b)).lower(params, batch).compile()
        found = call.memory_analysis()
        return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes

    assert peak(methods.npo()) <= 1.15 * peak(methods.grad_diff())


def refuse(*_):
    raise AssertionError("the head takes no part in RMU")


def poisoned(params):
    """NaN in everything above the second block."""

    def spoil(path, x):
        above = path[0].key in ("norm", "lm_head")
        return x * jnp.nan if above else x.at[2:].set(jnp.nan) if path[0].key == "layers" else x

    return jax.tree_util.tree_map_with_path(spoil, params)


RMU = methods.rmu(layer=1, coefficient=3.0, retain_weight=100.0, learning_rate=1e-2)


def test_rmu_is_the_masked_mean_square_of_hidden_states(decoder):
    model, params, batch = decoder
    u = np.asarray(jax.random.uniform(jax.random.key(0), (16,)))
    target = 3.0 * u / np.linalg.norm(u)
    moved = jax.tree.map(lambda x: x * 1.01, params)
    value = RMU.objective.value(model, moved, batch)
    h = {k: np.asarray(model.hidden(moved, getattr(batch, k).tokens, 2)) for k in ("forget", "retain")}
    before = np.asarray(model.hidden(params, batch.retain.tokens, 2))
    places = slice(3, 11)  # what predicts tokens 4 to 11
    forget = ((h["forget"][:3, places] - target) ** 2).mean()
    retain = ((h["retain"][:, places] - before[:, places]) ** 2).mean()
    assert float(value) == pytest.approx(forget + 100 * retain, rel=1e-4)


def test_rmu_computes_no_layer_above_and_no_head(decoder):
    """Above its layer NaN changes nothing, gradients are exactly zero, and no scan runs over more layers."""
    model, params, batch = decoder
    model = model._replace(logits=refuse, logits_at=refuse, head=refuse)
    call = jax.jit(lambda p: RMU.objective.value_and_grad(model, p, batch))
    value, grad = call(params)
    spoilt_value, spoilt_grad = call(poisoned(params))
    np.testing.assert_array_equal(spoilt_value, value)
    np.testing.assert_array_equal(flat(spoilt_grad), flat(grad))
    assert not any(np.any(x[2:]) for x in jax.tree.leaves(grad["layers"]))
    assert not any(np.any(x) for name in ("norm", "lm_head") for x in jax.tree.leaves(grad.get(name, ())))
    assert all(np.any(x[:2]) for x in jax.tree.leaves(grad["layers"]))
    assert scans(jax.make_jaxpr(lambda p: RMU.objective.value_and_grad(model, p, batch))(params).jaxpr) == {2}


def scans(jaxpr):
    """Lengths of all scans in a program, at any depth."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.add(equation.params["length"])
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= scans(inner)
    return found


@pytest.mark.parametrize("sizes", [None, (1, 3)], ids=["one_stack", "two_stacks"])
def test_rmu_moves_three_down_projections_and_nothing_else(decoder, sizes):
    model, params, batch = decoder
    start = params if sizes is None else models.split_layers(params, sizes)
    method = RMU._replace(certify=False)
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    state = ju.init(method, model, start, key=jax.random.key(0))
    for _ in range(3):
        state, info = step(method, model, state, batch)
    assert bool(info.applied)
    assert float(info.objective) < float(method.objective.value(model, params, batch))
    after = models.join_layers(state.params)
    leaves = zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(params), strict=True)
    for (path, new), old in leaves:
        names = [key.key for key in path]
        moved = np.asarray(new) != np.asarray(old)
        if names == ["layers", "mlp", "down_proj", "kernel"]:
            assert moved[:2].all()
            moved = moved[2:]
        assert not moved.any(), names


def test_only_keeps_weight_decay_and_state_from_what_is_not_chosen(decoder):
    _, params, _ = decoder
    chosen = only(down_projections(range(1, 2)), optax.with_extra_args_support(optax.adamw(0.1, weight_decay=1.0)))
    state = chosen.init(params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2.1 * params["layers"]["mlp"]["down_proj"]["kernel"].size
    updates, _ = chosen.update(jax.tree.map(jnp.ones_like, params), state, params)
    kernel = updates["layers"]["mlp"]["down_proj"].pop("kernel")
    assert np.all(kernel[1])
    assert not np.any(kernel[jnp.array([0, 2, 3])])
    assert not np.any(flat(updates))


def test_mistakes_are_named(decoder):
    model, params, _ = decoder
    with pytest.raises(ValueError, match="hold 4 blocks"):
        ju.init(methods.rmu(layer=4), model, params, key=jax.random.key(0))
    labels, weights = mlp()
    with pytest.raises(ValueError, match="no `hidden` function"):
        RMU.objective.value(labels, weights, unlearn_batch(labels, weights))
    for make, message in [
        (lambda: methods.pdu(eps=0.1, retain="none"), "choose 'nll'"),
        (lambda: methods.pdu(eps=-1.0), "eps=-1.0"),
        (lambda: methods.pdu(eps=0.1, dual_step=0.0), "positive step"),
        (lambda: methods.sam(forget="rmu"), "choose one of 'npo', 'simnpo', 'ascent'"),
        (lambda: methods.smoothed(samples=0), "at least 1"),
        (lambda: methods.smoothed(sigma=0.0), "positive standard deviation"),
        (lambda: methods.simnpo(retain="all"), "simnpo.retain='all'"),
        (lambda: methods.rmu(layer=-1), "counted from 0"),
        (lambda: methods.undial(learning_rate=0.0), "positive learning rate"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="eps"):
        methods.pdu()
