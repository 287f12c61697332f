"""Representation terms: steer the residual stream after some layer, and compute nothing above it.

RMU moves the hidden states of what must be forgotten to one fixed random direction, far from anything the upper
layers can read, and holds those of what must be kept where they were:

    forget   mean_t ||h_t - c u||^2 / D,    u = r / ||r||, r uniform on [0, 1)^D
    retain   mean_t ||h_t - h_t^ref||^2 / D

over the places that predict loss tokens. Neither the head nor a layer above the chosen one takes part, forwards or
backwards, and the original hidden states are stored once.

Reference: Li et al., "The WMDP benchmark: measuring and reducing malicious use with unlearning", ICML 2024.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn.objectives.objective import need, stored
from jaxunlearn.types import Batch, Model, Params, Places, UnlearnBatch


@dataclass(frozen=True)
class Misdirection:
    """Mean squared distance of forget's hidden states to `coefficient` times a fixed random unit vector.

    Args:
        layer: blocks below the residual stream that is steered: 1 is the output of the first block.
        coefficient: c, length of the target; about the norm of the hidden states there, or more.
        seed: of the direction.
    """

    layer: int
    coefficient: float = 6.5
    seed: int = 0

    def __post_init__(self):
        _check(self, self.layer)
        if not self.coefficient > 0:
            raise ValueError(f"Misdirection(coefficient={self.coefficient}): give a positive length")

    def rows(self, batch: UnlearnBatch) -> dict:
        return {"data": batch.forget}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        places = _places(model, params, rows["data"], self.layer)
        direction = jax.random.uniform(jax.random.key(self.seed), places.hidden.shape[-1:])
        return _squares(places, self.coefficient * direction / jnp.linalg.norm(direction))


@dataclass(frozen=True)
class ActivationMatch:
    """Mean squared distance of retain's hidden states to those of the original model, `reference.retain_hidden`.

    Args:
        layer: as for `Misdirection`.
    """

    layer: int
    needs: ClassVar[tuple[str, ...]] = ("retain_hidden",)

    def __post_init__(self):
        _check(self, self.layer)

    def rows(self, batch: UnlearnBatch) -> dict:
        remedy = "store objectives.reference.hidden(model, original_params, retain, layer) beforehand"
        data = need(batch.retain, "retain", "pass retain examples in every batch")
        return {"data": data, "hidden": stored(batch, "retain_hidden", remedy)}

    def total(self, model: Model, params: Params, rows: dict) -> tuple[Array, Array]:
        return _squares(_places(model, params, rows["data"], self.layer), rows["hidden"])


def _places(model: Model, params: Params, data: Batch, layer: int) -> Places:
    if model.hidden is None or not hasattr(data, "places"):
        raise ValueError(
            "hidden states are asked for, but the model has no `hidden` function or the batch holds no token "
            "sequences: give Model(hidden=...) and TokenBatch"
        )
    return data.places(model, params, layer)


def _squares(places: Places, target: Float[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    wide = jnp.promote_types(places.hidden.dtype, jnp.float32)
    distance = jnp.mean((places.hidden.astype(wide) - target.astype(wide)) ** 2, axis=-1)
    return jnp.sum(places.weights * distance), jnp.sum(places.weights)


def _check(term: Misdirection | ActivationMatch, layer: int) -> None:
    if not layer >= 1:
        raise ValueError(f"{type(term).__name__}(layer={layer}): the residual stream can be steered from 1 layer on")
