"""`A^p b` by Lanczos for `-1 <= p < 1`, with a bound on its error.

p = -1 solves `A x = b`; p = -1/4 shapes the noise of Fisher forgetting. The residual of a shifted system,

    rho_j(t) = ||b - (A + t I) x_j(t)|| = ||b|| beta_1 ... beta_j / |d_1 ... d_j|,    T_j + t I = L D L^T,

is known at every step j for every t from the pivots `d` alone. It is the residual of the solve (t = 0), and through

    A^p = (|sin p pi| / pi) * integral_0^inf t^p [(A + t I)^-1, or for p > 0: A (A + t I)^-1 / t] dt

it bounds the error of every fractional power:

    ||A^p b - x_j|| <= (|sin p pi| / pi) * integral_0^inf t^p rho_j(t) / (lambda_min + t) dt.

The difference between successive steps, the usual estimate, is no substitute: on a spectrum with outliers it is ten
times too small for as long as the outliers are being found.

References: Frommer and Simoncini, "Stopping criteria for rational matrix functions of Hermitian and symmetric
matrices", SISC 2008; Chen, Greenbaum, Musco and Musco, "Error bounds for Lanczos-based matrix function
approximation", SIMAX 2022.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.solvers import krylov
from jaxunlearn.solvers.lanczos import LanczosState, tridiagonalization
from jaxunlearn.solvers.protocol import relative, start
from jaxunlearn.solvers.status import SolveInfo, Status
from jaxunlearn.solvers.tridiagonal import Tridiagonalization, ritz


@dataclass(frozen=True)
class Lanczos(krylov.KrylovSolver):
    """`x = A^power b` in a Krylov space with a full, orthogonal basis: `4 steps` bytes a parameter in f32.

    In `SolveInfo`, for power = -1, residuals are those of `A x = b`; for any other power `residual_norms` holds the
    error bound above by step, and `relative_residual` is the last one relative to `||x||`. The smallest Ritz value
    stands for `lambda_min`, and nothing is reported below what rounding does to an operator of this norm. Curvatures
    are Ritz values.

    Args:
        steps: products to spend; more than the spectrum has outliers.
        power: exponent, `-1 <= power < 1` and not 0.
        rtol: what `relative_residual` must not exceed for the status `CONVERGED`. All steps are spent in any case.
        absolute: take `|A|^power`; with power = -1 this is saddle-free Newton (Dauphin et al., NeurIPS 2014). An
            indefinite A under a fractional power is treated so in any case, and said to be by `INDEFINITE_POWER`.
        basis: "host" keeps it in the hosts' memory, for `solve_with_host_basis`.

    Raises:
        ValueError: for settings out of range, and for a start `x0` with any power but -1.

    Example:
        >>> from jaxunlearn.operators import LinearOperator
        >>> scale = jnp.array([1.0, 4.0, 9.0])
        >>> x, info = Lanczos(steps=3, power=-0.5)(LinearOperator(lambda v: scale * v, scale), jnp.ones(3))
        >>> x.round(3).tolist(), Status(int(info.status)).name
        ([1.0, 0.5, 0.33...], 'CONVERGED')
    """

    steps: int = 20
    power: float = -1.0
    rtol: float = 1e-3
    absolute: bool = False
    basis: Literal["device", "host"] = "device"

    def __post_init__(self):
        super().__post_init__()
        if not -1 <= self.power < 1 or self.power == 0:
            raise ValueError(
                f"Lanczos(power={self.power}): give -1 <= power < 1, not 0; `krylov.power` of a run of `lanczos` takes "
                "other powers, without an error bound"
            )
        if not 0 <= self.rtol < 1:
            raise ValueError(f"Lanczos(rtol={self.rtol}): give a relative tolerance between 0 and 1")

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> LanczosState:
        """State before the first product; only a solve (power = -1) can start from an `x0`."""
        if x0 is None or self.power != -1 or self.absolute:
            return super().init(b, x0)
        x, r, b_norm = start(b, x0, Ax0)
        return self.start_from(r, x, b_norm)

    def result(self, state: LanczosState) -> tuple[PyTree, SolveInfo]:
        """`(x, SolveInfo)` after any number of steps."""
        T = tridiagonalization(state)
        y, info = _in_the_space(self, T._replace(basis=None), state.b_norm)
        x = krylov.combine(T, y)
        return x if state.carried is None else tree.add(x, state.carried), info


@partial(jax.jit, static_argnums=0)
def _in_the_space(solver: Lanczos, T: Tridiagonalization, b_norm: Float[Array, ""]) -> tuple[Array, SolveInfo]:
    """Coordinates of the solution, and the record: all but the basis."""
    theta, S = ritz(T)
    c, p = T.norm * S[0], solver.power
    z = krylov.spectral_power(theta, p, absolute=solver.absolute) * c
    y = S @ z
    norms = residual_norms(T) if p == -1 else error_bounds(T, theta, p)
    # What rounding of T by eps ||T|| does to the residual of a solve, to first order, or to a power.
    sensitive = z if p == -1 else p * krylov.spectral_power(theta, p - 1, absolute=True) * c
    rounding = jnp.finfo(theta.dtype).eps * jnp.max(jnp.abs(theta)) * jnp.linalg.norm(sensitive)
    norms = jnp.maximum(norms, rounding)
    error = relative(norms[-1], b_norm if p == -1 else jnp.linalg.norm(y))
    info = krylov.info(T, theta, error, norms, converged=error <= solver.rtol)
    if not float(p).is_integer() and not solver.absolute:
        ended = (info.status == int(Status.CONVERGED)) | (info.status == int(Status.MAX_STEPS))
        status = jnp.where(ended & krylov.indefinite(theta), int(Status.INDEFINITE_POWER), info.status)
        info = info._replace(status=status)
    return y, info


def shifted_residuals(T: Tridiagonalization, t: Float[Array, " m"]) -> Float[Array, "k+1 m"]:
    """`rho_j(t)` for `j = 0 ... k`; after the last step it repeats."""
    k = T.diagonal.shape[0]
    unit = jnp.finfo(T.diagonal.dtype)
    scale = jnp.max(jnp.abs(T.diagonal)) + jnp.max(T.off_diagonal, initial=0.0)
    place = jnp.arange(k)
    # beta_j leads out of step j: off-diagonal within T, and the residual after the last step.
    beta = jnp.where(place == T.steps - 1, T.residual_norm, jnp.append(T.off_diagonal, 0.0))
    before = jnp.append(0.0, T.off_diagonal)

    def step(carry, entry):
        d, rho = carry
        a, b_in, b_out, real = entry
        floor = unit.eps * (scale + t) + unit.tiny
        d = a + t - b_in**2 / d
        d = jnp.where(jnp.abs(d) < floor, floor, d)
        # Steps towards a zero pivot overflow in the product, not in the quotient of neighbours.
        rho = jnp.where(real, jnp.minimum(rho * (b_out / jnp.abs(d)), unit.max), rho)
        return (d, rho), rho

    start = jnp.full_like(t, T.norm)
    _, history = jax.lax.scan(step, (jnp.ones_like(t), start), (T.diagonal, before, beta, place < T.steps))
    return jnp.concatenate([start[None], history])


def residual_norms(T: Tridiagonalization) -> Float[Array, "k+1"]:
    """`||b - A x_j||` by step."""
    return shifted_residuals(T, jnp.zeros(1, T.diagonal.dtype))[:, 0]


def error_bounds(T: Tridiagonalization, theta: Float[Array, " k"], p: float, nodes: int = 200) -> Float[Array, "k+1"]:
    """Bound of `||A^p b - x_j||` by step, `-1 < p < 1`; before the first step, where `x = 0`, that of `||A^p b||`."""
    unit = jnp.finfo(theta.dtype)
    size = jnp.max(jnp.abs(theta))
    size = jnp.where(size > 0, size, 1.0)
    low = jnp.maximum(jnp.min(jnp.abs(theta)), unit.eps * size)
    # The trapezoidal rule in log t, from eps * low to size / eps, and beyond them the integrand's power laws.
    s = jnp.linspace(jnp.log(low) + math.log(unit.eps), jnp.log(size) - math.log(unit.eps), nodes)
    t = jnp.exp(s)
    integrand = jnp.exp(p * s) * (t / (low + t))
    ends = jnp.zeros(nodes, t.dtype).at[0].set(1 / (1 + p)).at[-1].set(1 / (1 - p))
    width = (s[1] - s[0]) * jnp.ones(nodes, t.dtype).at[jnp.array([0, -1])].set(0.5)
    bound = abs(math.sin(math.pi * p)) / math.pi * (shifted_residuals(T, t) @ (integrand * (width + ends)))
    return bound.at[0].set(T.norm * jnp.maximum(low**p, size**p))
