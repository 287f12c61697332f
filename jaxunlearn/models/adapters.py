"""Any Flax model as a `Model`: `logits = module(inputs)` is all that the library asks for."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from jaxunlearn.types import Model, Params


class _ByIdentity:
    """Holds what has no hash (arrays, modules with lists), so that a model can be a static argument all the same."""

    def __init__(self, value: Any):
        self.value = value


@dataclass(frozen=True)
class _NnxLogits:
    graph: Any
    kept: _ByIdentity | None

    def __call__(self, params: Params, inputs: Array) -> Array:
        from flax import nnx

        rest = () if self.kept is None else (self.kept.value,)
        return nnx.merge(self.graph, nnx.State(params), *rest)(inputs)


@dataclass(frozen=True)
class _LinenLogits:
    module: Any

    def __call__(self, params: Params, inputs: Array) -> Array:
        module = self.module.value if isinstance(self.module, _ByIdentity) else self.module
        return module.apply({"params": params}, inputs)


def from_nnx(module: Any) -> tuple[Model, Params]:
    """A `flax.nnx.Module` called as `module(inputs)` as a model and a plain dictionary of its parameters.

    State that is not an `nnx.Param` (batch statistics, random streams) is kept as it is now and never updated; put
    dropout and batch norm in evaluation mode first (`module.eval()`).

    Raises:
        ValueError: when `module` is not an `nnx.Module`, or has no `nnx.Param`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> model, params = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> sorted(params), model.logits(params, jnp.ones((4, 3))).shape
        (['bias', 'kernel'], (4, 2))
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ValueError(f"from_nnx() takes a flax.nnx.Module, not {type(module).__name__}")
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    if not jax.tree.leaves(params):
        raise ValueError(f"{type(module).__name__} has no nnx.Param; there is nothing to change")
    kept = _ByIdentity(rest) if jax.tree.leaves(rest) else None
    return Model(logits=_NnxLogits(graph, kept)), nnx.to_pure_dict(params)


def from_linen(module: Any) -> Model:
    """A `flax.linen.Module` as a model; its parameters are `module.init(key, inputs)["params"]`.

    Raises:
        ValueError: when `module` is not a `flax.linen.Module`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen
        >>> module = linen.Dense(2)
        >>> params = module.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
        >>> from_linen(module).logits(params, jnp.ones((4, 3))).shape
        (4, 2)
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise ValueError(f"from_linen() takes a flax.linen.Module, not {type(module).__name__}")
    try:
        hash(module)
    except TypeError:
        return Model(logits=_LinenLogits(_ByIdentity(module)))
    return Model(logits=_LinenLogits(module))
