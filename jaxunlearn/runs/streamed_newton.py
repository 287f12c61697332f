"""A Newton step over more data than fits, which survives being killed between two products.

    theta + step_size (A + damping I)^-1 g

g is the mean gradient of the NLL of the forget set, A the curvature of the retain set, both summed over batches that
the host walks through (`curvature.streamed`): the step of `methods.newton_removal`, or with `GaussNewton()` that of its
positive semidefinite sibling, whose solve passes over the whole retain set once a product. On a large set that takes
hours. The solver is driven from the host (`solvers.solve_on_host`), and between two products its state is all there is:
with `checkpoints` it is saved there with g, and another process goes on inside the solve. On the same mesh the step is
then the same to the bit, because the same programs run on the same numbers. `jaxunlearn unlearn --stream-retain` takes
such a step (`runs.forget_streamed`).

Source: Guo et al., "Certified data removal from machine learning models", ICML 2020, arXiv:1911.03030; conjugate
gradients on such products: Martens, "Deep learning via Hessian-free optimization", ICML 2010.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature import Hessian, over_chosen, streamed, streamed_product
from jaxunlearn.curvature.streamed import Additive, Batches
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.solvers import CG, SolveInfo, fingerprint, solve_on_host
from jaxunlearn.solvers.host import initial_state
from jaxunlearn.types import Batch, Model, Params


class Solving(NamedTuple):
    """The arrays of a checkpoint: state of the solver, and the right-hand side it solves for."""

    state: PyTree
    rhs: PyTree


def streamed_newton(
    model: Model,
    params: Params,
    forget: Batches,
    retain: Batches,
    *,
    curvature: Additive | None = None,
    solver: Any = None,
    damping: float = 1e-2,
    step_size: float = 1.0,
    checkpoints: Checkpoints | None = None,
    advance: Callable[..., None] | None = None,
) -> tuple[Params, SolveInfo]:
    """The parameters after one step, and how the solve went.

    Args:
        model: pure functions.
        params: where to start; kept.
        forget: batches whose mean loss rises; a collection, or a function that starts a pass, as `streamed` takes them.
        retain: batches whose curvature says what a step costs; the same at every pass and in every process.
        curvature: default `Hessian()`; any that `streamed` takes.
        solver: default `CG()`; any `IterativeSolver`.
        damping: lambda >= 0, in the units of the curvature.
        step_size: gamma.
        checkpoints: where to go on from and what to leave, by products. The caller enters them.
        advance: called after each product with `products` and the relative `residual`; first, when a checkpoint is
            gone on from, `advance(products)`.

    Raises:
        ValueError: a negative damping, batches that are empty or differ between passes, or a checkpoint of another
            solve; it says what differs.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> x = jax.random.normal(jax.random.key(0), (40, 4))
        >>> data = LabelledBatch(x, jnp.argmax(x[:, :3], axis=1))
        >>> part = lambda *rows: jax.tree.map(lambda a: a[slice(*rows)], data)
        >>> w = jnp.zeros((4, 3))
        >>> new, info = streamed_newton(model, w, [part(0, 8)], [part(8, 24), part(24, 40)], damping=0.1)
        >>> before, after = (float(losses.nll(model, p, part(0, 8))[0]) for p in (w, new))
        >>> after > before
        True
    """
    x, info = streamed_solve(
        model, params, forget, retain,
        curvature=curvature, solver=solver, damping=damping, checkpoints=checkpoints, advance=advance,
    )  # fmt: skip
    return step_along(params, tree.scale(step_size, x)), info


def streamed_solve(
    model: Model,
    params: Params,
    forget: Batches,
    retain: Batches,
    *,
    frozen: Params | None = None,
    curvature: Additive | None = None,
    solver: Any = None,
    damping: float = 1e-2,
    microbatch: int | None = None,
    checkpoints: Checkpoints | None = None,
    advance: Callable[..., None] | None = None,
) -> tuple[PyTree, SolveInfo]:
    """The solve of such a step, `x = (A + damping I)^-1 g`, and how it went; the caller decides how far to go along x.

    Args:
        model, params, forget, retain, curvature, solver, damping, checkpoints, advance: as `streamed_newton` takes
            them, and its errors.
        frozen: the other parameters, where `params` are those that `curvature.partition` chose.
        microbatch: examples of a forget batch at a time.
    """
    if not damping >= 0:
        raise ValueError(f"damping={damping}: a negative damping makes the metric indefinite; use 0 or more")
    curvature = Hessian() if curvature is None else curvature
    solver = CG() if solver is None else solver
    A = streamed(curvature, model, params, retain, frozen).damped(damping)
    state, rhs = None, None
    problem = {}
    if checkpoints is not None:
        problem = fingerprint(solver, params, curvature=curvature, damping=damping)
        problem["params"] = problem.pop("b")
        found = checkpoints.restore(lambda facts: _like(solver, params, facts, problem))
        if found is not None:
            state, rhs = found.state
            if advance is not None:
                advance(found.step)
    if rhs is None:
        gradient = streamed_product(Gradient(model, microbatch), params, forget, frozen)
        rhs = gradient(tree.zeros_like(params))

    def stepped(state: Any) -> None:
        steps = int(state.steps)
        if advance is not None:
            advance(products=steps, residual=float(solver.result(state)[1].relative_residual))
        if checkpoints is not None:
            checkpoints.after(steps, lambda: (Solving(state, rhs), {"problem": problem}))

    return solve_on_host(solver, A, rhs, state=state, callback=stepped)


def _like(solver: Any, params: Params, facts: dict[str, Any], problem: dict[str, str]) -> Solving:
    there = facts["problem"]
    changed = [f"{name} was {there.get(name)} and is {now}" for name, now in problem.items() if there.get(name) != now]
    if changed:
        raise ValueError(f"it is of another solve: {'; '.join(changed)}")
    return Solving(initial_state(solver, tree.zeros_like(params)), tree.zeros_like(params))


@dataclass(frozen=True)
class Gradient:
    """Gradient of the summed NLL of a batch, and its loss tokens; the vector it is given plays no part."""

    model: Model
    microbatch: int | None = None

    def __call__(self, params: Params, batch: Batch, v: PyTree, frozen: Params | None) -> tuple[PyTree, Array]:
        model = self.model if frozen is None else over_chosen(self.model, frozen)

        def sums(rows: Batch) -> tuple[PyTree, Array]:
            gradient, count = jax.grad(partial(losses.nll, model), has_aux=True)(params, rows)
            return tree.to_vector(gradient), count

        return accumulate(sums, batch, self.microbatch)


@jax.jit
def step_along(params: Params, update: PyTree) -> Params:
    """`params + update`, added in f32, in the dtypes and the layout of `params`."""
    moved = jax.tree.map(lambda a, b: (a.astype(b.dtype) + b).astype(a.dtype), params, update)
    return tree.shard_like(moved, params)
