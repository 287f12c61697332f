"""What every iterative solver is made of: pure pieces around one product a step.

    init(b, x0, A x0) -> state
    repeat while state.status is RUNNING:
        v = direction(state)            the vector to be multiplied
        state = update(state, A v)      everything else
    result(state) -> (x, SolveInfo)

The product stands between two pure functions, so whoever makes it may do so anywhere. `drive` makes it inside `jit`, in
one `while_loop`. `host.solve_on_host` makes it on the host, where it may stream batches from disk, and saves the state
between two products. States are NamedTuples of arrays, so they can be stored; solvers are frozen dataclasses, so they
can be static arguments of `jit`.
"""

from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.status import SolveInfo, Status

RUNNING = int(Status.RUNNING)


class SolverState(Protocol):
    """A NamedTuple of arrays (or `None`) that has at least these two fields."""

    @property
    def steps(self) -> Int[Array, ""]: ...

    @property
    def status(self) -> Int[Array, ""]: ...


State = TypeVar("State", bound=SolverState)


class IterativeSolver(Protocol[State]):
    """The extension point: a frozen dataclass with these four pure methods runs in both drivers."""

    def init(self, b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None) -> State:
        """State before the first product; a warm start brings its own product `A x0` along."""

    def direction(self, state: State) -> PyTree:
        """The vector whose product `update` asks for."""

    def update(self, state: State, product: PyTree) -> State:
        """Take in `A direction(state)`. The step that ends the solve replaces `state.status`."""

    def result(self, state: State) -> tuple[PyTree, SolveInfo]:
        """Solution and record; valid after any number of steps."""


def drive(solver: IterativeSolver[State], A: LinearOperator, b: PyTree, x0: PyTree | None = None) -> State:
    """Run a solve inside `jit`: the final state.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.solvers import CG
        >>> A = LinearOperator(lambda v: 2.0 * v, like=jnp.zeros(3), psd=True)
        >>> x, info = CG().result(drive(CG(), A, jnp.ones(3)))
        >>> x.tolist()
        [0.5, 0.5, 0.5]
    """
    b = tree.to_vector(b)
    if x0 is not None:
        x0 = tree.to_vector(x0)
    state = solver.init(b, x0, None if x0 is None else tree.to_vector(A(x0)))
    return jax.lax.while_loop(
        lambda s: s.status == RUNNING,
        lambda s: solver.update(s, tree.to_vector(A(solver.direction(s)))),
        state,
    )


def start(b: PyTree, x0: PyTree | None, Ax0: PyTree | None) -> tuple[PyTree, PyTree, Float[Array, ""]]:
    """First iterate, its residual `b - A x` and `||b||`. With b = 0 the solution is 0 and a warm start is dropped."""
    b_norm = tree.norm(b)
    zero = zeros(b)
    if x0 is None:
        return zero, b, b_norm
    return tree.where(b_norm > 0, x0, zero), tree.where(b_norm > 0, tree.sub(b, Ax0), b), b_norm


def zeros(like: PyTree) -> PyTree:
    """The zero vector, on the devices and in the layout of the solver vector `like`.

    On an Auto mesh a constant has no layout, and equal constants of leaves that are laid out differently become one.
    A product has the layout of its factors, and no compiler may drop it, since its factors might not be finite.
    """
    return jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), 0.0 * jnp.abs(a), jnp.zeros((), a.dtype)), like)


def first(value: Array, length: int) -> Array:
    """A history of `length` entries, the first of which is `value` and the others 0."""
    return jnp.zeros((length, *value.shape), value.dtype).at[0].set(value)


def padded(history: Array, steps: Int[Array, ""]) -> Array:
    """A history whose entries after `steps` repeat the last one."""
    reached = jnp.arange(history.shape[0]).reshape((-1,) + (1,) * (history.ndim - 1)) <= steps
    return jnp.where(reached, history, history[steps])


def relative(residual_norm: Array, b_norm: Array) -> Array:
    """`||r|| / ||b||`, and `||r||` where b is 0."""
    return residual_norm / jnp.where(b_norm > 0, b_norm, 1.0)
