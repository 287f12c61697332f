"""The passes give the same numbers on a mesh of eight devices, Auto and Explicit, as on one."""

import jax
import numpy as np
import pytest

from jaxunlearn import models
from jaxunlearn.evals.divergence import kl
from jaxunlearn.evals.score import score
from jaxunlearn.sharding import make_mesh

from .bigram import VOCAB, example

CONFIG = models.DecoderConfig(
    vocab_size=VOCAB + 5,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.5,
)


ENCODED = [example([(3 * i + j) % VOCAB for j in range(10 + i)], prompt=2 + i) for i in range(7)]
COLUMNS = ("log_probs", "means", "stds")


def measure(mesh=None):
    model, one = models.init(CONFIG, jax.random.key(0), mesh=mesh, remat="none")
    _, other = models.init(CONFIG, jax.random.key(1), mesh=mesh, remat="none")
    scores = score(model, one, ENCODED, batch_size=8, mesh=mesh)
    apart = kl(model, one, other, ENCODED, batch_size=8, mesh=mesh)
    return [np.concatenate(getattr(scores, name)) for name in COLUMNS] + [np.concatenate(apart.kl)]


@pytest.fixture(scope="module")
def alone():
    return measure()


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_sharded_equals_single_device(alone, explicit):
    spread = measure(make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit))
    for ours, theirs in zip(alone, spread, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=2e-5, rtol=1e-4)
    assert alone[-1].min() > 1e-4
