"""K-FADE: the metric of Kronecker factors, taken in the step or stored and handed in without a retain set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp

import jaxunlearn as ju
from jaxunlearn import methods, operators
from jaxunlearn.curvature import EKFAC, KFAC
from jaxunlearn.curvature.kronecker import eigendecompose, kronecker_factors, load, save, second_moments
from jaxunlearn.methods.first_order import ASCENT
from jaxunlearn.objectives import Objective
from jaxunlearn.runs.options import make_method
from jaxunlearn.solvers import ClosedForm
from jaxunlearn.transforms import TrustRegion, damp_by_mean

MAX_KL, SHARE = 1e-3, 0.2
step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


@pytest.fixture(scope="module")
def problem():
    model, params = mlp()
    return model, params, labelled(8, 1), labelled(16, 2)


@pytest.fixture(scope="module")
def stored(problem):
    """By recipe, what a pass over retain leaves behind: an eigendecomposition."""
    model, params, _, retain = problem
    factors = kronecker_factors(model, params, retain, EKFAC())
    eigen = eigendecompose(factors, params)
    moments = second_moments(model, params, retain, EKFAC(), eigen.vectors)
    kfac = eigendecompose(kronecker_factors(model, params, retain, KFAC()), params)
    return {"ekfac": eigen.with_moments(moments), "kfac": kfac}


def run(method, model, params, batch):
    state = ju.init(method, model, params, key=jax.random.key(0))
    after, info = step(method, model, state, batch)
    return np.asarray(flat(after.params) - flat(params)), info


@pytest.mark.parametrize("kind", ["ekfac", "kfac"])
def test_stored_factors_give_the_step_of_factors_taken_in_it(problem, stored, kind, tmp_path):
    model, params, forget, retain = problem
    folder = str(save(tmp_path / "factors", stored[kind]))
    method = make_method("kfade", [f"factors={folder}", f"max_kl={MAX_KL}", f"damping={SHARE}"])
    assert method.factors == folder
    batch = ju.UnlearnBatch(forget, curvature=load(method.factors, params))  # no retain examples
    got, info = run(method, model, params, batch)
    taken = methods.compose(
        "taken",
        Objective((ASCENT,)),
        {"ekfac": EKFAC(), "kfac": KFAC()}[kind],
        ClosedForm(),
        damping=SHARE,
        trust_region=TrustRegion(MAX_KL, fill=True, predict="metric"),
        damp=damp_by_mean,
    )
    expected, _ = run(taken, model, params, ju.UnlearnBatch(forget, retain))
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    recipe = methods.kfade(curvature=kind, max_kl=MAX_KL, damping=SHARE)
    itself, measured = run(recipe, model, params, ju.UnlearnBatch(forget, retain))
    cosine = got @ itself / np.linalg.norm(got) / np.linalg.norm(itself)
    assert cosine == pytest.approx(1.0, abs=1e-5)  # only the length is chosen otherwise
    assert float(measured.curvature.damping) != SHARE  # re-chosen from the measured KL
    assert float(info.curvature.damping) == pytest.approx(SHARE)  # kept, since nothing is measured
    assert float(info.certificate.forget_after) > float(info.certificate.forget_before)
    assert info.certificate.retain_before is None


def test_the_step_is_that_of_the_dense_matrix_and_predicts_its_kl(problem, stored):
    model, params, forget, _ = problem
    with jax.enable_x64(True):
        params, forget, eigen = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, (params, forget, stored["ekfac"])
        )
        method = methods.kfade(factors="-", max_kl=MAX_KL, damping=SHARE)._replace(certify=False)
        got, _ = run(method, model, params, ju.UnlearnBatch(forget, curvature=eigen))
        A = ju.curvature.Stored()(model, params, eigen)
        F, damped = (np.asarray(operators.to_dense(x)) for x in (A, A.damped_by_mean(SHARE)))
        g_f = -np.asarray(flat(method.objective.value_and_grad(model, params, ju.UnlearnBatch(forget))[1]))
    d = np.linalg.solve(damped, g_f)
    d *= np.sqrt(MAX_KL / (0.5 * d @ F @ d))
    # The stored eigenvectors are orthonormal to the rounding of f32, which damping by a share magnifies ten times.
    np.testing.assert_allclose(got, d, rtol=1e-4, atol=1e-5 * np.abs(d).max())
    assert 0.5 * got @ F @ got == pytest.approx(MAX_KL, rel=1e-5)


def test_factors_that_were_not_decomposed_serve_as_well(problem, stored):
    model, params, forget, retain = problem
    method = methods.kfade(factors="-", curvature="kfac")._replace(certify=False)
    raw, _ = run(
        method, model, params, ju.UnlearnBatch(forget, curvature=kronecker_factors(model, params, retain, KFAC()))
    )
    decomposed, _ = run(method, model, params, ju.UnlearnBatch(forget, curvature=stored["kfac"]))
    np.testing.assert_allclose(raw, decomposed, atol=1e-5 * np.abs(raw).max())


def test_parameters_without_a_factor_stay(problem):
    model, params, forget, retain = problem
    factors = kronecker_factors(model, params, retain, KFAC(only=("1/w",)))
    method = methods.kfade(factors="-")._replace(certify=False)
    state = ju.init(method, model, params, key=jax.random.key(0))
    after, _ = step(method, model, state, ju.UnlearnBatch(forget, curvature=factors))
    for layer, name in ((0, "w"), (0, "b"), (1, "b")):
        np.testing.assert_array_equal(after.params[layer][name], params[layer][name])
    assert np.abs(after.params[1]["w"] - params[1]["w"]).max() > 0


def test_what_is_missing_or_wrong_is_named(problem, stored):
    model, params, forget, retain = problem
    method = methods.kfade(factors="folder")
    state = ju.init(method, model, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"UnlearnBatch\.curvature, which is None.*curvature\.load"):
        ju.unlearn_step(method, model, state, ju.UnlearnBatch(forget, retain))
    with pytest.raises(ValueError, match="cannot read curvature from a LabelledBatch"):
        ju.unlearn_step(method, model, state, ju.UnlearnBatch(forget, curvature=retain))
    other_model, other = mlp(sizes=(6, 5, 3))
    state = ju.init(method, other_model, other, key=jax.random.key(0))
    with pytest.raises(ValueError, match="do not fit the parameters"):
        ju.unlearn_step(method, other_model, state, ju.UnlearnBatch(forget, curvature=stored["kfac"]))
    method = methods.kfade()
    state = ju.init(method, model, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"UnlearnBatch\.retain"):
        ju.unlearn_step(method, model, state, ju.UnlearnBatch(forget))
    with pytest.raises(ValueError, match="curvature='dense'"):
        methods.kfade(curvature="dense")
    with pytest.raises(ValueError, match="predict='nothing'"):
        TrustRegion(1e-3, predict="nothing")
    with pytest.raises(ValueError, match="no blocks to be damped"):
        damp_by_mean(operators.identity(params), 0.1)
