"""Products and solves on a small LLaMA against other libraries: torch, curvlinops, lineax, matfree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat

from jaxunlearn import models, tree
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.operators import LinearOperator, to_dense
from jaxunlearn.solvers import CG
from jaxunlearn.types import TokenBatch

CONFIG = models.DecoderConfig(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def llama():
    model, params = models.init(CONFIG, jax.random.key(0))
    shape = (3, 12)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, CONFIG.vocab_size)
    batch = TokenBatch(tokens, jnp.ones(shape).at[:, 0].set(0.0))
    return model, params, batch, tree.normal_like(jax.random.key(2), params)


@pytest.fixture(scope="module")
def torch_side(llama):
    pytest.importorskip("torch")
    from torch_peers import Peer

    return Peer(CONFIG, *llama)


@pytest.mark.parametrize(
    ("route", "recipe"),
    [
        ("torch: double backward", Hessian()),
        ("torch: double backward", Hessian(mode="linearize")),
        ("torch.func: jvp of grad", Hessian()),
        ("curvlinops: Gauss-Newton", GaussNewton()),
    ],
)
def test_products_agree_with_torch(llama, torch_side, route, recipe):
    model, params, batch, v = llama
    if route.startswith("curvlinops"):
        pytest.importorskip("curvlinops")
    theirs = torch_side.routes()[route]()()
    ours = torch_side.ordered(jax.jit(lambda p, b, v: recipe(model, p, b)(v))(params, batch, v))
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(theirs, ours, strict=True)) ** 0.5
    assert error <= 2e-5 * sum(float((b**2).sum()) for b in ours) ** 0.5


def test_a_damped_gauss_newton_solve_agrees_with_lineax(llama):
    lineax = pytest.importorskip("lineax")
    model, params, batch, v = llama

    @jax.jit
    def both(params, batch, v):
        A = GaussNewton()(model, params, batch).damped(1.0)
        ours, _ = CG(60, 1e-6, progress=None)(A, v)
        operator = lineax.FunctionLinearOperator(A, jax.eval_shape(lambda: v), lineax.positive_semidefinite_tag)
        theirs = lineax.linear_solve(operator, v, lineax.CG(rtol=1e-6, atol=1e-6, max_steps=60), throw=False).value
        return ours, theirs

    ours, theirs = both(params, batch, v)
    assert float(tree.norm(tree.sub(ours, theirs))) <= 1e-4 * float(tree.norm(ours))


def test_the_spectrum_agrees_with_matfree(llama):
    """Ritz values of the Hessian's block on the norms, a symmetric matrix that both can be given whole."""
    decomp = pytest.importorskip("matfree.decomp")
    from jaxunlearn.solvers import lanczos

    model, params, batch, _ = llama
    norms = {"layers": {"input_layernorm": params["layers"]["input_layernorm"]}, "norm": params["norm"]}

    def merged(new):
        layers = params["layers"] | {"input_layernorm": new["layers"]["input_layernorm"]}
        return params | {"layers": layers, "norm": new["norm"]}

    part = model._replace(
        logits=lambda new, x: model.logits(merged(new), x), hidden=None, logits_at=None, head=None, head_rows=None
    )
    H = to_dense(Hessian()(part, norms, batch))
    start = flat(tree.normal_like(jax.random.key(3), norms))
    ours = lanczos(LinearOperator(lambda v: H @ v, start), start, 12)
    T = np.diag(ours.diagonal) + np.diag(ours.off_diagonal[:11], 1) + np.diag(ours.off_diagonal[:11], -1)
    theirs = decomp.tridiag_sym(12, reortho="full")(lambda v: H @ v, start).J_small
    np.testing.assert_allclose(np.linalg.eigvalsh(T), np.linalg.eigvalsh(theirs), atol=1e-4 * np.abs(T).max())
