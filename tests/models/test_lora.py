"""Adapters: nothing until trained, everything a method trains, merged or handed to torch peft without a difference."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import jaxunlearn as ju
from jaxunlearn import losses, methods, models, operators, sharding, tree
from jaxunlearn.curvature import EKFAC, EmpiricalFisher, GaussNewton, GaussNewtonBartlett, Hessian, partition, subset
from jaxunlearn.solvers import CG, ClosedForm

CONFIG = models.DecoderConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
LORA = models.LoRA(rank=2, alpha=3.0)


def shape(rows: int, seed: int = 0) -> ju.TokenBatch:
    tokens = np.random.default_rng(seed).integers(1, 32, (rows, 8)).astype(np.int32)
    return ju.TokenBatch(jnp.asarray(tokens), jnp.ones((rows, 8)).at[:, :3].set(0.0))


def decoder(mesh=None, dtype=jnp.float32, lora=LORA, **how):
    model, params = models.init(CONFIG, jax.random.key(0), mesh=mesh, dtype=dtype, **how)
    return model, params, *models.add_lora(model, params, lora, jax.random.key(1))


def stirred(params):
    """Adapters whose B is not zero, as if trained."""
    chosen, rest = partition(params, models.is_lora)
    wave = lambda x: jax.device_put(jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), x.sharding)
    return ju.curvature.combine({path: wave(x) if path.endswith("lora_b") else x for path, x in chosen.items()}, rest)


def test_new_adapters_change_nothing_and_share_the_weights():
    model, params, tuned, adapted = decoder()
    tokens = shape(3).tokens
    np.testing.assert_array_equal(model.logits(params, tokens), tuned.logits(adapted, tokens))
    kernel = ("layers", "mlp", "up_proj", "kernel")
    a, b = params, adapted
    for key in kernel:
        a, b = a[key], b[key]
    assert a is b
    assert "lora_a" not in params["layers"]["mlp"]["up_proj"]


@pytest.mark.parametrize("how", [{"remat": "none"}, {"remat": "full"}, {"dtype": jnp.bfloat16}], ids=str)
def test_merging_is_the_same_function(how):
    model, _, tuned, adapted = decoder(**how)
    adapted = stirred(adapted)
    plain, merged = models.merge_lora(tuned, adapted)
    assert plain == model
    tokens = shape(3).tokens
    got, want = plain.logits(merged, tokens), tuned.logits(adapted, tokens)
    tolerance = 1e-5 if "dtype" not in how else 0.05  # weights of eight bits
    np.testing.assert_allclose(got, want, atol=tolerance * float(jnp.abs(want).max()))
    assert float(jnp.abs(want - model.logits(decoder(**how)[1], tokens)).max()) > 1e-3


def test_every_adapter_gets_a_gradient_inside_the_scanned_body():
    *_, tuned, adapted = decoder()
    chosen, rest = partition(stirred(adapted), models.is_lora)
    model = ju.curvature.over_chosen(tuned, rest)
    grads = jax.jit(jax.grad(lambda p: losses.nll(model, p, shape(3))[0]))(chosen)
    assert len(grads) == 2 * len(models.LoRA().targets)
    for path, g in grads.items():
        per_layer = jnp.sqrt(jnp.sum(g**2, axis=(1, 2)))
        assert float(per_layer.min()) > 1e-4, path


CURVATURES = {
    "hessian": (Hessian(), CG(4)),
    "gauss_newton": (GaussNewton(), CG(4)),
    "empirical_fisher": (EmpiricalFisher(4), ClosedForm()),
    "ekfac": (EKFAC(), ClosedForm()),
    "bartlett": (GaussNewtonBartlett(), ClosedForm()),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_any_curvature_moves_the_adapters_and_nothing_else(name):
    *_, tuned, adapted = decoder()
    batch = ju.UnlearnBatch(shape(4, 1), shape(4, 2))
    objective = ju.objectives.Objective(((-1.0, ju.objectives.NLL("forget")),))
    method = methods.compose(name, objective, *CURVATURES[name], damping=1.0, step_size=0.1)
    state = ju.init(method._replace(certify=False), tuned, adapted, key=jax.random.key(0), trainable=models.is_lora)
    step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))
    state, info = step(method._replace(certify=False), tuned, state, batch)
    assert bool(info.applied)
    before, rest = partition(adapted, models.is_lora)
    after, still = partition(state.whole(), models.is_lora)
    for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(still), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(tree.norm(tree.sub(after, before))) > 0
    value = lambda p: float(objective.value(tuned, p, batch))
    assert value(state.whole()) < value(adapted)


def test_the_hessian_of_the_adapters_is_the_dense_one():
    with jax.enable_x64(True):
        lora = models.LoRA(rank=1, targets=("q_proj", "down_proj"))
        model, params = models.init(CONFIG, jax.random.key(0), dtype=jnp.float64)
        tuned, adapted = models.add_lora(model, params, lora, jax.random.key(1), dtype=jnp.float64)
        over, chosen = subset(tuned, stirred(adapted), models.is_lora)
        batch = shape(2)
        H = operators.to_dense(Hessian()(over, chosen, batch))
        flat, back = jax.flatten_util.ravel_pytree(chosen)

        def mean(x):
            total, count = losses.nll(over, back(x), batch)
            return total / count

        np.testing.assert_allclose(H, jax.hessian(mean)(flat), atol=1e-10)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one(explicit):
    method = methods.gauss_newton_ascent(max_kl=1e-3, cg_steps=3)._replace(certify=False)
    lora = models.LoRA(rank=2, targets=("q_proj", "down_proj"))
    results = []
    for mesh in (None, sharding.make_mesh(2, 2, 2, explicit=explicit)):
        *_, tuned, adapted = decoder(mesh, lora=lora)
        batch = sharding.shard_batch(jax.device_get(ju.UnlearnBatch(shape(8, 1), shape(8, 2))), mesh)
        state = ju.init(method, tuned, adapted, key=jax.random.key(0), trainable=models.is_lora)
        state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, tuned, state, batch)
        results.append((jax.device_get(state.params), float(info.update_norm)))
        for path, leaf in state.params.items():
            assert mesh is None or isinstance(leaf.sharding, NamedSharding), path
    for path, leaf in results[0][0].items():
        np.testing.assert_allclose(leaf, results[1][0][path], atol=2e-4, err_msg=path)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-2)


def test_the_last_layer_alone_is_bit_identical_below():
    model, params = models.init(CONFIG, jax.random.key(0))
    params = models.split_layers(params, (1, 1))
    method = methods.newton_removal(damping=0.1, step_size=0.1)
    state = ju.init(method, model, params, key=jax.random.key(0), trainable=("layers", "1"))
    assert all(path.startswith("layers/1/") for path in state.params)
    batch = ju.UnlearnBatch(shape(4, 1), shape(4, 2))
    state, info = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, model, state, batch)
    assert bool(info.applied)
    for a, b in zip(
        jax.tree.leaves((params["layers"]["0"], params["norm"])),
        jax.tree.leaves((state.whole()["layers"]["0"], state.whole()["norm"])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_peft_loads_what_we_save_and_we_load_what_peft_saves(tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model, params, tuned, adapted = decoder(lora=models.LoRA(rank=2, alpha=3.0, rank_stabilised=True))
    adapted = stirred(adapted)
    models.save(tmp_path / "base", model, params)
    models.save_adapters(tmp_path / "ours", tuned, adapted, base=str(tmp_path / "base"))
    models.save(tmp_path / "merged", tuned, adapted)
    tokens = shape(3).tokens
    want = np.asarray(tuned.logits(adapted, tokens))

    def torch_logits(module):
        with torch.no_grad():
            return module(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.numpy()

    base = lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    with_ours = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    np.testing.assert_allclose(torch_logits(with_ours), want, atol=1e-5)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    np.testing.assert_allclose(torch_logits(merged), want, atol=1e-5)

    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", "up_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(base(), config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.sin(torch.arange(weight.numel()).float()).reshape(weight.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, with_theirs = models.load_adapters(tmp_path / "theirs", model, params)
    assert loaded.source.lora == models.LoRA(3, 5.0, ("v_proj", "up_proj"))
    np.testing.assert_allclose(loaded.logits(with_theirs, tokens), torch_logits(theirs), atol=1e-5)


@pytest.mark.parametrize("make", [models.fila, models.vila], ids=["fila", "vila"])
def test_a_fisher_initialisation_splits_the_weights_and_keeps_the_function(make):
    model, params = models.init(CONFIG, jax.random.key(0))
    lora = models.LoRA(rank=2, targets=("q_proj", "down_proj"))
    tuned, adapted = make(model, params, lora, shape(3, 1), shape(4, 2), jax.random.key(1))
    tokens = shape(3).tokens
    want = model.logits(params, tokens)
    np.testing.assert_allclose(tuned.logits(adapted, tokens), want, atol=1e-5 * float(jnp.abs(want).max()))
    node, kernel = adapted["layers"]["mlp"]["down_proj"], params["layers"]["mlp"]["down_proj"]["kernel"]
    change = lora.scale * node["lora_a"] @ node["lora_b"]
    np.testing.assert_allclose(node["kernel"] + change, kernel, atol=1e-6)
    assert float(tree.norm(change)) > 0.1 * float(tree.norm(kernel))
    with pytest.raises(ValueError, match="original base"):
        models.save_adapters("nowhere", tuned, adapted)


def test_the_fisher_split_is_the_best_of_its_rank_for_the_columns_that_matter():
    """Against the dense formula: per-example gradients in float64, and Eckart and Young on the weighted matrix."""
    with jax.enable_x64(True):
        model, params = models.init(CONFIG, jax.random.key(0), dtype=jnp.float64)
        lora = models.LoRA(rank=2, targets=("v_proj",))
        forget, retain = shape(3, 1), shape(4, 2)
        _, adapted = models.fila(model, params, lora, forget, retain, jax.random.key(1))
        kernel = params["layers"]["self_attn"]["v_proj"]["kernel"]

        def squares(batch):
            def mean(k, row):
                one = jax.tree.map(lambda x: x[None], row)
                layers = params["layers"] | {"self_attn": params["layers"]["self_attn"] | {"v_proj": {"kernel": k}}}
                total, count = losses.nll(model, params | {"layers": layers}, one)
                return total / count

            rows = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(batch.tokens.shape[0])]
            return np.mean([jax.grad(mean)(kernel, row) ** 2 for row in rows], axis=0)

        d = np.sqrt((squares(forget) / squares(retain)).sum(axis=1))
        base = np.asarray(adapted["layers"]["self_attn"]["v_proj"]["kernel"])
        for layer in range(2):
            left = np.linalg.norm(base[layer] * d[layer])
            s = np.linalg.svd(np.asarray(kernel[layer]) * d[layer], compute_uv=False)
            assert left == pytest.approx(np.sqrt((s[2:] ** 2).sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 5}, "ask for"),
        ({"target_modules": ["q_proj"]}, "unexpected"),
        ({"r": None}, "not the configuration"),
    ],
    ids=str,
)
def test_what_is_not_implemented_or_does_not_fit_is_named(change, message, tmp_path):
    model, params, tuned, adapted = decoder()
    folder = models.save_adapters(tmp_path / "a", tuned, adapted)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        models.load_adapters(folder, model, params)


def test_settings_are_checked():
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"targets": ("head",)}, {"targets": "q_proj"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            models.LoRA(**wrong)
    model, params, tuned, adapted = decoder()
    with pytest.raises(ValueError, match="already"):
        models.add_lora(tuned, adapted, LORA, jax.random.key(0))
    with pytest.raises(ValueError, match="add_lora"):
        models.save_adapters("nowhere", model, params)
