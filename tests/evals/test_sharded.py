"""The passes give the same numbers on a mesh of eight devices, Auto and Explicit, as on one."""

import jax
import numpy as np
import pytest

from jaxunlearn import models
from jaxunlearn.evals.divergence import kl
from jaxunlearn.evals.score import score
from jaxunlearn.sharding import make_mesh

from .bigram import VOCAB, examples

CONFIG = models.DecoderConfig(
    vocab_size=VOCAB + 5,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.5,
)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_sharded_equals_single_device(explicit):
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    alone, one = models.init(CONFIG, jax.random.key(0))
    _, other = models.init(CONFIG, jax.random.key(1))
    spread, one_spread = models.init(CONFIG, jax.random.key(0), mesh=mesh)
    _, other_spread = models.init(CONFIG, jax.random.key(1), mesh=mesh)
    encoded = examples(11)
    ours, theirs = score(alone, one, encoded), score(spread, one_spread, encoded, batch_size=8, mesh=mesh)
    for name in ("log_probs", "means", "stds"):
        np.testing.assert_allclose(
            np.concatenate(getattr(theirs, name)), np.concatenate(getattr(ours, name)), atol=2e-5
        )
    apart = kl(spread, one_spread, other_spread, encoded, batch_size=8, mesh=mesh)
    np.testing.assert_allclose(apart.mean_kl, kl(alone, one, other, encoded).mean_kl, rtol=1e-4)
