"""One table drives every method: jitted, donated, alone and on eight devices, and against the theorems it rests on."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, gathering, labelled, mlp, shard, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import losses, methods, objectives, operators, tree
from jaxunlearn.curvature import (
    EKFAC,
    KFAC,
    EmpiricalFisher,
    GaussNewton,
    GaussNewtonBartlett,
    Hessian,
    HutchinsonDiagonal,
    Identity,
    SquaredGradients,
    TrueFisher,
)
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG, MINRES, ClosedForm, Status

METHODS = {
    "grad_ascent": methods.grad_ascent(learning_rate=1e-2),
    "grad_diff": methods.grad_diff(learning_rate=1e-2),
    "npo": methods.npo(learning_rate=1e-2),
    "npo_kl": methods.npo(learning_rate=1e-2, retain="kl"),
    "newton_removal": methods.newton_removal(damping=0.1, step_size=0.1),
    "newton_trust": methods.newton_removal(damping=0.1, max_kl=1e-3),
    "fisher_removal": methods.fisher_removal(damping=0.1, samples=8, step_size=0.1),
    "fisher_forgetting": methods.fisher_forgetting(damping=0.1, samples=8, mu=1e-6, sigma=1e-3),
    "noisy_newton": methods.noisy_newton(damping=0.1, step_size=0.1, samples=8, noise_damping=0.1, mu=1e-9, sigma=1e-4),
    "influence": methods.influence(damping=0.1, samples=8, forget_share=0.3, cg_steps=5),
    "kfade": methods.kfade(max_kl=1e-3),
    "cubic_newton": methods.cubic_newton(lanczos_steps=4),
    "soul": methods.soul(learning_rate=1e-2, interval=2),
    "soul_released": methods.soul(learning_rate=1e-2, compat="released"),
    "ssd": methods.ssd(alpha=1.2, forget_share=0.3),
    "kfac_edit": methods.kfac_edit(rho=0.9, only="*/w"),
    "gauss_newton_ascent": methods.gauss_newton_ascent(max_kl=1e-3),
    "counterfactual_matching": methods.counterfactual_matching(max_kl=1e-2),
    "win_u": methods.win_u(damping=0.1, step_size=0.1, rank=4, cg_steps=20, rtol=1e-6),
}
NO_SOLVE = ("grad_ascent", "grad_diff", "npo", "npo_kl", "soul", "soul_released")
CERTIFIED = ("grad_diff", "counterfactual_matching")  # on eight devices; the certificate is the same for all
UNDIRECTED = ("fisher_forgetting", "ssd", "kfac_edit")
SECOND_ORDER = [n for n in METHODS if n not in NO_SOLVE + UNDIRECTED]


def run(method, model, params, batch, steps=3):
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1), donate_argnums=2)
    state = ju.init(method, model, jax.tree.map(jnp.copy, params), key=jax.random.key(0))
    for _ in range(steps):
        state, info = step(method, model, state, batch)
    return state, info


@cache
def alone():
    model, params = mlp()
    return model, params, unlearn_batch(model, params)


@cache
def history(name):
    """State and record after each of four steps of a method on one device: compiled once for all tests."""
    model, params, batch = alone()
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    state = ju.init(METHODS[name], model, params, key=jax.random.key(0))
    done = []
    for _ in range(4):
        state, info = step(METHODS[name], model, state, batch)
        done.append((state, info))
    return done


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_right_way(name):
    model, params, batch = alone()
    state, info = history(name)[2]
    assert int(state.step) == 3
    assert bool(info.applied)
    assert bool(tree.all_finite(state.params))
    before = float(METHODS[name].objective.value(model, params, batch))
    after = float(METHODS[name].objective.value(model, state.params, batch))
    if name in UNDIRECTED:  # noise has no direction, only a size; edits follow no objective
        assert float(info.update_norm) > 0
    else:
        assert after < before
    c = info.certificate
    assert all(bool(jnp.isfinite(x)) for x in c)
    assert float(c.retain_before) > 0
    assert float(c.kl_measured) >= -1e-6


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_methods_report_their_solve(name):
    _, info = history(name)[2]
    assert Status(int(info.curvature.solve.status)) in Status
    assert float(info.curvature.used_damping) > 0
    text = ju.certificate.describe(info.certificate, info.curvature)
    assert Status(int(info.curvature.solve.status)).name in text
    assert "predicted" in text


@pytest.mark.parametrize("name", ["newton_trust", "gauss_newton_ascent", "counterfactual_matching"])
def test_a_trust_region_bounds_the_measured_kl(name):
    bound = {"counterfactual_matching": 1e-2}.get(name, 1e-3)
    for _, info in history(name):
        assert float(info.certificate.kl_measured) <= 2.05 * bound


def test_certificate_predicts_small_steps():
    model, params = mlp()
    method = methods.gauss_newton_ascent(max_kl=1e-6)
    _, info = run(method, model, params, unlearn_batch(model, params), steps=1)
    c = info.certificate
    assert float(c.kl_measured) == pytest.approx(float(c.kl_predicted), rel=0.05)
    assert float(c.forget_after - c.forget_before) == pytest.approx(float(c.forget_predicted), rel=0.05)


OBJECTIVES = {
    "ascent": objectives.Objective(((-1.0, objectives.NLL("forget")),)),
    "diff": objectives.Objective(((-1.0, objectives.NLL("forget")), (1.0, objectives.NLL("retain")))),
    "npo_kl": objectives.Objective(((1.0, objectives.NPO()), (1.0, objectives.KLRetain()))),
    "matching": objectives.Objective(((1.0, objectives.CounterfactualKL()),)),
}
CURVATURES = {
    "identity": (Identity(), CG(2)),
    "hessian": (Hessian(), CG(10)),
    "hessian_linearized": (Hessian(mode="linearize"), CG(10)),
    "hessian_by_differences": (Hessian(8, "finite_difference"), CG(10)),
    "gauss_newton": (GaussNewton(), CG(10)),
    "fisher": (EmpiricalFisher(8), ClosedForm()),
    "kfac": (KFAC(), ClosedForm()),
    "ekfac": (EKFAC(), ClosedForm()),
    "fisher_cg": (EmpiricalFisher(8), CG(10)),
    "fisher_recomputed": (EmpiricalFisher(8, stored=False), ClosedForm()),
    "true_fisher": (TrueFisher(8), ClosedForm()),
    "hutchinson": (HutchinsonDiagonal(), ClosedForm()),
    "bartlett": (GaussNewtonBartlett(), ClosedForm()),
    "squared_gradients": (SquaredGradients(), ClosedForm()),
}


@pytest.mark.parametrize("curvature", CURVATURES)
def test_any_curvature_makes_a_step_donated_and_jitted(curvature):
    """`test_composition.py` crosses the main ones with every objective."""
    model, params, batch = alone()
    objective = OBJECTIVES["npo_kl"]
    method = methods.compose("mixed", objective, *CURVATURES[curvature], damping=1.0, step_size=0.05)
    state, _ = run(method._replace(certify=False), model, params, batch, steps=1)
    assert float(objective.value(model, state.params, batch)) < float(objective.value(model, params, batch))


@pytest.mark.parametrize("preconditioner", [EKFAC(), GaussNewtonBartlett(), EmpiricalFisher(None)])
def test_a_preconditioner_changes_the_way_and_not_the_end(preconditioner):
    model, params = mlp()
    batch = unlearn_batch(model, params)

    def solve(solver, preconditioner):
        objective = OBJECTIVES["ascent"]
        method = methods.compose("x", objective, GaussNewton(), solver, damping=0.01, preconditioner=preconditioner)
        state, info = run(method._replace(certify=False), model, params, batch, steps=1)
        return flat(state.params) - flat(params), info.curvature.solve.residual_norms[:10]

    plain, alone = solve(CG(200, 1e-6, None), None)
    for solver in (CG(200, 1e-6, None), MINRES(200, 1e-6)):
        helped, residuals = solve(solver, preconditioner)
        assert float(jnp.abs(residuals - alone).max()) > 0.01 * float(alone[0])  # another way
        np.testing.assert_allclose(helped, plain, atol=1e-4 * float(jnp.linalg.norm(plain)))


def test_a_solver_without_a_preconditioner_says_so():
    with pytest.raises(ValueError, match="ClosedForm takes no preconditioner"):
        methods.compose("x", OBJECTIVES["ascent"], EKFAC(), ClosedForm(), damping=1.0, preconditioner=EKFAC())


def test_curvature_may_be_taken_off_the_forget_set():
    """H_retain - a H_forget as a metric: the negative weight reaches the operator."""
    model, params = mlp()
    batch = unlearn_batch(model, params)
    objective = OBJECTIVES["ascent"]
    metric = (("retain", 1.0), ("forget", -0.5))
    method = methods.compose("x", objective, Hessian(), MINRES(100, 1e-6), damping=5.0, metric=metric)
    state, _ = run(method._replace(certify=False), model, params, batch, steps=1)
    H_r, H_f = (operators.to_dense(Hessian()(model, params, part)) for part in (batch.retain, batch.forget))
    _, g = objective.value_and_grad(model, params, batch)
    expected = -jnp.linalg.solve(H_r - 0.5 * H_f + 5.0 * jnp.eye(len(H_r)), flat(g))
    np.testing.assert_allclose(flat(state.params) - flat(params), expected, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", METHODS)
def test_eight_devices_equal_one(name, explicit):
    model, params, batch = alone()
    expected, _ = history(name)[1]
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    sharded_params, sharded_batch = shard(params, batch, mesh)
    if explicit:  # on an explicit mesh a contraction over a sharded axis must say where its result goes
        model = model._replace(logits=gathering(model.logits, mesh))
    method = METHODS[name]._replace(certify=name in CERTIFIED)
    state, info = run(method, model, sharded_params, sharded_batch, steps=2)
    assert bool(info.applied)
    np.testing.assert_allclose(flat(jax.device_get(state.params)), flat(expected.params), atol=2e-5)
    for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(sharded_params), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)


def test_missing_parts_are_named():
    model, params = mlp()
    batch = ju.UnlearnBatch(labelled(4))
    for name, part in [("grad_diff", "retain"), ("npo", "forget_nll"), ("counterfactual_matching", "counterfactual")]:
        state = ju.init(METHODS[name], model, params, key=jax.random.key(0))
        with pytest.raises(ValueError, match=part):
            ju.unlearn_step(METHODS[name], model, state, batch)
    state = ju.init(METHODS["newton_removal"], model, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match="curvature is taken on UnlearnBatch.retain"):
        ju.unlearn_step(METHODS["newton_removal"], model, state, batch)


def test_a_non_finite_update_is_not_applied():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    broken = batch._replace(forget=batch.forget._replace(inputs=batch.forget.inputs * jnp.nan))
    state, info = run(METHODS["grad_ascent"], model, params, broken, steps=1)
    assert not bool(info.applied)
    np.testing.assert_array_equal(flat(state.params), flat(params))
    state, info = ju.unlearn_step(METHODS["grad_ascent"], model, state, batch)  # no moment was spoilt
    assert bool(info.applied)


def test_integer_parameters_are_refused():
    model, params = mlp()
    with pytest.raises(ValueError, match="int32"):
        ju.init(METHODS["npo"], model, [*params, {"n": jnp.int32(3)}], key=jax.random.key(0))


def test_microbatches_change_nothing():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    whole, _ = run(methods.newton_removal(damping=0.1, step_size=0.1), model, params, batch, steps=1)
    split, _ = run(methods.newton_removal(damping=0.1, step_size=0.1, microbatch=4), model, params, batch, steps=1)
    np.testing.assert_allclose(flat(split.params), flat(whole.params), atol=1e-5)


def test_newton_lands_on_the_retrained_optimum_of_a_quadratic():
    """Ridge regression: one influence-scale step from the optimum on D is the optimum on D_r."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        X, y = jnp.asarray(rng.normal(size=(30, 5))), jnp.asarray(rng.normal(size=30))
        forget, retain = slice(0, 6), slice(6, 30)
        solve = lambda A, b: jnp.linalg.solve(A.T @ A, A.T @ b)
        w = solve(X, y)

        def total(p, rows):
            return jnp.sum(0.5 * (rows[0] @ p - rows[1]) ** 2), float(rows[0].shape[0])

        H = ju.curvature.hessian(total, w, (X[retain], y[retain]))
        g_f = jax.grad(lambda p: total(p, (X[forget], y[forget]))[0] / 6)(w)
        step, info = CG(50, 1e-13, progress=None)(H, g_f)
        np.testing.assert_allclose(w + 6 / 24 * step, solve(X[retain], y[retain]), atol=1e-9)
        assert Status(int(info.status)) is Status.CONVERGED


def test_newton_recipe_lands_on_the_retrained_optimum_of_logistic_regression():
    """The step removes nearly all of the distance to the retrained optimum, and Newton on retain the rest."""
    with jax.enable_x64(True):
        model = ju.Model(logits=lambda w, x: x @ w)
        data = labelled(240, seed=5, features=4, dtype=jnp.float64)
        forget, retain = (jax.tree.map(lambda x, s=s: x[s], data) for s in (slice(0, 8), slice(8, None)))

        def newton(w, batch):
            loss = lambda p: losses.nll(model, p, batch)[0] / jnp.sum(batch.loss_mask)
            H = Hessian()(model, w, batch).damped(1e-9)
            return w - CG(40, 1e-12, progress=None)(H, jax.grad(loss)(w))[0]

        start, target = jnp.zeros((4, 3)), jnp.zeros((4, 3))
        for _ in range(8):
            start, target = newton(start, data), newton(target, retain)
        gamma = float(jnp.sum(forget.loss_mask) / jnp.sum(retain.loss_mask))
        recipe = methods.newton_removal(damping=1e-9, step_size=gamma, cg_steps=40, rtol=1e-12)
        one, _ = run(recipe, model, start, ju.UnlearnBatch(forget, retain), steps=1)
        assert float(tree.norm(one.params - target)) < 0.05 * float(tree.norm(start - target))
        assert float(tree.norm(newton(one.params, retain) - target)) < 1e-4


def test_noise_has_the_covariance_it_promises():
    model, params = mlp(sizes=(3, 2))
    retain = labelled(12, features=3, classes=2)
    batch = ju.UnlearnBatch(retain, retain)
    method = methods.fisher_forgetting(damping=0.05, samples=12, mu=1.0, sigma=1.0)._replace(certify=False)
    state = ju.init(method, model, params, key=jax.random.key(0))

    def draw(key):
        after, _ = ju.unlearn_step(method, model, state._replace(key=key), batch)
        return flat(after.params) - flat(params)

    noise = jax.vmap(draw)(jax.random.split(jax.random.key(3), 20000))
    F = operators.to_dense(EmpiricalFisher(12)(model, params, retain).damped(0.05))
    values, vectors = jnp.linalg.eigh(F)
    expected = (vectors * values**-0.5) @ vectors.T
    np.testing.assert_allclose(jnp.cov(noise.T), expected, atol=0.05 * float(expected.max()))


def test_npo_tends_to_gradient_ascent_as_beta_vanishes():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    sums = objectives.Objective(((1.0, objectives.NPO(beta=1e-4)),))
    _, g_npo = sums.value_and_grad(model, params, batch)
    ascent = jax.grad(lambda p: -jnp.mean(losses.example_nll(model, p, batch.forget)[0]))(params)
    np.testing.assert_allclose(flat(g_npo), flat(ascent), atol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name):
    with jax.enable_x64(True):
        model, params = mlp(dtype=jnp.float64)
        batch = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, unlearn_batch(model, params)
        )
        _, grads = OBJECTIVES[name].value_and_grad(model, params, batch)
        v = tree.normal_like(jax.random.key(0), params)
        value = lambda h: OBJECTIVES[name].value(model, tree.axpy(h, v, params), batch)
        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        assert float(tree.vdot(grads, v)) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


def test_catalogue_makes_what_it_names():
    for name, entry in methods.CATALOGUE.items():
        required = {"eps": 1.0} if name == "pdu" else {}
        assert entry.make(**required).name == name
