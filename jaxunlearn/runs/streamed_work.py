"""What `jaxunlearn unlearn --stream-retain` takes, as a function of shapes: what its `--dry-run` compiles and tells.

One program, the product of one batch, makes up the solve: so many batches a pass, a pass a product. Beside it lie the
vectors of the solver and its right-hand side, which are also what a checkpoint holds.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.curvature.streamed import Bound, add_batch
from jaxunlearn.data import steps_per_epoch
from jaxunlearn.runs.facts import device_bytes
from jaxunlearn.runs.forget_streamed import passes_of, recipe_of
from jaxunlearn.runs.needs import Work
from jaxunlearn.runs.programs import Problem, beside, vector_of
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.runs.streamed_newton import Solving
from jaxunlearn.solvers.host import initial_state


def told(settings: Unlearn, problem: Problem, records: int) -> str:
    """The work in words, with `records` to retain."""
    size, length = problem.batch.retain.tokens.shape
    recipe = recipe_of(settings)
    return (
        f"{settings.method}: one step, of at most {recipe.solver.max_steps} products that each pass over all "
        f"{records:,} retain records, {size} at a time, {length} tokens long; {passes_of(recipe)} more passes measure "
        "the step"
    )


def work_of(settings: Unlearn, problem: Problem, records: int) -> Work:
    """The product of one batch, and how often it is taken at most."""
    recipe, vector = recipe_of(settings), vector_of(problem)
    count = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(problem.mesh, PartitionSpec()))
    arguments = (vector, count, problem.params, problem.batch.retain, (vector, problem.frozen))
    # The program as it is compiled in a run, without the `jit` that would hide its equations from those who count.
    program = partial(add_batch.__wrapped__, Bound(recipe.curvature, problem.model))
    times = recipe.solver.max_steps * steps_per_epoch(records, len(problem.batch.retain.tokens))
    held = device_bytes(saved(settings, problem))
    return Work("a product with a batch", (program, arguments, (0, 1)), times, held=held)


def saved(settings: Unlearn, problem: Problem) -> Solving:
    """The arrays of a checkpoint."""
    vector = vector_of(problem)
    state = jax.eval_shape(partial(initial_state, recipe_of(settings).solver), vector)
    return Solving(beside(state, problem.params, problem.mesh), vector)
