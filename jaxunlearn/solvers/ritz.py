"""Ritz values of a solve that is over: what its products said about the spectrum, for nothing.

CG and MINRES are the Lanczos process in disguise, and their records carry its tridiagonal matrix T. The eigenvalues of
T approximate those of the operator from within: use them for a damping, for a preconditioner's quality (how far
`M^-1 A` is from the identity), or to see whether a Hessian is indefinite.

Reference: Saad, "Iterative methods for sparse linear systems", 2003, section 6.7.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.solvers.status import SolveInfo, Status


def ritz_values(info: SolveInfo) -> Float[Array, " m"]:
    """Eigenvalues of the Lanczos matrix T of a solve (`CG`, `MINRES`), ascending.

    They are Rayleigh quotients of the operator (of `M^-1 A` under a preconditioner) within the Krylov space of the
    solve: between its extreme eigenvalues, the outlying ones found first. One comes with each product; the entries
    beyond are NaN. In floating point CG and MINRES lose orthogonality once an eigenvalue has converged and then find
    copies of it; `lanczos` with its full orthogonalisation does not.

    Raises:
        ValueError: for the record of a solver without a Lanczos matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.operators import LinearOperator
        >>> from jaxunlearn.solvers import CG
        >>> scale = jnp.array([1.0, 2.0, 4.0])
        >>> _, info = CG(5, rtol=1e-5)(LinearOperator(lambda v: scale * v, scale), jnp.ones(3))
        >>> ritz_values(info).round(3).tolist()
        [1.0, 2.0, 4.0, nan, nan]
    """
    if info.alphas is None or info.betas is None:
        raise ValueError(
            "ritz_values(): this solve kept no Lanczos matrix (SolveInfo.alphas is None); use CG, MINRES or lanczos"
        )
    count = info.steps - (info.status == int(Status.NON_FINITE))
    place = jnp.arange(info.alphas.shape[0])
    off = jnp.where(place < count - 1, info.betas, 0.0)[:-1]
    # Rows that were not reached become eigenvalues above all others (Gershgorin), to be found at the end.
    bound = 4 * (jnp.max(jnp.abs(info.alphas)) + jnp.max(jnp.abs(info.betas)))
    T = jnp.diag(jnp.where(place < count, info.alphas, bound)) + jnp.diag(off, 1) + jnp.diag(off, -1)
    return jnp.where(place < count, jnp.linalg.eigvalsh(T), jnp.nan)
