"""`jaxunlearn unlearn --stream-retain`: one Newton step whose curvature is that of the whole retain set.

Where `runs.forget` draws a batch of retain records a step and takes many steps, this takes one, and every product of
its solve is a pass over all records, a few at a time (`runs.streamed_newton`). Steps of a checkpoint are products: a
run that is killed goes on inside the solve. Then the step is brought into the method's trust region and measured on
both sets whole (`runs.streamed_certificate`), so that the certificate speaks of every record.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature import GaussNewton, Hessian, partition
from jaxunlearn.data import Encoded, batches, shapes_of, steps_per_epoch
from jaxunlearn.methods.method import trust
from jaxunlearn.runs.forget import Forgotten, numbers
from jaxunlearn.runs.options import hyperparameters, options_of
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.runs.streamed_certificate import CERTIFY, SHORTEN, Measured, certify, shorten
from jaxunlearn.runs.streamed_newton import step_along, streamed_solve
from jaxunlearn.runs.trainable import Chosen
from jaxunlearn.runs.work import Work
from jaxunlearn.solvers import CG
from jaxunlearn.transforms import CurvatureState, TrustRegion
from jaxunlearn.transforms.trust_region import levenberg_marquardt
from jaxunlearn.types import Batch
from jaxunlearn.unlearn import StepInfo, UnlearnState

STREAMED = {"newton_removal": Hessian, "gauss_newton_ascent": GaussNewton}
"""Methods whose step is one solve for the gradient of forget, and their curvature. Of the others some read stored
answers of the original model record by record, some have curvature that does not add up over batches."""


class Recipe(NamedTuple):
    """The parts of such a method, as its options say."""

    curvature: Hessian | GaussNewton
    solver: CG
    damping: float
    step_size: float
    region: TrustRegion | None


def recipe_of(settings: Unlearn) -> Recipe:
    """What the run's method is made of, as `methods` composes it."""
    values = {option.name: option.default for option in options_of(settings.method)}
    values |= hyperparameters(settings.method, settings.option)
    return Recipe(
        STREAMED[settings.method](values["microbatch"]),
        CG(values["cg_steps"], values["rtol"]),
        values["damping"],
        values.get("step_size", 1.0),
        trust(values["max_kl"], fill=settings.method == "gauss_newton_ascent"),
    )


def passes_of(recipe: Recipe) -> int:
    """Passes over retain that follow the solve."""
    return CERTIFY if recipe.region is None else SHORTEN + CERTIFY


def check(settings: Unlearn) -> None:
    """Raises ValueError for options that contradict `--stream-retain`."""
    if not settings.stream_retain:
        return
    if settings.method not in STREAMED:
        raise ValueError(
            f"--stream-retain passes over all retain records in every product of one solve, which --method "
            f"{settings.method} cannot do: choose {' or '.join(STREAMED)}, or leave it out"
        )
    if settings.steps not in (None, 1):
        raise ValueError(
            f"--steps {settings.steps}: --stream-retain takes one step; leave --steps out, and give the result to "
            "another run for another step"
        )
    watching = settings.watching
    rules = {
        "stop-at-nll": settings.stop_at_nll is not None,
        "holdout": settings.holdout is not None,
        "stop-when": bool(watching.stop_when),
        "keep-while": bool(watching.keep_while),
        "evaluate-every": watching.evaluate_every != 0,
    }
    given = next((name for name, there in rules.items() if there), None)
    if given is not None:
        raise ValueError(
            f"--{given} is about where to stop between steps, and --stream-retain takes one: leave it out, and measure "
            "the result with `jaxunlearn evaluate`"
        )


def forget_streamed(
    settings: Unlearn,
    chosen: Chosen,
    forget_set: Sequence[Encoded],
    retain_set: Sequence[Encoded],
    sizes: tuple[int, int],
    *,
    mesh: Mesh | None,
    reporter: Reporter,
    work: Work,
) -> Forgotten:
    """The step of the run's method over all of `retain_set`.

    Args:
        settings: of the run.
        chosen: the model, its parameters, which are kept, and which of them are trained.
        forget_set, retain_set: encoded records.
        sizes: forget and retain records at a time.
        mesh: where batches are put.
        reporter: shows products and passes.
        work: holds the checkpoints, by products.
    """
    recipe = recipe_of(settings)
    model, microbatch = chosen.model, recipe.curvature.microbatch
    before, frozen = (chosen.params, None) if chosen.select is None else partition(chosen.params, chosen.select)
    # Bound to their devices, as what a checkpoint gives back is: one program then serves both.
    before = jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), before)
    forget, retain = (
        _stream(records, size, mesh) for records, size in zip((forget_set, retain_set), sizes, strict=True)
    )
    tokens = steps_per_epoch(len(retain_set), sizes[1]) * sizes[1] * shapes_of(retain_set)[0]
    products = reporter.stage("products over all of retain", recipe.solver.max_steps, tokens=tokens)
    with products as stage, work.checkpoints(reporter.say) as checkpoints:
        x, solve = streamed_solve(
            model, before, forget, retain,
            frozen=frozen,
            curvature=recipe.curvature,
            solver=recipe.solver,
            damping=recipe.damping,
            microbatch=microbatch,
            checkpoints=checkpoints,
            advance=stage.advance,
        )  # fmt: skip
    damping, step = jnp.float32(recipe.damping), tree.scale(recipe.step_size, x)
    del x
    length, ratio, following = jnp.float32(1.0), jnp.float32(1.0), damping
    with reporter.stage("measuring the step on all of retain", passes_of(recipe)) as stage:
        on_forget = Measured(model, frozen, forget, microbatch)
        on_retain = Measured(model, frozen, retain, microbatch, stage.advance)
        if recipe.region is not None:
            length, ratio = shorten(recipe.region, on_retain, before, step)
            following = levenberg_marquardt(recipe.region, damping, ratio)
        update, applied = _finite(length, step)
        del step
        after = step_along(before, update)
        certificate = certify(on_forget, on_retain, before, after)
    info = StepInfo(
        objective=-certificate.forget_before,
        gradient_norm=solve.residual_norms[0],
        update_norm=jax.jit(tree.norm)(update),
        applied=applied,
        certificate=certificate,
        curvature=CurvatureState(following, damping, solve, jnp.float32(1.0), length, ratio),
        noise=None,
    )
    state = UnlearnState(jnp.int32(1), after, (), jax.random.key(settings.seed), frozen)
    return Forgotten(state, info, [numbers(info)], "streamed", int(solve.steps), kept=1)


def _stream(records: Sequence[Encoded], size: int, mesh: Mesh | None) -> Callable[[], Iterator[Batch]]:
    """Starts a pass over the records in their order, `size` at a time."""
    return lambda: (one.on(mesh) for one in batches(records, size, shuffle=False))


@jax.jit
def _finite(length: Array, step: PyTree) -> tuple[PyTree, Array]:
    """The step at that length, or none where it is not finite; and whether it is."""
    update = tree.scale(length, step)
    applied = tree.all_finite(update)
    return tree.shard_like(tree.where(applied, update, tree.zeros_like(update)), step), applied
