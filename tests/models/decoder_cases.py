"""Small decoders that between them use every switch of the configuration, and a loss to differentiate."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import models

SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "llama2: one key-value head a query head, untied": SMALL,
    "grouped queries": SMALL | {"num_key_value_heads": 2},
    "one key-value head": SMALL | {"num_key_value_heads": 1},
    "llama3 rotary scaling": SMALL | {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE, "head_dim": 8},
    "linear rotary scaling": SMALL
    | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}, "num_key_value_heads": 2},
    "tied head": SMALL | {"tie_word_embeddings": True},
    "biases everywhere": SMALL | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "heads wider than their share": SMALL | {"head_dim": 10, "num_key_value_heads": 2},
    "odd sizes, one layer": SMALL
    | {"vocab_size": 37, "hidden_size": 15, "head_dim": 6, "num_attention_heads": 3, "intermediate_size": 17}
    | {"num_hidden_layers": 1},
    "gelu": SMALL | {"hidden_act": "gelu"},
}


def toy(**changes):
    """A model of 2 layers and its parameters, with norms that are not all ones."""
    fields = SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2} | changes
    runtime = {name: fields.pop(name) for name in ("mesh", "attention", "remat", "dtype") if name in fields}
    model, params = models.init(models.DecoderConfig(**fields), jax.random.key(0), **runtime)
    params["norm"]["scale"] = params["norm"]["scale"] * 0.7
    return model, params


def tokens_for(config, batch=2, length=24, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)).astype(np.int32)


def loss(model, params, tokens):
    """Mean next-token cross-entropy, nats."""
    log_probs = jax.nn.log_softmax(model.logits(params, tokens)[:, :-1])
    return -jnp.mean(jnp.take_along_axis(log_probs, jnp.asarray(tokens)[:, 1:, None], axis=-1))


def largest_difference(x, y):
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def gradient_and_product(model, params, tokens, v):
    """Gradient of `loss` and its Hessian-vector product, forward over reverse, in one pass."""
    return jax.jvp(jax.grad(lambda p: loss(model, p, tokens)), (params,), (v,))


def hvp(model, params, tokens, v):
    """Hessian-vector product of `loss`."""
    return gradient_and_product(model, params, tokens, v)[1]
