"""A run killed in some of its steps and gone on with, on a bigram model that needs no compilation worth the name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn import losses
from jaxunlearn.data import Encoded
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.types import Model

BIGRAM = Model(logits=lambda table, tokens: table[tokens])


def table(mesh=None):
    w = 0.5 * jax.random.normal(jax.random.key(0), (16, 16))
    return w if mesh is None else jax.device_put(w, NamedSharding(mesh, PartitionSpec("fsdp")))


def texts(count, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 16, n).astype(np.int32) for n in rng.integers(4, 15, count)]
    return [Encoded(row, np.r_[0.0, np.ones(len(row) - 1)], np.zeros((len(row), 2)), "", None) for row in rows]


GONE, KEPT = texts(6, 1), texts(23, 2)


class CrashError(Exception):
    """In place of the power failure."""


def crash(at):
    """A callback that ends the process, as it were, in step `at`, before that step is saved."""
    seen = []

    def advance(*args, **facts):
        seen.append(args[0] if args else 1)
        if sum(seen) >= at:
            raise CrashError

    return advance


def killed(run, folder, *steps, every=2):
    """`run(checkpoints, advance)`, killed in each of the steps in turn and then left alone; and what that life saw."""
    for step in steps:
        with pytest.raises(CrashError), Checkpoints(folder, every=every) as checkpoints:
            run(checkpoints, crash(step))
    seen = []
    with Checkpoints(folder, every=every) as checkpoints:
        return run(checkpoints, lambda *args, **facts: seen.append(args or facts)), seen


def same(a, b):
    a, b = (jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, t) for t in (a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _is_key(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@jax.jit
def mean_loss(w, batch):
    total, count = losses.nll(BIGRAM, w, batch)
    return total / count
