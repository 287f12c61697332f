"""Small problems with dense oracles: a pure-JAX MLP classifier, ridge regression as a 'classifier' of Gaussians."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxunlearn as ju
from jaxunlearn import losses, taps
from jaxunlearn.types import TopK


def mlp(sizes=(6, 8, 3), activation=jnp.tanh, seed=0, dtype=jnp.float32):
    """A hand-written classifier: `(model, params)`, params a list of weight and bias dicts."""

    def logits(params, x):
        for layer in params[:-1]:
            x = activation(taps.matmul(x, layer["w"]) + layer["b"])
        return taps.matmul(x, params[-1]["w"]) + params[-1]["b"]

    rng = np.random.default_rng(seed)
    params = [
        {
            "w": jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), dtype),
            "b": jnp.asarray(0.1 * rng.normal(size=b), dtype),
        }
        for a, b in itertools.pairwise(sizes)
    ]
    return ju.Model(logits=logits), params


def labelled(n, seed=0, features=6, classes=3, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return ju.LabelledBatch(
        jnp.asarray(rng.normal(size=(n, features)), dtype),
        jnp.asarray(rng.integers(0, classes, n), jnp.int32),
        jnp.asarray(rng.uniform(0.5, 1.5, n), dtype),
    )


def unlearn_batch(model, params, n_forget=8, n_retain=16):
    """Forget and retain rows with every stored reference a method of this release can ask for."""
    forget, retain = labelled(n_forget, 1), labelled(n_retain, 2)
    other = forget._replace(labels=(forget.labels + 1) % 3)
    uniform = TopK(
        jnp.broadcast_to(jnp.arange(3, dtype=jnp.int32), (n_forget, 1, 3)),
        jnp.full((n_forget, 1, 3), -jnp.log(3.0)),
        jnp.ones((n_forget, 1)),
    )
    reference = ju.Reference(
        forget_nll=ju.objectives.reference.forget_nll(model, params, forget),
        retain_top=ju.objectives.reference.top(model, params, retain, k=2),
        counterfactual_top=uniform,
        alternative_nll=ju.objectives.reference.sequence_nll(model, params, other),
        forget_top=ju.objectives.reference.top_with_target(model, params, forget, k=2),
        retain_top_all=ju.objectives.reference.top_all(model, params, retain, k=2),
    )
    refusal = retain._replace(labels=jnp.zeros_like(retain.labels))
    return ju.UnlearnBatch(forget, retain, other, reference, retain_alternative=refusal)


def flat(tree):
    return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)])


def unflatten_like(vector, tree):
    leaves, structure = jax.tree.flatten(tree)
    cuts = np.cumsum([x.size for x in leaves])[:-1]
    return jax.tree.unflatten(
        structure, [p.reshape(x.shape) for p, x in zip(jnp.split(vector, cuts), leaves, strict=True)]
    )


def token_batch(rng, rows, length=12, vocab=32, prompt=4):
    tokens = jnp.asarray(rng.integers(1, vocab, (rows, length)), jnp.int32)
    mask = jnp.zeros((rows, length)).at[:, prompt:].set(1.0)
    positions = jnp.broadcast_to(jnp.arange(prompt, length, dtype=jnp.int32), (rows, length - prompt))
    return ju.TokenBatch(tokens, mask, positions)


def shard(params, batch, mesh):
    """Weights over (fsdp, tensor) wherever they divide, rows over (data, fsdp)."""

    def put(x, axes):
        fitted = [
            a if a is not None and x.shape[i] % np.prod([mesh.shape[n] for n in np.atleast_1d(a)]) == 0 else None
            for i, a in enumerate(axes[: x.ndim])
        ]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*fitted)))

    return (
        jax.tree.map(lambda x: put(x, ("fsdp", "tensor")), params),
        jax.tree.map(lambda x: put(x, (("data", "fsdp"),)), batch),
    )


def gathering(logits, mesh):
    """A model that gathers its weights before using them: FSDP, spelt out."""
    whole = NamedSharding(mesh, PartitionSpec())
    return lambda params, x: logits(jax.tree.map(lambda w: jax.sharding.reshard(w, whole), params), x)


def mean_nll(model, params, batch):
    """The loss whose curvature is taken, nats per loss token."""
    total, count = losses.nll(model, params, batch)
    return total / count


def dense_problem(activation=jnp.tanh):
    """A network and twelve labelled rows in float64, small enough for dense matrices."""
    model, params = mlp(activation=activation, dtype=jnp.float64)
    return model, params, labelled(12, dtype=jnp.float64)
