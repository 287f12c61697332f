"""The programs of `jaxunlearn spectrum` as functions of shapes, and how often each runs: what its `--dry-run` compiles.

a probe         one Lanczos run of `steps` products and its quadrature, on retain and on forget, `probes` times each
damping path    the run from the forget gradient, whose basis of `4 steps` bytes a parameter stays
first step      the method's own, beside that basis
a trial         the step under one damping, out of that basis, `tries` times
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn.methods import Method
from jaxunlearn.runs.damping_path import lanczos_run, try_step
from jaxunlearn.runs.facts import device_bytes
from jaxunlearn.runs.needs import Work
from jaxunlearn.runs.programs import Problem, beside, state_of
from jaxunlearn.runs.settings import Spectrum
from jaxunlearn.solvers import quadrature
from jaxunlearn.transforms import Curvature
from jaxunlearn.unlearn import unlearn_step


def work_of(
    settings: Spectrum, problem: Problem, method: Method, curvature: Curvature, microbatch: int | None, products: int
) -> list[Work]:
    """All that is compiled; `products` are those of a solve of the method."""
    model, params, batch, steps = problem.model, problem.params, problem.batch, settings.lanczos_steps
    everywhere = NamedSharding(problem.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)

    def probe(params, part, key):
        return quadrature(curvature(model, params, part), key, steps)

    space = partial(lanczos_run, model, curvature, steps, microbatch)
    # Vectors are laid out like the parameters, behind the axis along which they are counted.
    basis = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(
            (steps, *p.shape), jnp.float32, sharding=NamedSharding(problem.mesh, PartitionSpec(None, *p.sharding.spec))
        ),
        params,
    )
    run = beside(jax.eval_shape(space, params, batch)[0]._replace(basis=None), params, problem.mesh)
    run = run._replace(basis=basis)
    held = device_bytes(basis)
    y = jax.ShapeDtypeStruct((steps,), jnp.float32, sharding=everywhere)
    one_step = (
        lambda state, batch: unlearn_step(method, model, state, batch)[1],
        (state_of(problem, method), batch),
        (),
    )
    found = [
        Work(f"a probe on {name}", (probe, (params, getattr(batch, name), key), ()), settings.probes, steps)
        for name in ("retain", "forget")
    ]
    found += [Work("the damping path", (space, (params, batch), ()), 1, steps)]
    found += [Work("the first step", one_step, 1, products, held)]
    if settings.tries:
        found += [Work("a trial", (partial(try_step, model), (params, batch, run, y), ()), settings.tries)]
    return found
