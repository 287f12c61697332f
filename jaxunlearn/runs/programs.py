"""The programs of a step as functions of shapes: what `jaxunlearn plan` and `--dry-run` compile.

Every array is a `jax.ShapeDtypeStruct` that says where it lies, so nothing is read, made or run.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn import losses, methods, models, tree
from jaxunlearn.curvature import GaussNewton, Hessian, partition
from jaxunlearn.curvature.kronecker import Settings, kronecker_factors
from jaxunlearn.curvature.subset import over_chosen
from jaxunlearn.models.functional import HEAD_ROWS
from jaxunlearn.models.quantised import dtype_of
from jaxunlearn.models.specs import ParamSpec, nest, param_specs
from jaxunlearn.objectives import ActivationMatch, reads, reference
from jaxunlearn.runs.settings import Plan
from jaxunlearn.sharding import named_sharding
from jaxunlearn.solvers import CG
from jaxunlearn.types import Model, Params, Reference, TokenBatch, UnlearnBatch
from jaxunlearn.unlearn import init, unlearn_step

TOP_K = 64


class Problem(NamedTuple):
    """A model and a batch as shapes laid out on a mesh; `frozen` are the parameters beside those that are trained."""

    model: Model
    params: Any
    frozen: Any
    batch: UnlearnBatch
    mesh: Mesh

    def over(self, frozen: Any) -> Model:
        """The model as a function of what is trained."""
        return self.model if frozen is None else over_chosen(self.model, frozen)


Program = tuple[Callable, tuple, tuple[int, ...]]  # function, its abstract arguments, those that are donated


def problem_of(
    config: models.DecoderConfig,
    method: methods.Method,
    mesh: Mesh,
    batch: UnlearnBatch,
    *,
    dtypes: Any,
    lora: models.LoRA | None = None,
    train_last: int | None = None,
    top_k: int = TOP_K,
    attention: str = "auto",
    remat: str = "dots",
    head_rows: int | None = HEAD_ROWS,
    freeze_bits: int | None = None,
) -> Problem:
    """The model of `config` on `mesh`, and `batch` with all that `method` reads beside it.

    Args:
        config: of the decoder.
        method: a recipe.
        mesh: of one device or more.
        batch: forget, retain and other answers, as arrays or shapes.
        dtypes: element type of the parameters: one for all, or a function of the `ParamSpec`.
        lora, train_last: what is trained, if not all.
        top_k: classes kept of each stored distribution.
        attention, remat, head_rows, freeze_bits: as `models.load` takes them.
    """
    how = {"attention": attention, "remat": remat, "head_rows": head_rows, "freeze_bits": freeze_bits}
    model, params = model_of(config, mesh, dtypes=dtypes, lora=lora, **how)
    batch = abstract(batch, mesh)
    terms = method.objective.terms
    layer = next((term.layer for _, term in terms if isinstance(term, ActivationMatch)), None)
    makers: dict[str, tuple[Callable, TokenBatch | None]] = {
        "forget_nll": (reference.sequence_nll, batch.forget),
        "alternative_nll": (reference.sequence_nll, batch.alternative),
        "forget_top": (lambda m, p, b: reference.top_with_target(m, p, b, top_k), batch.forget),
        "retain_top": (lambda m, p, b: reference.top(m, p, b, top_k), batch.retain),
        "retain_top_all": (lambda m, p, b: reference.top_all(m, p, b, top_k), batch.retain),
        "counterfactual_top": (lambda m, p, b: reference.top(m, p, b, top_k), batch.forget),
        "retain_hidden": (lambda m, p, b: reference.hidden(m, p, b, layer), batch.retain),
    }
    stored = {
        name: abstract(jax.eval_shape(lambda p, b, f=make: f(model, p, b), params, data), mesh)
        for name, (make, data) in makers.items()
        if name in method.needs and data is not None
    }
    batch = batch._replace(reference=Reference(**stored) if stored else None)
    if train_last is not None:
        params = _cut(params, config.num_hidden_layers - train_last, train_last)
    select = models.is_lora if lora else ("layers", "1") if train_last else None
    trained, frozen = (params, None) if select is None else partition(params, select)
    return Problem(model, trained, frozen, batch, mesh)


def model_of(
    config: models.DecoderConfig,
    mesh: Mesh,
    *,
    dtypes: Any,
    lora: models.LoRA | None = None,
    attention: str = "auto",
    remat: str = "dots",
    head_rows: int | None = HEAD_ROWS,
    freeze_bits: int | None = None,
) -> tuple[Model, Params]:
    """The decoder of `config` on `mesh`, and its parameters as shapes. Arguments as in `problem_of`."""
    specs = param_specs(config, lora, frozen_bits=freeze_bits)

    def shape_of(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        if models.is_lora("/".join(spec.path)):
            dtype = jnp.float32
        else:
            dtype = dtype_of(spec, freeze_bits, dtypes(spec) if callable(dtypes) else dtypes)
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=named_sharding(mesh, spec.axes, spec.shape))

    decoder = models.Decoder(config, mesh, attention, remat, head_rows, lora=lora, frozen_bits=freeze_bits)
    return models.as_model(decoder), nest(specs, [shape_of(spec) for spec in specs])


def abstract(batch: Any, mesh: Mesh) -> Any:
    """A batch of arrays or shapes as shapes, its rows spread over `mesh`."""

    def rows(leaf: Any) -> jax.ShapeDtypeStruct:
        axes = ("batch", *(None,) * (len(leaf.shape) - 1))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=named_sharding(mesh, axes, leaf.shape))

    return jax.tree.map(rows, batch)


def planned(settings: Plan, config: models.DecoderConfig, method: methods.Method, mesh: Mesh) -> Problem:
    """The problem that `jaxunlearn plan` asks about: every token of every example carries loss.

    Raises:
        ValueError: for a method that reads stored curvature.
    """
    if method.factors is not None:
        raise ValueError(f"--method {method.name} with stored factors: plan it without, what is stored depends on data")
    shape = (settings.batch_size, settings.length)
    data = TokenBatch(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32))
    terms = method.objective.terms
    batch = UnlearnBatch(
        data,
        data if method.retain else None,
        alternative=data if reads(terms, "alternative") else None,
        retain_alternative=data if reads(terms, "retain_alternative") else None,
    )
    return problem_of(
        config, method, mesh, batch,
        dtypes=settings.dtype,
        lora=models.LoRA(settings.lora_rank) if settings.lora_rank else None,
        attention=settings.attention,
        remat=settings.remat,
        freeze_bits=settings.freeze_bits,
    )  # fmt: skip


def _cut(params: Any, *sizes: int) -> Any:
    """Shapes of `models.split_layers`; its stacks are laid out as the whole is."""

    def stack(size: int) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=x.sharding), params["layers"]
        )

    return params | {"layers": {str(i): stack(size) for i, size in enumerate(size for size in sizes if size)}}


def _gradient(problem: Problem, method: methods.Method, cg_steps: int) -> Program:
    def gradient(params, frozen, batch):
        def mean(p):
            total, count = losses.nll(problem.over(frozen), p, batch)
            return total / count

        return tree.shard_like(tree.to_vector(jax.grad(mean)(params)), params)

    return gradient, (problem.params, problem.frozen, problem.batch.forget), ()


def _product(recipe: Any) -> Callable[[Problem, methods.Method, int], Program]:
    def program(problem: Problem, method: methods.Method, cg_steps: int) -> Program:
        def product(params, frozen, batch, v):
            return recipe(problem.over(frozen), params, batch)(v)

        return product, (problem.params, problem.frozen, problem.batch.forget, vector_of(problem)), ()

    return program


def _solve(problem: Problem, method: methods.Method, cg_steps: int) -> Program:
    def solve(params, frozen, batch, b):
        A = GaussNewton()(problem.over(frozen), params, batch).damped(0.1)
        return CG(cg_steps, rtol=0.0)(A, b)

    return solve, (problem.params, problem.frozen, problem.batch.forget, vector_of(problem)), ()


def _factors(problem: Problem, method: methods.Method, cg_steps: int) -> Program:
    def factors(params, frozen, batch):
        return kronecker_factors(problem.over(frozen), params, batch, Settings(labels="sampled"))

    return factors, (problem.params, problem.frozen, problem.batch.forget), ()


def _step(problem: Problem, method: methods.Method, cg_steps: int) -> Program:
    def step(state, batch):
        return unlearn_step(method, problem.model, state, batch)

    return step, (state_of(problem, method), problem.batch), (0,)


PROGRAMS: dict[str, Callable[[Problem, methods.Method, int], Program]] = {
    "gradient": _gradient,
    "hessian": _product(Hessian()),
    "gauss-newton": _product(GaussNewton()),
    "cg": _solve,
    "factors": _factors,
    "step": _step,
}


def vector_of(problem: Problem) -> Any:
    """A solver vector: f32, laid out like the parameters."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), problem.params)


def state_of(problem: Problem, method: methods.Method) -> Any:
    """The state before the first step."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda p, k: init(method, problem.model, p, key=k), problem.params, key)
    return beside(state, problem.params, problem.mesh)._replace(frozen=problem.frozen)


def beside(state: Any, params: Params, mesh: Mesh) -> Any:
    """A tree of shapes on `mesh`: what belongs to a parameter is laid out like it, all else is everywhere."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    places = {tuple(path): leaf for path, leaf in leaves}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def lay_out(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        tails = (places.get(tuple(path[start:])) for start in range(len(path)))
        own = next((p for p in tails if p is not None and p.shape == leaf.shape), None)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere if own is None else own.sharding)

    return jax.tree_util.tree_map_with_path(lay_out, state)
