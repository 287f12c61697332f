"""What is written comes back, on any mesh; what does not fit is refused, with everything that is wrong at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kronecker_cases import lm, tokens
from toys import flat, labelled

import jaxunlearn as ju
from jaxunlearn import models, sharding, taps, tree
from jaxunlearn.curvature import kronecker
from jaxunlearn.curvature.kronecker import EKFAC, KFAC, eigendecompose, from_factors, kronecker_factors, second_moments


@pytest.fixture(scope="module")
def made():
    model, params = lm(tied=True, dtype=jnp.float32)
    factors = kronecker_factors(model, params, tokens(), EKFAC(seed=3))
    return params, factors, eigendecompose(factors, params), model


def test_factors_and_eigenvectors_come_back(made, tmp_path):
    params, factors, eigen, model = made
    moments = second_moments(model, params, tokens(), EKFAC(seed=3), eigen.vectors)
    for name, state in {"factors": factors, "eigen": eigen, "moments": moments}.items():
        folder = kronecker.save(tmp_path / name, state, max_shard_size=200)
        assert len(list(folder.iterdir())) > 1
        back = kronecker.load(folder, params)
        assert jax.tree.structure(back) == jax.tree.structure(state)
        assert [x.shape for x in jax.tree.leaves(back)] == [x.shape for x in jax.tree.leaves(state)]
        jax.tree.map(np.testing.assert_array_equal, back, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eigen", "factors", "moments"]  # nothing temporary is left


def test_a_folder_is_never_overwritten(made, tmp_path):
    folder = kronecker.save(tmp_path / "a", made[1])
    with pytest.raises(ValueError, match="exists already"):
        kronecker.save(folder, made[1])


def test_all_differences_from_the_parameters_are_listed(made, tmp_path):
    params, factors, _, _ = made
    folder = kronecker.save(tmp_path / "a", factors)
    other = {**params, "gain": jnp.ones(5), "new": jnp.ones(2)}
    del other["embed"]
    with pytest.raises(
        ValueError, match=r"(?s)embed \[7, 4\] is not among.*gain is \[5\].*\[4\].*new \[2\] has no block"
    ):
        kronecker.load(folder, other)
    with pytest.raises(ValueError, match="do not fit"):
        from_factors(factors, other)


def test_missing_and_damaged_files_are_named(made, tmp_path):
    with pytest.raises(ValueError, match="holds no kronecker"):
        kronecker.load(tmp_path, made[0])
    folder = kronecker.save(tmp_path / "a", made[1], max_shard_size=200)
    last = sorted(folder.iterdir())[-1]
    last.unlink()
    with pytest.raises(ValueError, match=f"{last.name} is missing"):
        kronecker.load(folder, made[0])
    sorted(folder.iterdir())[0].write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no readable file"):
        kronecker.load(folder, made[0])


def test_a_sharded_model_reads_its_own_parts(tmp_path):
    config = models.DecoderConfig(vocab_size=32, hidden_size=16, num_attention_heads=4, num_hidden_layers=2,
                                  intermediate_size=24)  # fmt: skip
    model, params = models.init(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = ju.TokenBatch(jnp.asarray(rng.integers(1, 32, (4, 6)), jnp.int32), jnp.ones((4, 6)).at[:, 0].set(0))
    factors = kronecker_factors(model, params, batch)
    kronecker.save(tmp_path / "a", factors)
    _, split = models.init(config, jax.random.key(0), mesh=sharding.make_mesh(2, 2, 2))
    back = kronecker.load(tmp_path / "a", split)
    kept = back.sums["layers/mlp/up_proj/kernel"]["matmul"]["G"]
    assert tuple(kept.sharding.spec) == (None, "fsdp", "tensor")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back.sums), jax.device_get(factors.sums))
    v = tree.normal_like(jax.random.key(1), split)
    # One program: hundreds of small ones in flight, each with collectives, can starve each other on few cores.
    inverse = jax.jit(lambda factors, like, v: from_factors(factors, like).damped(0.1).power(-1.0)(v))
    got = inverse(back, split, v)
    expected = inverse(factors, params, jax.device_get(v))
    np.testing.assert_allclose(flat(jax.device_get(got)), flat(jax.device_get(expected)), atol=1e-4)


def bare(p, x):
    return jnp.tanh(taps.matmul(x, p["in"]) + p["bias"]) @ p["out"]


BARE = {"in": jnp.ones((3, 4)), "bias": jnp.zeros(4), "out": jnp.ones((4, 2))}


@pytest.mark.parametrize(
    ("logits", "settings", "message"),
    [
        (bare, {}, r"out \[4, 2\] is used by an operation that records no factor.*taps.matmul.*diagonal=\('out',\)"),
        (bare, {"only": ("out", "no*")}, "only='no\\*' matches no parameter"),
        (lambda p, x: taps.matmul(x, p["in"]) @ p["out"] + x @ p["in"][:, :2], {}, "besides taps.matmul"),
        (lambda p, x: taps.matmul(taps.matmul(x, 2 * p["in"]), p["out"]), {}, "records no factor"),
        (
            lambda p, x: taps.matmul(taps.matmul(x[None], p["in"])[0], p["out"]),
            {"only": ("in",)},
            r"first axis should count the 5 examples",
        ),
    ],
)  # fmt: skip
def test_a_matrix_without_a_factor_is_an_error(logits, settings, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        KFAC(**settings)(ju.Model(logits=logits), BARE, labelled(5, features=3, classes=2))


def test_a_diagonal_has_to_be_asked_for():
    """It is then the diagonal of the empirical Fisher, from per-example gradients, like that of the raw bias."""
    batch = labelled(5, features=3, classes=2)
    model = ju.Model(logits=bare)
    A = KFAC(fisher="empirical", diagonal=("o*",))(model, BARE, batch)
    assert [A.table[path].block for path in ("in", "out", "bias")] == ["kronecker", "diagonal", "diagonal"]

    def loss(p, i):
        one = jax.tree.map(lambda x: x[i][None], batch)
        return jnp.sqrt(one.loss_mask[0]) * ju.losses.token_nll(one.predict(model, p))[0, 0]

    rows = jax.vmap(jax.grad(loss), (None, 0))(BARE, jnp.arange(5))
    for path in ("out", "bias"):
        expected = jnp.sum(rows[path] ** 2, axis=0) / jnp.sum(batch.loss_mask)
        np.testing.assert_allclose(A(jax.tree.map(jnp.ones_like, BARE))[path], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fisher": "tru"}, "fisher='tru'"),
        ({"labels": "all"}, "labels='all'"),
        ({"samples": 0}, "samples=0"),
        ({"microbatch": 0}, "microbatch=0"),
        ({"only": "layers"}, "tuple of patterns"),
        ({"samples": 2, "fisher": "empirical"}, "can be redrawn"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        KFAC(**settings)


def test_the_host_is_not_reached_from_inside_a_program(made):
    params, factors, _, _ = made
    with pytest.raises(ValueError, match='eigen="device"'):
        jax.jit(lambda f, p: eigendecompose(f, p, eigen="host"))(factors, params)


def test_factors_of_different_settings_do_not_add(made):
    params, factors, _, model = made
    other = kronecker_factors(model, params, tokens(), EKFAC(fisher="empirical"))
    with pytest.raises(ValueError, match="cannot be added"):
        factors + other
    assert float((factors + factors).count) == 2 * float(factors.count)
