"""Unlearning layers and objectives that train something small: formulas, gradients, fusion, what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_cases import STEP, batch_of, decoder, stirred, tokens
from toys import labelled, mlp

import jaxunlearn as ju
from jaxunlearn import methods, models, objectives, tree
from jaxunlearn.curvature import partition


def log_p(logits):
    z = np.asarray(logits, np.float64)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_the_objectives_are_their_formulas():
    model, ref = mlp()
    params = tree.axpy(0.3, tree.normal_like(jax.random.key(3), ref), ref)
    forget, retain = labelled(8, 1), labelled(16, 2)
    reference = ju.Reference(
        retain_top=objectives.reference.top(model, ref, retain, k=3),
        forget_top=objectives.reference.top_with_target(model, ref, forget, k=3),
    )
    batch = ju.UnlearnBatch(forget, retain, reference=reference)

    def means(data):
        """KL to the reference, NLL and KL from uniform, weighted by place."""
        w = np.asarray(data.loss_mask, np.float64)
        p, q = (log_p(model.logits(x, data.inputs)) for x in (params, ref))
        each = (np.exp(q) * (q - p)).sum(-1), -p[np.arange(len(w)), data.labels], -np.log(3) - p.mean(-1)
        return [float((w * x).sum() / w.sum()) for x in each]

    (kl_f, nll_f, _), (kl_r, nll_r, uniform_r) = means(forget), means(retain)
    wanted = {
        methods.eul(): 0.8 * kl_r - kl_f + nll_r - 0.2 * nll_f,
        methods.uld_assistant(): nll_f + 5 * uniform_r,
        methods.memflex(): -0.4 * nll_f + 2 * nll_r,
    }
    for method, value in wanted.items():
        assert float(method.objective.value(model, params, batch)) == pytest.approx(value, rel=1e-5), method.name


def test_unlearning_layers_change_nothing_at_first_and_then_are_the_formula():
    model, params = decoder(lora=None, rank=0)
    longer, more = decoder(lora=None)
    ids = tokens(3).tokens
    np.testing.assert_array_equal(model.logits(params, ids), longer.logits(more, ids))
    assert more["layers"]["mlp"]["up_proj"]["kernel"].shape == params["layers"]["mlp"]["up_proj"]["kernel"].shape
    trained = stirred(more, models.is_unlearning_layer)
    y = ffn_output(model, params, ids, 0)
    down, up = (np.asarray(trained["layers"]["unlearning_layer"][name][0], np.float64) for name in ("down", "up"))
    change = longer.hidden(trained, ids, 1) - model.hidden(params, ids, 1)
    np.testing.assert_allclose(change, gelu(y @ down) @ up, atol=1e-5)
    assert np.abs(change).max() > 1e-2


def gelu(x):
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def ffn_output(model, params, ids, layer):
    """What the feed-forward network of a layer adds: the residual stream with it less that without it."""
    mlp_part = params["layers"]["mlp"]
    kernel = mlp_part["down_proj"]["kernel"].at[layer].set(0.0)
    off = params["layers"] | {"mlp": mlp_part | {"down_proj": {"kernel": kernel}}}
    with_it, without = (model.hidden(p, ids, layer + 1) for p in (params, params | {"layers": off}))
    return np.asarray(with_it, np.float64) - np.asarray(without, np.float64)


def test_one_step_trains_the_layers_and_nothing_else():
    model, params = decoder(lora=None)
    params, batch = stirred(params, models.is_unlearning_layer), batch_of()
    original, before = decoder(lora=None, rank=0)
    tops = lambda p: (
        objectives.reference.top(original, p, batch.retain, k=8),
        objectives.reference.top_with_target(original, p, batch.forget, k=8),
    )
    retain_top, forget_top = jax.jit(tops)(before)
    batch = batch._replace(reference=ju.Reference(retain_top=retain_top, forget_top=forget_top))
    method = methods.eul(learning_rate=1e-3)._replace(certify=False)
    state = ju.init(method, model, params, key=jax.random.key(0), trainable=models.is_unlearning_layer)
    assert sorted(state.params) == ["layers/unlearning_layer/down", "layers/unlearning_layer/up"]
    new, info = STEP(method, model, state, batch)
    assert bool(info.applied)
    assert float(STEP(method, model, new, batch)[1].objective) < float(info.objective)
    frozen, still = (partition(p, lambda path: not models.is_unlearning_layer(path))[0] for p in (params, new.whole()))
    for path, leaf in frozen.items():
        np.testing.assert_array_equal(leaf, still[path])
    assert all(bool((new.params[path] != state.params[path]).all()) for path in state.params)


def test_the_gram_matrices_are_those_of_the_inputs():
    model, params = decoder(lora=None)
    params = stirred(params, models.is_unlearning_layer)
    original, plain = decoder(lora=None, rank=0)
    batch = tokens(3)
    grams = models.input_grams(model, params, batch)
    # The last token predicts nothing, so no loss passes through its place.
    y = ffn_output(original, plain, batch.tokens, 0)[:, :-1].reshape(-1, 16)
    h = gelu(y @ np.asarray(params["layers"]["unlearning_layer"]["down"][0], np.float64))
    for name, x in (("down", y), ("up", h)):
        gram = np.asarray(grams[f"layers/unlearning_layer/{name}"])
        assert gram.shape == (2, x.shape[1], x.shape[1])
        np.testing.assert_allclose(gram[0], x.T @ x, atol=2e-5 * np.abs(x.T @ x).max())
        assert np.linalg.norm(gram[1]) > 0
    with pytest.raises(ValueError, match="add_unlearning_layers"):
        models.input_grams(original, plain, batch)


def test_fusion_is_least_squares():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        X = [rng.normal(size=(2, n, 4)) for n in (9, 5, 7)]
        W = [rng.normal(size=(2, 4, 3)) for _ in X]
        grams = [np.einsum("lni,lnj->lij", x, x) for x in X]
        fused = models.fuse_linear(list(map(jnp.asarray, W)), list(map(jnp.asarray, grams)))
        assert fused.dtype == jnp.float64
        for layer in range(2):
            stacked = np.concatenate([x[layer] for x in X])
            targets = np.concatenate([x[layer] @ w[layer] for x, w in zip(X, W, strict=True)])
            np.testing.assert_allclose(fused[layer], np.linalg.lstsq(stacked, targets, rcond=None)[0], atol=1e-12)


def test_fusion_of_layers():
    """Equal layers stay; what one request alone has seen is its own; what nobody has seen is the mean."""
    rng = np.random.default_rng(1)
    one, other = ({"layers/unlearning_layer/up": jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)} for _ in "ab")
    path = next(iter(one))
    seen = jnp.zeros((2, 4, 4)).at[:, 0, 0].set(5.0)  # the first input only
    grams = [{path: seen}, {path: jnp.zeros((2, 4, 4)).at[:, 1, 1].set(2.0)}]
    fused = models.fuse_unlearning_layers([one, other], grams)[path]
    np.testing.assert_allclose(fused[:, 0], one[path][:, 0], atol=1e-5)
    np.testing.assert_allclose(fused[:, 1], other[path][:, 1], atol=1e-5)
    np.testing.assert_allclose(fused[:, 2:], ((one[path] + other[path]) / 2)[:, 2:], atol=1e-5)
    same = models.fuse_unlearning_layers([one, one], grams)[path]
    np.testing.assert_allclose(same, one[path], atol=1e-5)
    nothing = models.fuse_linear([one[path], other[path]], [jnp.zeros((2, 4, 4))] * 2)
    np.testing.assert_allclose(nothing, (one[path] + other[path]) / 2, atol=1e-6)


def test_what_does_not_fit_is_named(tmp_path):
    model, params = decoder(lora=None)
    with pytest.raises(ValueError, match=r"no place for unlearning layers.*orbax.*add_lora"):
        models.save(tmp_path / "out", model, params)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no place for the unlearning layers"):
        models.save_adapters(tmp_path / "out", *decoder())
    with pytest.raises(ValueError, match="already"):
        models.add_unlearning_layers(model, params, 2, jax.random.key(0))
    with pytest.raises(ValueError, match="rank=0"):
        models.add_unlearning_layers(*decoder(lora=None, rank=0), 0, jax.random.key(0))
    for wrong, make in (
        ("similarity=2", lambda: methods.memflex(similarity=2.0)),
        ("magnitude=-1", lambda: methods.memflex(magnitude=-1.0)),
        ("on='alternative'", lambda: objectives.MaxEntropy("alternative")),
        ("damping=-1", lambda: models.fuse_unlearning_layers([{}], [{}], damping=-1.0)),
        ("1 layers and 0 grams", lambda: models.fuse_unlearning_layers([{}], [])),
        ("same paths", lambda: models.fuse_unlearning_layers([{"a": params}], [{"b": params}])),
        ("retain_top", lambda: methods.eul().objective.value(mlp()[0], mlp()[1], ju.UnlearnBatch(labelled(2)))),
    ):
        with pytest.raises(ValueError, match="forget_top" if wrong == "retain_top" else wrong):
            make()
