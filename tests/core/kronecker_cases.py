"""A small language model made of tapped operations, in which positions mix, and dense oracles of its curvature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from toys import flat, labelled, mlp, unflatten_like

import jaxunlearn as ju
from jaxunlearn import losses, taps

V, D, T = 7, 4, 5


@functools.lru_cache  # one object a case, so that its compiled passes are shared by all tests
def lm(*, tied=False, scanned=True, bias=True, dtype=jnp.float64, seed=0):
    """Embedding, two causal mixing layers, gain, head: `(model, params)`."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(D), dtype)
    layers = {"w": draw(2, D, D), "u": draw(2, D, D)} | ({"b": draw(2, D)} if bias else {})
    if not scanned:
        layers = [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(2)]
    params = {"embed": draw(V, D), "layers": layers, "gain": 1 + draw(D)} | ({} if tied else {"head": draw(D, V)})

    def mix(x, layer):
        w, u = layer["w"], layer["u"]
        a, c = taps.products(x, (x @ taps.value(w), x @ taps.value(u)), (w, u))
        if bias:
            a = taps.shift(a, layer["b"])
        past = jnp.cumsum(jnp.tanh(a), axis=1) / jnp.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return (x + past * c).astype(x.dtype), None

    def logits(p, tokens):
        x = taps.lookup(tokens, p["embed"])
        if scanned:
            x, _ = jax.lax.scan(jax.checkpoint(mix, prevent_cse=False), x, p["layers"])
        else:
            for layer in p["layers"]:
                x, _ = mix(x, layer)
        x = taps.scale(x, p["gain"])
        return taps.matmul(x, p["embed"], transposed=True) if tied else taps.matmul(x, p["head"])

    return ju.Model(logits=logits), params


def tokens(rows=4, length=T, seed=0):
    """Random sequences whose loss tokens begin after two and end before the last, of weights other than 1."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((rows, length))
    mask[:, 2 : length - 1] = rng.choice([0.25, 1.0, 2.25], (rows, length - 3))  # with exact roots in f32
    return ju.TokenBatch(jnp.asarray(rng.integers(0, V, (rows, length)), jnp.int32), jnp.asarray(mask, jnp.float32))


def example_rows(model, params, batch):
    """`u_b = sum_t sqrt(w_t) grad nll_t` of the data's labels, one a row, and n."""

    def total(v, i):
        one = jax.tree.map(lambda x: x[i][None], batch)
        predictions = one.predict(model, unflatten_like(v, params))
        return jnp.sum(jnp.sqrt(predictions.weights) * losses.token_nll(predictions))

    B = jax.tree.leaves(batch)[0].shape[0]
    rows = jax.jit(jax.vmap(jax.grad(total), (None, 0)))(flat(params), jnp.arange(B))
    return rows, jnp.sum(batch.predict(model, params).weights)


def fisher(model, params, batch):
    """The dense empirical Fisher."""
    rows, n = map(np.asarray, example_rows(model, params, batch))
    return rows.T @ rows / n


def blocks(dense, params):
    """`[(path, diagonal block of a dense matrix)]`, one a parameter."""
    dense = np.asarray(dense)
    leaves, cut, out = jax.tree_util.tree_flatten_with_path(params)[0], 0, []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        out.append((name, dense[cut : cut + leaf.size, cut : cut + leaf.size]))
        cut += leaf.size
    return out


def basis(operator, row):
    """The dense orthonormal eigenbasis of one row's block, eigenvectors in columns."""
    m, n = row.shape[-2:]
    left, right = jax.device_get(operator.eigen.basis(row))
    stacks = int(np.prod(row.shape[: row.stacked]))
    left = np.broadcast_to(np.eye(m) if left is None else left, (*row.shape[: row.stacked], m, m)).reshape(-1, m, m)
    right = np.broadcast_to(np.eye(n) if right is None else right, (*row.shape[: row.stacked], n, n)).reshape(-1, n, n)
    Q = np.zeros((stacks * m * n,) * 2)
    for i in range(stacks):
        part = slice(i * m * n, (i + 1) * m * n)
        Q[part, part] = np.kron(left[i], right[i])
    return Q


@functools.cache
def problem(sizes=(6, 5, 3), n=1):
    """A hand-written classifier in float64, and `n` examples."""
    model, params = mlp(sizes=sizes, dtype=jnp.float64)
    return model, params, labelled(n, dtype=jnp.float64)


def assert_same(got, expected, atol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
