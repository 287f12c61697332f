"""The lowest layers as a model, and as the assistant whose logits are taken off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapter_cases import CONFIG, SIZES, STEP, batch_of, tokens

import jaxunlearn as ju
from jaxunlearn import losses, methods, models, objectives
from jaxunlearn.objectives import Objective


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
