"""Task-vector negation on trees and on checkpoint folders."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp

from jaxunlearn import losses, methods, models, tree


def test_it_is_the_arithmetic_in_every_dtype():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 3))
    for dtype, eps in [(jnp.bfloat16, 2**-8), (jnp.float32, 2**-23)]:
        before, after = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
        exact = (x := np.asarray(before, np.float64)) - 0.7 * (np.asarray(after, np.float64) - x)
        got = methods.task_vector({"w": before}, {"w": after}, scale=0.7)["w"]
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, np.float64), exact, atol=0, rtol=4 * eps + 1e-6)
    np.testing.assert_array_equal(methods.task_vector(before, after, scale=0.0), before)
    np.testing.assert_allclose(methods.task_vector(before, after, scale=-1.0), after, atol=1e-6)


def test_what_was_learnt_too_well_is_lost():
    """Some steps on forget, and as far back beyond the start: its loss rises by `scale` of the fall, to first order."""
    model, params = mlp()
    forget = labelled(6, 1)
    mean = lambda p: losses.nll(model, p, forget)[0] / jnp.sum(forget.loss_mask)
    step = jax.jit(lambda p: tree.axpy(-0.01, jax.grad(mean)(p), p))
    overfit = params
    for _ in range(5):
        overfit = step(overfit)
    before = float(mean(params))
    fall = before - float(mean(overfit))
    assert fall > 0
    for scale in (0.5, 1.0):
        rise = float(mean(methods.task_vector(params, overfit, scale=scale))) - before
        assert rise == pytest.approx(scale * fall, rel=0.15)


def test_different_models_are_refused():
    _, params = mlp()
    _, wider = mlp(sizes=(6, 9, 3))
    with pytest.raises(ValueError, match=r"\[0\]\['b'\] is \[8\] before and \[9\] after"):
        methods.task_vector(params, wider)
    with pytest.raises(ValueError, match="different parameters"):
        methods.task_vector(params, params[:1])


def test_checkpoint_folders(tmp_path):
    config = models.DecoderConfig(
        vocab_size=16, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12
    )
    model, params = models.init(config, jax.random.key(0))
    overfit = tree.axpy(0.1, tree.normal_like(jax.random.key(1), params), params)
    for name, tensors in (("before", params), ("after", overfit)):
        models.save(tmp_path / name, model, tensors)
    out = models.negate_task_vector(tmp_path / "before", tmp_path / "after", tmp_path / "out", scale=0.5)
    _, loaded = models.load(out)
    np.testing.assert_allclose(flat(loaded), flat(params) - 0.5 * (flat(overfit) - flat(params)), atol=1e-6)
    assert "scale 0.5" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="out"):  # nothing is written over
        models.negate_task_vector(tmp_path / "before", tmp_path / "after", tmp_path / "out", scale=0.5)
    settings = tmp_path / "after" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(ValueError, match="different architectures"):
        models.negate_task_vector(tmp_path / "before", tmp_path / "after", tmp_path / "no", scale=0.5)
    assert not (tmp_path / "no").exists()
