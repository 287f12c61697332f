"""One record moves the sum by at most C, the noise is what the accountant was told, and its numbers are true."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, gathering, labelled, mlp, shard

import jaxunlearn as ju
from jaxunlearn.accounting import SampledGaussian, calibrate, capacity_for
from jaxunlearn.private import clipped_sum, private_gradient, record_nll
from jaxunlearn.sharding import make_mesh

ROUNDING = 1 + 1e-5


def softmax_regression(seed=0):
    rng = np.random.default_rng(seed)
    model = ju.Model(logits=lambda p, x: x @ p["w"] + p["b"])
    return model, {"w": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), "b": jnp.zeros(3)}


def gradients_by_hand(params, batch):
    """`x (p - e_y)^T` and `p - e_y`, float64, one flat row a record: b before w, as the tree has them."""
    x, w, b = (np.asarray(a, np.float64) for a in (batch.inputs, params["w"], params["b"]))
    z = x @ w + b
    p = np.exp(z - z.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(3)[np.asarray(batch.labels)]
    return np.concatenate([residual, np.einsum("ni,nk->nik", x, residual).reshape(len(x), -1)], axis=1)


def uneven(n=16):
    """Records of very different gradients, the last two rows only filling the batch."""
    batch = labelled(n)
    sizes = jnp.asarray(np.geomspace(1e-3, 1e3, n), jnp.float32)
    return batch._replace(inputs=batch.inputs * sizes[:, None], loss_mask=batch.loss_mask.at[-2:].set(0.0))


@pytest.mark.parametrize(("clip_norm", "microbatch"), [(0.1, None), (1.0, 1), (1.0, 4), (1e4, None)])
def test_the_sum_is_that_of_numpy(clip_norm, microbatch):
    model, params = softmax_regression()
    batch = uneven()
    rows = gradients_by_hand(params, batch)[:-2]
    norms = np.linalg.norm(rows, axis=1)
    expected = (rows * np.minimum(1, clip_norm / norms)[:, None]).sum(0)
    found = clipped_sum(record_nll(model), params, batch, clip_norm=clip_norm, microbatch=microbatch)
    bound = 1e-5 * np.abs(rows).sum(0).clip(max=14 * clip_norm)
    assert (np.abs(flat(found.total) - expected) <= bound).all()
    assert (int(found.records), int(found.clipped), int(found.dropped)) == (14, (norms > clip_norm).sum(), 0)


def one_by_one(model, params, batch, clip_norm):
    """The clipped gradient of every record by itself, [n, d]."""
    alone = jax.jit(lambda row: flat(clipped_sum(record_nll(model), params, row, clip_norm=clip_norm).total))
    return np.stack([alone(jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(len(batch.labels))])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_record_is_longer_than_the_clipping_norm(dtype):
    model, params = mlp(dtype=dtype)
    batch, clip_norm = uneven(), 0.3
    rows = one_by_one(model, params, batch, clip_norm)
    norms, whole = (np.linalg.norm(r, axis=1) for r in (rows, one_by_one(model, params, batch, 1e6)))
    assert norms.max() <= clip_norm * ROUNDING
    assert (whole > clip_norm).sum() >= 8
    np.testing.assert_allclose(norms, np.minimum(whole, clip_norm), rtol=1e-5)


def test_a_record_moves_the_sum_by_at_most_the_clipping_norm():
    model, params = mlp()
    batch, clip_norm = uneven(), 0.3

    @jax.jit
    def total(mask):
        return flat(clipped_sum(record_nll(model), params, batch._replace(loss_mask=mask), clip_norm=clip_norm).total)

    everyone = total(batch.loss_mask)
    moved = [jnp.linalg.norm(everyone - total(batch.loss_mask.at[i].set(0.0))) for i in range(16)]
    assert max(moved) <= clip_norm * ROUNDING
    assert max(moved) > 0.99 * clip_norm  # the bound is met, so a smaller C would have been broken


@pytest.mark.parametrize("broken", [jnp.inf, jnp.nan, 1e30])
def test_a_gradient_that_is_not_finite_counts_as_zero(broken):
    """NaN in the sum, or a norm beyond f32, would tell that the record is there."""
    model, params = softmax_regression()
    batch = labelled(6)
    batch = batch._replace(labels=batch.labels.at[2].set(jnp.argmin(params["w"][1])))  # far from right
    spoilt = batch._replace(inputs=batch.inputs.at[2, 1].set(broken))
    found = clipped_sum(record_nll(model), params, spoilt, clip_norm=1.0, microbatch=3)
    without = clipped_sum(
        record_nll(model), params, batch._replace(loss_mask=batch.loss_mask.at[2].set(0.0)), clip_norm=1.0
    )
    np.testing.assert_allclose(flat(found.total), flat(without.total), atol=1e-6)
    assert int(found.dropped) == 1


@pytest.fixture(scope="module")
def gradient():
    """A jitted step of a small network, with its arguments bound but for the key and what a test changes."""
    model, params = mlp()
    records = uneven()

    @partial(jax.jit, static_argnames=("sigma", "microbatch", "model"))
    def step(key, params=params, batch=records, sigma=2.0, microbatch=None, model=model):
        return private_gradient(
            record_nll(model),
            params,
            batch,
            key,
            clip_norm=0.5,
            noise_multiplier=sigma,
            expected=10.0,
            microbatch=microbatch,
        )

    return model, params, step


def test_the_noise_has_the_variance_of_the_theory(gradient):
    """`(noised - clipped mean) b / (sigma C)` is standard normal, coordinate by coordinate and leaf by leaf."""
    _, params, step = gradient
    clean, exact = step(jax.random.key(0), sigma=0.0)
    np.testing.assert_allclose(flat(clean), flat(exact.total) / 10.0, rtol=1e-6)
    keys = jax.random.split(jax.random.key(1), 400)
    noised = jax.lax.map(lambda key: step(key)[0], keys)
    unit = jax.tree.map(lambda a, b: np.asarray((a - b) * 10.0 / (2.0 * 0.5)).reshape(400, -1), noised, clean)
    for leaf in jax.tree.leaves(unit):
        assert abs(leaf.mean()) < 5 / np.sqrt(leaf.size)
        assert abs(leaf.var() - 1) < 5 * np.sqrt(2 / leaf.size)
    together = np.concatenate(jax.tree.leaves(unit), axis=1)
    correlation = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(400)  # 2,850 pairs of coordinates: leaves share no noise
    assert together.shape[1] == sum(x.size for x in jax.tree.leaves(params))


def test_microbatches_change_nothing(gradient):
    _, _, step = gradient
    expected, exact = step(jax.random.key(3))
    for microbatch in (1, 4):
        got, counts = step(jax.random.key(3), microbatch=microbatch)
        np.testing.assert_allclose(flat(got), flat(expected), atol=1e-6)
        assert (int(counts.records), int(counts.clipped)) == (int(exact.records), int(exact.clipped))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(gradient, explicit):
    model, params, step = gradient
    expected, _ = step(jax.random.key(3), microbatch=8)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    there, batch = shard(params, uneven(), mesh)
    if explicit:
        model = ju.Model(logits=gathering(model.logits, mesh))
    got, _ = step(jax.random.key(3), there, batch, microbatch=8, model=model)
    np.testing.assert_allclose(flat(jax.device_get(got)), flat(expected), atol=1e-6)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(there), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} is not {b.sharding}"


def test_one_microbatch_of_gradients_is_in_memory():
    """The jaxpr holds no array with the batch's rows of a weight, only a microbatch's."""
    model, params = mlp(sizes=(6, 40, 3))
    text = str(
        jax.make_jaxpr(lambda p: clipped_sum(record_nll(model), p, labelled(16), clip_norm=1.0, microbatch=2))(params)
    )
    assert "f32[2,6,40]" in text
    assert "f32[16,6,40]" not in text


def test_the_sum_is_told_not_to_round(gradient):
    """Accelerators multiply f32 matrices in bf16 or TF32 by default: a clipped row could then be longer than C."""
    _, params, step = gradient
    text = str(jax.make_jaxpr(step)(jax.random.key(0)))
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == len(jax.tree.leaves(params))


def test_bfloat16_parameters_get_an_f32_gradient(gradient):
    _, params, step = gradient
    got, _ = step(jax.random.key(0), jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert {x.dtype.name for x in jax.tree.leaves(got)} == {"float32"}


def gaussian_epsilon(mu, delta):
    """Epsilon of the Gaussian mechanism of sensitivity `mu` standard deviations (Balle and Wang 2018, theorem 8)."""
    from scipy import optimize, stats

    def gap(eps):
        return stats.norm.cdf(mu / 2 - eps / mu) - np.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu)) - delta

    return optimize.brentq(gap, 0, 200)


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"), [(1.0, 1, 1e-5), (5.0, 10, 1e-6), (20.0, 1000, 1e-5), (2.0, 50, 1e-3)]
)
def test_without_sampling_epsilon_is_in_closed_form(sigma, steps, delta):
    exact = gaussian_epsilon(np.sqrt(steps) / sigma, delta)
    found = SampledGaussian(50, 50, 50, steps, sigma).epsilon(delta)
    assert exact * (1 - 1e-6) <= found <= 1.01 * exact


PUBLISHED = {
    "Abadi et al. 2016, section 3.2": (SampledGaussian(10**6, 10**4, 10**6, 10_000, 4.0), 1.26),
    "TensorFlow Privacy, MNIST tutorial": (SampledGaussian(60_000, 256, 60_000, 60 * 234, 1.1), 3.01),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_runs_cost_what_was_published(case):
    """Published values bound the loss by its moments, hence from above; the limit of many steps lies just below."""
    import dp_accounting
    from dp_accounting import pld

    run, published = PUBLISHED[case]
    q, found = run.sampling_rate, run.epsilon(1e-5)
    many_steps = gaussian_epsilon(q * np.sqrt(run.steps * np.expm1(run.noise_multiplier**-2)), 1e-5)
    assert 0.97 * many_steps < found < published < 1.4 * found
    one = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(run.noise_multiplier))
    theirs = pld.PLDAccountant().compose(one, run.steps).get_epsilon(1e-5)
    assert found == pytest.approx(theirs, rel=0.01)


def test_epsilon_grows_with_what_is_released():
    base = {"records": 100, "expected": 10.0, "capacity": 100, "steps": 100, "noise_multiplier": 2.0}
    spent = lambda **changed: SampledGaussian(**(base | changed)).epsilon(1e-4)
    assert spent(noise_multiplier=3.0) < spent() < spent(steps=200) < spent(steps=200, expected=20.0)
    assert SampledGaussian(**base).epsilon(1e-3) < spent()
    assert spent() < spent(capacity=12)  # truncation makes records depend on each other


@pytest.mark.parametrize(
    ("epsilon", "expected", "capacity", "steps"),
    [(0.5, 10.0, 100, 50), (10.0, 10.0, 25, 2), (10.0, 10.0, 12, 2), (20.0, 100.0, 100, 50)],
)
def test_calibration_inverts_the_accountant(epsilon, expected, capacity, steps):
    found = calibrate(epsilon, 1e-4, records=100, expected=expected, capacity=capacity, steps=steps)
    assert 0.98 * epsilon < found.epsilon(1e-4) <= epsilon
    assert (found.records, found.expected, found.capacity, found.steps) == (100, expected, capacity, steps)


def test_the_capacity_is_hardly_ever_exceeded():
    from math import comb

    tail = lambda k: sum(comb(200, i) * 0.1**i * 0.9 ** (200 - i) for i in range(k + 1, 201))
    k = capacity_for(200, 20, steps=1000, chance=1e-3)
    assert tail(k) <= 1e-6 < tail(k - 1)


GOOD = {"records": 10, "expected": 2.0, "capacity": 5, "steps": 3, "noise_multiplier": 1.0}
BAD_RUNS = {
    "expected": (11.0, "on average at most all"),
    "capacity": (11, "choose 1 to 10"),
    "steps": (0, "at least one step"),
    "noise_multiplier": (0.0, "without noise nothing is private"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_impossible_runs_are_named(name):
    value, message = BAD_RUNS[name]
    with pytest.raises(ValueError, match=f"{name}={value}.*{message}"):
        SampledGaussian(**(GOOD | {name: value}))


def test_impossible_guarantees_are_named():
    sizes = {name: GOOD[name] for name in ("records", "expected", "capacity", "steps")}
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"delta={delta}: a probability"):
            SampledGaussian(**GOOD).epsilon(delta)
    with pytest.raises(ValueError, match="must be positive"):
        calibrate(0.0, 1e-5, **sizes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"expected": 0}, "expected=0"),
        ({"microbatch": 3}, "microbatches of 3; choose a divisor of 4"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    model, params = softmax_regression()
    good = {"clip_norm": 1.0, "noise_multiplier": 1.0, "expected": 4}
    with pytest.raises(ValueError, match=message):
        private_gradient(record_nll(model), params, labelled(4), jax.random.key(0), **(good | changed))
