"""Sharpness-aware forgetting: forget not only here, but everywhere nearby.

An unlearned model is often one small step of fine-tuning away from what it knew. Sharpness-aware minimisation (Foret
et al., ICLR 2021) minimises the forget objective F at the worst point within a ball of radius rho, to first order
`theta + rho g / ||g||` with g = grad F(theta), so that forgetting sits in a flat place which a few steps do not leave.
The gradient there is used as it is; the derivative of the displacement is left out, as usual.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxunlearn import tree
from jaxunlearn.objectives.objective import Objective, Term
from jaxunlearn.types import Model, Params, UnlearnBatch


@dataclass(frozen=True)
class SharpnessAware:
    """`F(theta + rho g / ||g||) + R(theta)`, with the interface of `Objective`.

    Args:
        forget: F, the part that is to be flat.
        retain: R, taken at theta; `Objective(())` for none.
        rho: radius, in the units of the parameters.

    Reference: Fan et al., "Towards LLM unlearning resilient to relearning attacks: a sharpness-aware minimization
    perspective and beyond", ICML 2025.
    """

    forget: Objective
    retain: Objective
    rho: float = 0.1

    def __post_init__(self):
        if not self.rho > 0:
            raise ValueError(f"SharpnessAware(rho={self.rho}): give a positive radius, or use the plain objective")

    @property
    def terms(self) -> tuple[tuple[float, Term], ...]:
        return self.forget.terms + self.retain.terms

    @property
    def microbatch(self) -> int | None:
        """Examples at a time, of either part."""
        return self.forget.microbatch

    def cut(self, microbatch: int) -> "SharpnessAware":
        """The same loss, `microbatch` examples at a time."""
        return replace(self, forget=self.forget.cut(microbatch), retain=self.retain.cut(microbatch))

    def value(self, model: Model, params: Params, batch: UnlearnBatch) -> Float[Array, ""]:
        """`F` at the displaced parameters plus `R` at the given ones."""
        return self.forget.value(model, self._worst(model, params, batch), batch) + self.retain.value(
            model, params, batch
        )

    def value_and_grad(self, model: Model, params: Params, batch: UnlearnBatch) -> tuple[Float[Array, ""], Params]:
        """The value, and the gradient of F there plus that of R here, f32, laid out like the parameters."""
        value, grad = self.forget.value_and_grad(model, self._worst(model, params, batch), batch)
        kept, kept_grad = self.retain.value_and_grad(model, params, batch)
        return value + kept, tree.add(grad, kept_grad)

    def _worst(self, model: Model, params: Params, batch: UnlearnBatch) -> Params:
        _, g = self.forget.value_and_grad(model, params, batch)
        size = tree.norm(g)
        return tree.axpy(self.rho / jnp.where(size > 0, size, 1.0), g, params)
