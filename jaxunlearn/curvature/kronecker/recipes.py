"""`KFAC` and `EKFAC`: curvature recipes `(model, params, batch) -> KroneckerOperator`.

Which one: K-FAC takes one pass over the data. EK-FAC takes a second one for the true second moments along the same
eigenvectors; its error in the Frobenius norm is never above K-FAC's, and it sees that an example's gradient is a sum
over positions, which K-FAC ignores. Both cost about one gradient a pass, `A^2 + G^2` numbers a matrix, and a fraction
of a gradient a product or inverse, so they serve as metric (`solvers.ClosedForm`), as noise (power -1/4) and as
preconditioner of conjugate gradients: `CG(preconditioner=kfac.damped(1e-3).power(-1.0))`.

For data that comes in pieces, take the steps one by one outside of `jax.jit`:

    recipe = EKFAC(eigen="host")
    factors = sum of kronecker_factors(model, params, batch, recipe, seed=i) over batches i
    eigen = eigendecompose(factors, params)
    moments = sum of second_moments(model, params, batch, recipe, eigen.vectors, seed=i) over batches i
    curvature = from_eigen(eigen.with_moments(moments), params)
"""

from dataclasses import dataclass

from jaxunlearn.curvature.kronecker.eigen import eigendecompose
from jaxunlearn.curvature.kronecker.factors import kronecker_factors, second_moments
from jaxunlearn.curvature.kronecker.operator import KroneckerOperator, from_eigen, from_factors
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.types import Batch, Model, Params


@dataclass(frozen=True)
class KFAC(Settings):
    """Kronecker-factored approximation of the Fisher information; see `Settings` for what can be set.

    Reference: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML
    2015.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn import taps
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: taps.matmul(x, w))
        >>> batch = LabelledBatch(jnp.array([[2.0, 0.0]]), jnp.array([0]))
        >>> A = KFAC(labels="exact")(model, jnp.zeros((2, 2)), batch)
        >>> A(jnp.array([[1.0, 0.0], [1.0, 0.0]])).round(4).tolist()  # a a^T (x) (diag(p) - p p^T)
        [[1.0, -1.0], [0.0, 0.0]]
        >>> A.damped(1.0).power(-1.0)(jnp.array([[3.0, -3.0], [1.0, 0.0]])).round(4).tolist()
        [[1.0, -1.0], [1.0, ...0.0]]
    """

    def __call__(self, model: Model, params: Params, batch: Batch) -> KroneckerOperator:
        return from_factors(kronecker_factors(model, params, batch, self), params)


@dataclass(frozen=True)
class EKFAC(Settings):
    """K-FAC with its eigenvalues replaced by second moments of example gradients; see `Settings`.

    Reference: George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS
    2018.
    """

    def __call__(self, model: Model, params: Params, batch: Batch) -> KroneckerOperator:
        eigen = eigendecompose(kronecker_factors(model, params, batch, self), params)
        moments = second_moments(model, params, batch, self, eigen.vectors)
        return from_eigen(eigen.with_moments(moments), params)
