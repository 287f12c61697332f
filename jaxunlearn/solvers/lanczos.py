"""Lanczos tridiagonalisation: everything that k products can say about a symmetric operator, seen from one vector.

From `v` it builds orthonormal rows `Q` (k of them, the first `v / ||v||`) and a tridiagonal `T` (k x k) with

    A Q^T = Q^T T + r e_k^T,        Q Q^T = I,        Q r = 0

so that within the Krylov space `span(v, A v, ..., A^(k-1) v)` the operator *is* `T`, and whatever is asked of A there
(a solve, a power, every damping, a cubic or trust-region step) is a k x k problem: see `krylov` and `trust_region`.

1. Each new vector is orthogonalised against all earlier ones, twice, which keeps `Q Q^T = I` to rounding however
   clustered the spectrum is ("twice is enough", Parlett 1998, section 6.9). Without it Lanczos finds outlying
   eigenvalues again and again, and the spectra of neural networks are nearly all outliers and clusters.
2. When the Krylov space is exhausted (what is left of a product is rounding), it stops there with a status: later rows
   are zero and T is padded with entries that nothing couples to. Nothing is divided by zero. A remainder somewhat
   above rounding is gone on with: it is orthogonal to all rows like any other, and coupled by no more than its size.
3. The coefficients are leafwise sums, so the basis stays sharded like the parameters behind its leading axis.

Memory: the basis takes `4 k` bytes a parameter in f32, spread over the devices as the parameters are; where that is
too much, `host_basis` keeps it in the hosts' memory. Beyond the products, a step reads the basis four times.

References: Lanczos 1950; Parlett, "The symmetric eigenvalue problem", SIAM 1998; Ghorbani, Krishnan and Xiao, "An
investigation into neural net optimization via Hessian eigenvalue density", ICML 2019 (spectra of networks).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.solvers import block, host_basis
from jaxunlearn.solvers.host_basis import HostBasis
from jaxunlearn.solvers.protocol import RUNNING
from jaxunlearn.solvers.status import Status
from jaxunlearn.solvers.tridiagonal import Tridiagonalization


class LanczosState(NamedTuple):
    """State between two products.

    Attributes:
        basis: rows found so far, later ones zero, leaves [k, *shape].
        vector: the next direction, of unit length.
        diagonal: `alpha_1 ... alpha_steps`, shape [k].
        off_diagonal: `beta_1 ... beta_steps`, shape [k]; the last one is `||r||`.
        norm: length of the start vector.
        carried: what a solver will need at the end beside the run, such as the start of a solve; or `None`.
        b_norm: `||b||` of a solve that starts elsewhere, `norm` otherwise.
        steps: products taken in.
        status: a `Status` code.
    """

    basis: PyTree
    vector: PyTree
    diagonal: Float[Array, " k"]
    off_diagonal: Float[Array, " k"]
    norm: Float[Array, ""]
    carried: PyTree | None
    b_norm: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]


def lanczos(
    A: Callable[[PyTree], PyTree], v: PyTree, steps: int, *, breakdown: float | None = None
) -> Tridiagonalization:
    """Tridiagonalise the symmetric map `A` from the start vector `v` with at most `steps` products.

    Args:
        A: a `LinearOperator`, or any symmetric map from tree to tree.
        v: start vector; for functions of A applied to a vector, that vector.
        steps: products to spend, k above. Choose more than the spectrum has outliers.
        breakdown: the Krylov space counts as exhausted once `||r||` is at or under this share of the length of the last
            product; default ten times the rounding unit of the vectors.

    Raises:
        ValueError: for fewer than one step or a negative `breakdown`.

    Example:
        >>> import jax.numpy as jnp
        >>> scale = jnp.array([1.0, 2.0, 2.0, 4.0])  # three distinct eigenvalues: three steps exhaust the space
        >>> T = lanczos(lambda x: scale * x, jnp.ones(4), steps=10)
        >>> int(T.steps), Status(int(T.status)).name
        (3, 'INVARIANT_SUBSPACE')
        >>> T.off_diagonal[2:].tolist()  # what pads T is not coupled to it
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    state = jax.lax.while_loop(
        lambda s: s.status == RUNNING, lambda s: update(s, A(s.vector), breakdown=breakdown), init(v, steps)
    )
    return tridiagonalization(state)


def init(
    v: PyTree,
    steps: int,
    *,
    carried: PyTree | None = None,
    b_norm: Float[Array, ""] | None = None,
    basis: HostBasis | None = None,
) -> LanczosState:
    """State before the first product.

    Args:
        v: start vector.
        steps: products to spend.
        carried: kept in the state, as is `b_norm`.
        basis: an empty `HostBasis` to keep the basis on the host; `update` must then not be inside `jit`.
    """
    if steps < 1:
        raise ValueError(f"lanczos(steps={steps}): at least one product is needed")
    v = tree.to_vector(v)
    size = tree.norm(v)
    finite = jnp.isfinite(size)
    v, norm = tree.where(finite, v, tree.zeros_like(v)), jnp.where(finite, size, 0.0)
    zeros = jnp.zeros(steps, norm.dtype)
    status = jnp.where(norm > 0, RUNNING, jnp.where(finite, int(Status.INVARIANT_SUBSPACE), int(Status.NON_FINITE)))
    return LanczosState(
        block.zeros(steps, v) if basis is None else basis, _unit(v, norm), zeros, zeros, norm,
        carried, norm if b_norm is None else b_norm, jnp.int32(0), status.astype(jnp.int32),
    )  # fmt: skip


def update(state: LanczosState, Aq: PyTree, *, breakdown: float | None = None) -> LanczosState:
    """One step: take in the product with `state.vector`, find the next direction."""
    if isinstance(state.basis, HostBasis):
        return _update_on_host(state, tree.to_vector(Aq), breakdown)
    size = tree.norm(Aq)
    finite = jnp.isfinite(size)
    q, w = (tree.where(finite, x, tree.zeros_like(x)) for x in (state.vector, tree.to_vector(Aq)))
    basis, alpha = block.put(state.basis, state.steps, q), jnp.zeros_like(size)
    for _ in range(2):
        c = block.project(basis, w)
        w, alpha = tree.sub(w, block.expand(basis, c, w)), alpha + c[state.steps]
    return _advance(state._replace(basis=basis), w, alpha, size, breakdown)


def _update_on_host(state: LanczosState, Aq: PyTree, breakdown: float | None) -> LanczosState:
    size, basis = _norm(Aq), state.basis
    alpha = jnp.zeros_like(size)
    if bool(jnp.isfinite(size)):
        basis = host_basis.append(basis, state.vector)
        Aq, alpha = host_basis.orthogonalise(basis, Aq)
    # Without the basis: what goes into a compiled function goes onto the devices.
    return _advance_compiled(state._replace(basis=None), Aq, alpha, size, breakdown)._replace(basis=basis)


def _advance(
    state: LanczosState, w: PyTree, alpha: Float[Array, ""], size: Float[Array, ""], breakdown: float | None = None
) -> LanczosState:
    """Enter `alpha` and `beta = ||w||` into T and go on along `w`, or stop if `size = ||A q||` is not finite."""
    if breakdown is not None and not breakdown >= 0:
        raise ValueError(f"lanczos(breakdown={breakdown}): give a share of the product's length, 0 or more")
    finite, beta = jnp.isfinite(size), tree.norm(w)
    share = 10 * jnp.finfo(beta.dtype).eps if breakdown is None else breakdown
    i = state.steps
    status = jnp.where(i + 1 >= state.diagonal.shape[0], int(Status.MAX_STEPS), RUNNING)
    status = jnp.where(beta <= share * size, int(Status.INVARIANT_SUBSPACE), status)
    status = jnp.where(finite, status, int(Status.NON_FINITE))
    return state._replace(
        vector=tree.where(finite, _unit(w, beta), state.vector),
        diagonal=state.diagonal.at[i].set(alpha),
        off_diagonal=state.off_diagonal.at[i].set(beta),
        steps=i + finite,
        status=status.astype(jnp.int32),
    )


_norm = jax.jit(tree.norm)
_advance_compiled = jax.jit(_advance, static_argnums=4)


def tridiagonalization(state: LanczosState) -> Tridiagonalization:
    """The decomposition a state stands for; valid after any number of steps."""
    small = _padded(state._replace(basis=None))
    return small._replace(basis=state.basis)


@jax.jit
def _padded(state: LanczosState) -> Tridiagonalization:
    done, place = state.steps, jnp.arange(state.diagonal.shape[0])
    last = jnp.where(done > 0, state.off_diagonal[jnp.maximum(done - 1, 0)], 0.0)
    return Tridiagonalization(
        None,
        jnp.where(place < done, state.diagonal, state.diagonal[0]),
        jnp.where(place < done - 1, state.off_diagonal, 0.0)[:-1],
        tree.scale(last, state.vector),
        last,
        state.norm,
        done,
        state.status,
    )


def _unit(w: PyTree, size: Float[Array, ""]) -> PyTree:
    # Dividing, not multiplying by a reciprocal: 1 / size overflows for residuals near the smallest float.
    return jax.tree.map(lambda a: (a / jnp.where(size > 0, size, 1.0)).astype(a.dtype), w)
