"""A small decoder with something small to train beside it, and batches for it."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.curvature import combine, partition

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
