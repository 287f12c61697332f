"""Solving from the host: the product is an ordinary Python call, and the solve can stop and go on at every step.

The same pure pieces as inside `jit` (`protocol`), each compiled by itself:

    v = direction(state);   Av = A(v);   state = update(state, Av)

so A may do what a compiled loop cannot: read batches from disk one after another and add up their products, show
progress, or span programs. Between two products the state is the whole solve. Stored and loaded, it goes on as if
nothing had happened: the result is the same in every bit, because the same programs run on the same numbers.

A curvature solve of a large model on a large retain set takes hours; with `checkpoint=` it survives being killed at any
moment and loses at most the product in progress.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jaxtyping import PyTree

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers.protocol import RUNNING, IterativeSolver, State
from jaxunlearn.solvers.state_file import fingerprint, load_state, save_state
from jaxunlearn.solvers.status import SolveInfo

Layout = tuple[Any, ...]


def solve_on_host(
    solver: IterativeSolver[State],
    A: LinearOperator,
    b: PyTree,
    x0: PyTree | None = None,
    *,
    state: State | None = None,
    callback: Callable[[State], object] | None = None,
    checkpoint: str | Path | None = None,
    every: int = 1,
    problem: Mapping[str, Any] | None = None,
) -> tuple[PyTree, SolveInfo]:
    """`solver(A, b, x0)`, driven from the host.

    Args:
        solver: any `IterativeSolver`: `CG`, `MINRES`, `BlockCG`, `Neumann`, `LiSSA`.
        A: the operator; its product need not be traceable. For `BlockCG` it acts on blocks of vectors.
        b: right-hand side.
        x0: warm start.
        state: a state to go on from, for example from `load_state`; it stays usable.
        callback: called with the state after every step, for progress or to interrupt by raising. The next step
            overwrites the state's memory: copy what is to be kept.
        checkpoint: a file that holds the state. If it exists the solve goes on from there (or is over already), after
            a check that it belongs to this problem; the folder must exist.
        every: steps between two writes of `checkpoint`; the last state is always written.
        problem: what defines A, by name, for example `{"damping": 0.1}`; stored in the file and compared on resuming.

    Raises:
        ValueError: when A and b do not fit, or the file belongs to another problem.

    Example:
        >>> import numpy as np
        >>> from jaxunlearn.solvers import CG
        >>> batches = [np.array([1.0, 2.0]), np.array([1.0, 6.0])]  # imagine files
        >>> A = LinearOperator(lambda v: sum(batch * np.asarray(v) for batch in batches), like=jnp.zeros(2))
        >>> x, info = solve_on_host(CG(), A, jnp.ones(2), callback=lambda s: print(f"step {int(s.steps)}"))
        step 1
        step 2
        >>> x.round(4).tolist()
        [0.5, 0.125]
    """
    if every < 1:
        raise ValueError(f"solve_on_host(every={every}): give 1 or more steps between two writes")
    if state is not None and checkpoint is not None and Path(checkpoint).exists():
        raise ValueError(
            f"solve_on_host(): both a state and an existing checkpoint {checkpoint} were given; choose one"
        )
    b = tree.to_vector(jax.tree.map(jnp.asarray, b))
    x0 = None if x0 is None else tree.to_vector(jax.tree.map(jnp.asarray, x0))
    _check_shapes(A, b)
    mark = {} if checkpoint is None else fingerprint(solver, b, **(problem or {}))
    if state is None and checkpoint is not None and Path(checkpoint).exists():
        # Only its layout counts, so no product is spent on it.
        state = load_state(checkpoint, initial_state(solver, b, x0, x0), mark)
    if state is None:
        state = initial_state(solver, b, x0, None if x0 is None else _product(A, x0))
    # Steps reuse the state's memory, which must not be b's, the caller's, or twice the same.
    state = jax.tree.map(jnp.copy, state)
    layout = tuple(_layout(leaf) for leaf in jax.tree.leaves(state))
    while int(state.status) == RUNNING:
        product = _product(A, _direction(solver, state))
        state = _update(solver, layout, state, product)
        if checkpoint is not None and (int(state.steps) % every == 0 or int(state.status) != RUNNING):
            save_state(checkpoint, state, mark)
        if callback is not None:
            callback(state)
    return _result(solver, state)


@partial(jax.jit, static_argnums=0)
def initial_state(
    solver: IterativeSolver[State], b: PyTree, x0: PyTree | None = None, Ax0: PyTree | None = None
) -> State:
    """`solver.init(b, x0, A x0)`, compiled, which puts every array of the state on the devices that hold b."""
    return solver.init(b, x0, Ax0)


def _product(A: LinearOperator, v: PyTree) -> PyTree:
    return tree.to_vector(jax.tree.map(jnp.asarray, A(v)))


@partial(jax.jit, static_argnums=0)
def _direction(solver: IterativeSolver[State], state: State) -> PyTree:
    return solver.direction(state)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _update(solver: IterativeSolver[State], layout: Layout, state: State, product: PyTree) -> State:
    """A step that keeps the state's layout, so that a loaded state meets the program that a running one meets."""
    leaves, structure = jax.tree.flatten(solver.update(state, product))
    kept = [a if to is None else jax.lax.with_sharding_constraint(a, to) for a, to in zip(leaves, layout, strict=True)]
    return jax.tree.unflatten(structure, kept)


@partial(jax.jit, static_argnums=0)
def _result(solver: IterativeSolver[State], state: State) -> tuple[PyTree, SolveInfo]:
    return solver.result(state)


def _layout(leaf: jax.Array) -> NamedSharding | None:
    """What to hold a leaf to: nothing on one device, or on explicit meshes, whose types hold it already."""
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit in sharding.mesh.axis_types:
        return None
    return sharding


def _check_shapes(A: LinearOperator, b: PyTree) -> None:
    theirs, ours = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (A.like, b)
    )
    if theirs != ours:
        name = next(name for name in [*ours, *theirs] if theirs.get(name) != ours.get(name))
        raise ValueError(
            f"solve_on_host(): leaf {name or 'of the tree'} is {ours.get(name, 'missing')} in b and "
            f"{theirs.get(name, 'missing')} in the operator; b must look like A.like. For BlockCG give an operator on "
            "blocks: LinearOperator(lambda V: operators.block_product(A, V), like=b)"
        )
