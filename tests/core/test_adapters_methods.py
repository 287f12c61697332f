"""Methods that train something small beside the model: located adapters, unlearning layers, an assistant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import flat, labelled, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import losses, methods, models, objectives, sharding, tree
from jaxunlearn.curvature import combine, partition
from jaxunlearn.objectives import Objective

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}
CONFIG = models.DecoderConfig(num_hidden_layers=2, num_key_value_heads=2, initializer_range=0.2, **SIZES)
STEP = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


def tokens(rows, seed=0, length=8):
    ids = np.random.default_rng(seed).integers(1, 32, (rows, length)).astype(np.int32)
    return ju.TokenBatch(jnp.asarray(ids), jnp.ones((rows, length)).at[:, :3].set(0.0))


def batch_of(rows=4):
    return ju.UnlearnBatch(tokens(rows, 1), tokens(rows, 2))


def stirred(params, select, size=0.3):
    """The chosen leaves as if trained: none of them zero."""
    chosen, rest = partition(params, select)
    wave = lambda x: x + jax.device_put(size * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), x.sharding)
    return combine({path: wave(x) for path, x in chosen.items()}, rest)


def small_and_new(path):
    return models.is_lora(path) or models.is_unlearning_layer(path)


def decoder(mesh=None, lora=("q_proj", "down_proj"), rank=3, dtype=jnp.float32):
    model, params = models.init(CONFIG, jax.random.key(0), mesh=mesh, dtype=dtype)
    if lora:
        model, params = models.add_lora(model, params, models.LoRA(2, 3.0, lora), jax.random.key(1), dtype=dtype)
    if rank:
        model, params = models.add_unlearning_layers(model, params, rank, jax.random.key(2), dtype=dtype)
    return model, params


def modules_of(forget, retain):
    """Float64 gradients of each module and layer, in one vector each: `{(module, layer): (forget, retain)}`."""
    modules = {}
    for path in forget:
        stem, _, leaf = path.rpartition("/")
        for layer in range(forget[path].shape[0]) if path.startswith("layers/") else [...]:
            pair = [np.asarray(g[path], np.float64)[layer].ravel() for g in (forget, retain)]
            modules.setdefault((stem if leaf.startswith("lora_") else path, layer), []).append(pair)
    return {name: [np.concatenate(side) for side in zip(*pairs, strict=True)] for name, pairs in modules.items()}


def located_by_hand(modules, similarity, magnitude):
    cosine = lambda f, r: f @ r / np.sqrt(f @ f * (r @ r))
    return {name for name, (f, r) in modules.items() if cosine(f, r) < similarity and np.abs(f).mean() > magnitude}


def test_modules_are_located_as_by_hand():
    rng = np.random.default_rng(0)
    shapes = {
        "layers/attn/q_proj/lora_a": (3, 5, 2),
        "layers/attn/q_proj/lora_b": (3, 2, 4),
        "layers/attn/q_proj/kernel": (3, 5, 4),
        "layers/norm": (3, 5),
        "head": (5, 7),
        "bias": (7,),
    }
    f = {path: rng.normal(size=s).astype(np.float32) * (1 + 3 * (len(path) % 2)) for path, s in shapes.items()}
    r = {path: (f[path] * rng.normal() + rng.normal(size=s)).astype(np.float32) for path, s in shapes.items()}
    modules, sizes = modules_of(f, r), set()
    for similarity in (-0.5, 0.1, 0.92, 1.0):
        for magnitude in (0.0, 1.0, 2.5, 9.0):
            found = located_by_hand(modules, similarity, magnitude)
            masks = methods.located_modules(f, r, similarity=similarity, magnitude=magnitude)
            for path, mask in masks.items():
                name = path.rsplit("/", 1)[0] if "lora_" in path else path
                assert mask.ndim == (f[path].ndim if path.startswith("layers/") else 0)
                wanted = [(name, layer) in found for layer in range(3)] if mask.ndim else (name, ...) in found
                assert np.asarray(mask).reshape(np.shape(wanted)).tolist() == wanted, path
            sizes.add(len(found))
    assert {0, len(modules)} < sizes  # none, all, and some in between


@pytest.fixture(scope="module")
def located():
    """Two steps on adapters and unlearning layers, by an optimiser with moments and decay; what located them."""
    model, params = decoder()
    params, batch = stirred(params, small_and_new), batch_of(8)
    chosen, rest = partition(params, small_and_new)
    over = ju.curvature.over_chosen(model, rest)
    mean = lambda p, data: (lambda total, count: total / count)(*losses.nll(over, p, data))
    modules = modules_of(*jax.jit(lambda p: [jax.grad(mean)(p, data) for data in (batch.forget, batch.retain)])(chosen))
    limit = float(np.median([np.abs(f).mean() for f, _ in modules.values()]))
    optimizer = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.1))
    method = methods.memflex(magnitude=limit, similarity=1.0, optimizer=optimizer)._replace(certify=False)
    states = [ju.init(method, model, params, key=jax.random.key(0), trainable=small_and_new)]
    for seed in (1, 5):
        states.append(STEP(method, model, states[-1], batch._replace(forget=tokens(8, seed)))[0])
    return method, states, modules, located_by_hand(modules, 1.0, limit)


def test_the_first_step_locates_and_the_others_keep_to_it(located):
    _, (start, first, second), modules, found = located
    assert 0 < len(found) < len(modules)
    assert not bool(start.opt_state.located)
    assert float(start.opt_state.share()) == 0
    for path, mask in first.opt_state.masks.items():
        name = path.rsplit("/", 1)[0] if "lora_" in path else path
        assert mask[:, 0, 0].tolist() == [(name, layer) in found for layer in range(2)]
        np.testing.assert_array_equal(mask, second.opt_state.masks[path])
    share = np.mean([np.asarray(mask).mean() for mask in first.opt_state.masks.values()])
    assert float(first.opt_state.share()) == pytest.approx(share)


def test_outside_nothing_moves_and_no_moment_drifts(located):
    _, (start, _, end), *_ = located
    for path, mask in end.opt_state.masks.items():
        inside = np.broadcast_to(mask, end.params[path].shape)
        before, after = np.asarray(start.params[path]), np.asarray(end.params[path])
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert not np.asarray(end.opt_state.inner[0].trace[path])[~inside].any()
        assert (after[inside] != before[inside]).all()


@pytest.mark.slow
def test_eight_devices_equal_one(located):
    """On Explicit axes, where masks and layouts are part of the types."""
    method, (_, alone, _), *_ = located
    mesh = sharding.make_mesh(2, 2, 2, explicit=True)
    model, params = decoder(mesh)
    batch = sharding.shard_batch(jax.device_get(batch_of(8)), mesh)
    state = ju.init(method, model, stirred(params, small_and_new), key=jax.random.key(0), trainable=small_and_new)
    spread, _ = STEP(method, model, state, batch)
    assert bool(spread.opt_state.located)
    for path, leaf in spread.params.items():
        assert leaf.sharding.is_equivalent_to(state.params[path].sharding, leaf.ndim), path
        np.testing.assert_array_equal(spread.opt_state.masks[path], alone.opt_state.masks[path])
        np.testing.assert_allclose(leaf, alone.params[path], atol=2e-5, err_msg=path)


def test_without_adapters_the_modules_are_leaves_and_the_step_is_the_masked_gradient():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    term = lambda on: Objective(((1.0, objectives.NLL(on)),))
    parts = jax.jit(lambda p: [term(on).value_and_grad(model, p, batch)[1] for on in ("forget", "retain")])(params)
    leaves = [[np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(g)] for g in parts]
    f_size = [np.abs(f).mean() for f in leaves[0]]
    magnitude = float(np.mean(sorted(f_size)[1:3]))
    method = methods.memflex(similarity=0.99, magnitude=magnitude, optimizer=optax.sgd(0.5))._replace(certify=False)
    state, _ = STEP(method, model, ju.init(method, model, params, key=jax.random.key(0)), batch)
    cosines = [f @ r / np.linalg.norm(f) / np.linalg.norm(r) for f, r in zip(*leaves, strict=True)]
    keep = [c < 0.99 and s > magnitude for c, s in zip(cosines, f_size, strict=True)]
    assert 0 < sum(keep) < len(keep)
    step = [np.where(k, -0.5 * (-0.4 * f + 2 * r), 0.0) for k, f, r in zip(keep, *leaves, strict=True)]
    np.testing.assert_allclose(flat(state.params) - flat(params), np.concatenate(step), atol=1e-6)


def test_masks_may_come_from_elsewhere_and_a_broken_batch_locates_nothing():
    model, params = mlp()
    batch = unlearn_batch(model, params)
    method = methods.memflex(magnitude=0.0, optimizer=optax.sgd(0.1))._replace(certify=False)
    start = ju.init(method, model, params, key=jax.random.key(0))
    broken = batch._replace(retain=batch.retain._replace(inputs=batch.retain.inputs * jnp.nan))
    state, info = STEP(method, model, start, broken)
    assert not bool(info.applied)
    assert not bool(state.opt_state.located)
    masks = jax.tree.map(lambda x: jnp.array(x.ndim == 1), params)  # biases alone
    given = start._replace(opt_state=start.opt_state._replace(masks=masks, located=jnp.array(True)))
    state, _ = STEP(method, model, given, batch)
    for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        assert bool(jnp.any(new != old)) == (new.ndim == 1)


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


@pytest.mark.parametrize("cut", [None, (1, 2), (2, 1), (1, 1, 1)], ids=str)
def test_the_lowest_layers_are_the_model_whose_others_do_nothing(cut):
    """A block whose last matrices are zero is the identity."""
    config = models.DecoderConfig(num_hidden_layers=3, **SIZES)
    model, params = models.init(config, jax.random.key(0))
    whole = params if cut is None else models.split_layers(params, cut)
    small, lowest = models.truncate_layers(model, whole, 2)
    if cut is None:
        assert lowest["embed_tokens"] is params["embed_tokens"]
    layers = params["layers"]
    silent = {
        part: layers[part] | {name: {"kernel": layers[part][name]["kernel"].at[2].set(0.0)}}
        for part, name in (("self_attn", "o_proj"), ("mlp", "down_proj"))
    }
    ids = tokens(3).tokens
    np.testing.assert_allclose(
        small.logits(lowest, ids), model.logits(params | {"layers": layers | silent}, ids), atol=1e-6
    )
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"layers={wrong}.*has 3 layers"):
            models.truncate_layers(model, params, wrong)


def fit(method, model, params, batch, steps):
    method = method._replace(certify=False)
    state = ju.init(method, model, jax.tree.map(jnp.copy, params), key=jax.random.key(0))
    for _ in range(steps):
        state, _ = STEP(method, model, state, batch)
    return state.params


def test_an_assistant_makes_the_combination_forget_and_keep():
    """A model that has memorised both sets; its lowest layer, trained for a few steps, is subtracted."""
    batch = batch_of()
    model, params = models.init(CONFIG, jax.random.key(0))
    learn = Objective(((1.0, objectives.NLL("forget")), (1.0, objectives.NLL("retain"))))
    params = fit(
        methods.Method("learn", learn, optax.with_extra_args_support(optax.adam(1e-2))), model, params, batch, 60
    )
    small, start = models.truncate_layers(model, params, 1)
    assistant = fit(methods.uld_assistant(learning_rate=1e-2), small, start, batch, 60)
    combined = models.uld(model, small, ratio=0.001)

    @jax.jit
    def mean_nll(model_params, both):
        pairs = ((model, model_params), (combined, both))
        return [[losses.nll(m, p, data)[0] / losses.nll(m, p, data)[1] for m, p in pairs] for data in batch[:2]]

    (forget_before, forget), (retain_before, retain) = jax.device_get(mean_nll(params, (params, assistant)))
    assert max(forget_before, retain_before) < 0.5
    assert forget - forget_before > 1.0
    assert forget - forget_before > 5 * (retain - retain_before)


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
