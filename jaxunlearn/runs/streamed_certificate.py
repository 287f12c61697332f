"""What a step does to sets that the host walks through: its length in the trust region, and its certificate.

The numbers that `transforms.trust_region` and `certificate` take of a batch, here each from one pass over a whole set:
losses and KL, a gradient, a Gauss-Newton product. Of vectors as large as the parameters one is made at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.accumulate import accumulate
from jaxunlearn.certificate import Certificate
from jaxunlearn.curvature import GaussNewton, over_chosen, streamed, streamed_product
from jaxunlearn.curvature.streamed import Batches, mean_over
from jaxunlearn.runs.streamed_newton import Gradient, step_along
from jaxunlearn.sharding.regions import replicate_rest
from jaxunlearn.transforms import TrustRegion
from jaxunlearn.transforms.trust_region import shorten_by
from jaxunlearn.types import Batch, Model, Params

SHORTEN, CERTIFY = 2, 4  # passes over retain


class Losses(NamedTuple):
    """Means over the loss tokens of a set, nats: NLL before and after a step, and `KL(before || after)`."""

    before: Float[Array, ""]
    after: Float[Array, ""]
    kl: Float[Array, ""]


class Measured(NamedTuple):
    """A set that a model is measured on.

    Attributes:
        model: pure functions.
        frozen: parameters that no step changes; None where all are trained.
        batches: starts a pass over the set.
        microbatch: examples of a batch at a time.
        advance: called after every pass.
    """

    model: Model
    frozen: Params | None
    batches: Batches
    microbatch: int | None = None
    advance: Callable[[], object] = lambda: None

    def losses(self, before: Params, after: Params) -> Losses:
        """Losses and KL, of two forward passes."""
        like = replicate_rest(Losses(*(jnp.float32(0) for _ in Losses._fields)), before)
        rows = self.batches() if callable(self.batches) else self.batches
        found = mean_over(_Losses(self.model, self.microbatch), like, rows, lambda _: (before, after, self.frozen))
        self.advance()
        return found

    def gradient(self, params: Params) -> PyTree:
        """Of the mean NLL."""
        mean = streamed_product(Gradient(self.model, self.microbatch), params, self.batches, self.frozen)
        found = mean(tree.zeros_like(params))
        self.advance()
        return found

    def predicted_kl(self, params: Params, step: PyTree) -> Float[Array, ""]:
        """`d.G d / 2`, d = `step`."""
        product = streamed(GaussNewton(self.microbatch), self.model, params, self.batches, self.frozen)(step)
        self.advance()
        return 0.5 * _vdot(step, product)


def shorten(region: TrustRegion, retain: Measured, params: Params, step: PyTree) -> tuple[Array, Array]:
    """The factor that brings `params + factor step` into the region, and measured over predicted KL there."""

    def measured(length: Array) -> Array:
        return retain.losses(params, step_along(params, tree.scale(length, step))).kl

    return shorten_by(region, retain.predicted_kl(params, step), measured)


def certify(forget: Measured, retain: Measured, before: Params, after: Params) -> Certificate:
    """The certificate of the step from `before` to `after`."""
    step = _difference(after, before)
    gone, kl, kept = forget.losses(before, after), retain.predicted_kl(before, step), retain.losses(before, after)
    gone_slope = _vdot(forget.gradient(before), step)
    gradient = retain.gradient(before)
    kept_slope, norm = _vdot(gradient, step), _norm(gradient)
    del gradient
    return Certificate(
        forget_before=gone.before,
        forget_after=gone.after,
        forget_predicted=gone_slope,
        retain_before=kept.before,
        retain_after=kept.after,
        retain_predicted=kept_slope + kl,
        kl_predicted=kl,
        kl_measured=kept.kl,
        retain_grad_before=norm,
        retain_grad_after=_norm(retain.gradient(after)),
    )


@dataclass(frozen=True)
class _Losses:
    """Sums of `Losses` over a batch, and its loss tokens."""

    model: Model
    microbatch: int | None

    def __call__(
        self, like: Losses, batch: Batch, before: Params, after: Params, frozen: Params | None
    ) -> tuple[Losses, Array]:
        model = self.model if frozen is None else over_chosen(self.model, frozen)

        def sums(rows: Batch) -> tuple[Losses, Array]:
            (old, count), (new, _) = (losses.nll(model, params, rows) for params in (before, after))
            p, q = (rows.predict(model, params) for params in (before, after))
            kl, _ = losses.kl_between(p.logits, q.logits, p.weights)
            return Losses(old, new, kl), count

        return accumulate(sums, batch, self.microbatch)


_vdot, _norm = jax.jit(tree.vdot), jax.jit(tree.norm)


@jax.jit
def _difference(a: PyTree, b: PyTree) -> PyTree:
    return tree.sub(tree.to_vector(a), tree.to_vector(b))
