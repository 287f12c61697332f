"""MemFlex: train only the modules that forget pulls hard, and in another direction than retain does.

With `g_f` and `g_r` the gradients of the forget and retain losses in one module, that module is *located* where

    cos(g_f, g_r) < similarity      and      mean |g_f| > magnitude,

and everything else is left alone: its updates are exactly zero, and so are its moments in the optimiser. A module is
the adapter of one projection in one layer, A and B together; where parameters are no adapters it is one leaf in one
layer (a leaf that is not stacked under "layers" is one module whole). Only who stays untouched depends on this; the
objective is a weighted ascent on forget and descent on retain.

Modules are located in the first step, on its batch, and stay located: the masks are part of the optimiser's state,
which is all that `unlearn_step` carries along. To locate on more data than a batch, put masks of `located_modules`
there before the first step:

    masks = located_modules(grad_forget, grad_retain, similarity=0.92, magnitude=6e-4)
    state = state._replace(opt_state=state.opt_state._replace(masks=masks, located=jnp.array(True)))

Differences from the released code, which locates in a separate program on gradients averaged over the data: there A and
B count as two modules, so that new adapters (B = 0, hence no gradient in A) would train B alone.

Reference: Tian et al., "To forget or not? Towards practical knowledge unlearning for large language models" (KnowUnDo),
Findings of EMNLP 2024.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxunlearn import tree
from jaxunlearn.curvature.kronecker.paths import map_paths, paths_of
from jaxunlearn.methods.first_order import Retain, descent, keep
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, Objective, needs_of
from jaxunlearn.types import Model, Params, UnlearnBatch

ADAPTER = ("lora_a", "lora_b")
PARTS: tuple[Literal["forget", "retain"], ...] = ("forget", "retain")


class LocatedState(NamedTuple):
    """State of `train_located`.

    Attributes:
        located: whether `masks` have been taken; False before the first step, and until gradients are finite.
        masks: which modules are trained; a leaf [L, ...] stacked under "layers" has a mask [L, 1, ...], any other [].
        inner: state of the optimiser.
    """

    located: Bool[Array, ""]
    masks: PyTree
    inner: PyTree

    def share(self) -> Float[Array, ""]:
        """Share of the masks that are set. 0 after a step means that no module passed and nothing is trained."""
        masks = jax.tree.leaves(self.masks)
        return sum(jnp.sum(mask) for mask in masks) / sum(mask.size for mask in masks)


def memflex(
    *,
    similarity: float = 0.92,
    magnitude: float = 6e-4,
    learning_rate: float = 3e-4,
    retain: Retain = "nll",
    forget_weight: float = 0.4,
    retain_weight: float = 2.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Ascent on forget and descent on retain, `-0.4 NLL_f + 2 NLL_r`, in the modules located in the first step.

    Meant for adapters: `init(..., trainable=models.is_lora)`. Without them it trains whole matrices, layer by layer.

    Args:
        similarity: a module whose two gradients have a cosine of this or more is left alone; between -1 and 1.
        magnitude: so is one whose mean absolute gradient of the forget loss is this or less, nats per loss token and
            unit of parameter. It depends on the model: where no module passes, nothing is trained.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        retain: the retain term, "nll", "kl", "kl_all_positions", "answer" or "none". Modules are located by the NLL.
        forget_weight: of the ascent.
        retain_weight: of the retain term.
        optimizer: any optax transformation.

    Reference: Tian et al., "To forget or not? Towards practical knowledge unlearning for large language models",
    Findings of EMNLP 2024.

    Example:
        >>> memflex(magnitude=1e-5).name
        'memflex'
    """
    terms = ((-forget_weight, NLL("forget")), *keep("memflex", retain, retain_weight))
    located = train_located(descent("memflex", learning_rate, optimizer), similarity=similarity, magnitude=magnitude)
    return Method("memflex", Objective(terms), located, needs_of(terms))


def train_located(
    optimizer: optax.GradientTransformation, *, similarity: float = 0.92, magnitude: float = 6e-4
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` on the modules that `located_modules` finds in the first step; all other updates are exactly zero.

    Gradients are masked before the optimiser, so that its moments stay zero outside too, and updates after it, so that
    weight decay does not reach there. It runs under any objective; takes `model` and `batch`, with retain examples.

    Raises:
        ValueError: for a `similarity` outside (-1, 1] or a negative `magnitude`.

    Example:
        >>> transform = train_located(optax.sgd(0.1), magnitude=0.0)
        >>> state = transform.init({"layers": {"w": jnp.ones((2, 3))}, "b": jnp.ones(3)})
        >>> jax.tree.map(jnp.shape, state.masks)
        {'b': (), 'layers': {'w': (2, 1)}}
    """
    if not -1 < similarity <= 1:
        raise ValueError(f"train_located(similarity={similarity}): a cosine; give a number above -1 and at most 1")
    if not magnitude >= 0:
        raise ValueError(f"train_located(magnitude={magnitude}): give a mean absolute gradient of at least 0")
    optimizer = optax.with_extra_args_support(optimizer)

    def locate(grad_forget: PyTree, grad_retain: PyTree) -> PyTree:
        return located_modules(grad_forget, grad_retain, similarity=similarity, magnitude=magnitude)

    def init(params: Params) -> LocatedState:
        # Located by gradients of zero, so that masks have from the start the layout that later ones have.
        zeros = tree.zeros_like(params)
        return LocatedState(jnp.array(False), locate(zeros, zeros), optimizer.init(params))

    def update(grads, state, params=None, *, model: Model, batch: UnlearnBatch, **extra):
        def look() -> tuple[Array, PyTree]:
            pair = [Objective(((1.0, NLL(part)),)).value_and_grad(model, params, batch)[1] for part in PARTS]
            finite = tree.all_finite(pair)
            return finite, jax.tree.map(lambda mask: mask & finite, locate(*pair))

        located, masks = jax.lax.cond(state.located, lambda: (jnp.array(True), state.masks), look)
        updates, inner = optimizer.update(_cut(masks, grads), state.inner, params, model=model, batch=batch, **extra)
        # Without finite gradients nothing is located. Updates of zero would pass for a step that was taken.
        updates = jax.tree.map(lambda u: jnp.where(located, u, jnp.nan), _cut(masks, updates))
        return updates, LocatedState(located, masks, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def located_modules(grad_forget: PyTree, grad_retain: PyTree, *, similarity: float, magnitude: float) -> PyTree:
    """Masks of the modules with `cos(g_f, g_r) < similarity` and `mean |g_f| > magnitude`.

    A module without any gradient of the retain loss has cosine 0: nothing is in the way there.

    Args:
        grad_forget, grad_retain: gradients of mean losses, in the structure of the parameters (or of those chosen by
            path, as `init(..., trainable=)` has them).
        similarity, magnitude: the two thresholds.

    Returns:
        For each leaf [L, ...] under "layers" a mask [L, 1, ...], for any other one of shape [].

    Example:
        >>> f = {"layers": {"w": jnp.array([[1.0, 0.0], [1.0, 1.0], [0.1, 0.0]])}}
        >>> r = {"layers": {"w": jnp.array([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])}}
        >>> located_modules(f, r, similarity=0.9, magnitude=0.2)["layers"]["w"][:, 0].tolist()
        [True, False, False]
    """
    retain = dict(paths_of(grad_retain))
    sums: dict[str, list[Array]] = {}
    for path, f in paths_of(grad_forget):
        name, axes = _module(path), tuple(range(_stacked(path, f), f.ndim))
        products = (f * retain[path], f * f, retain[path] ** 2, jnp.abs(f))
        mine = [*(jnp.sum(x, axis=axes) for x in products), math.prod(f.shape[_stacked(path, f) :])]
        sums[name] = [a + b for a, b in zip(sums[name], mine, strict=True)] if name in sums else mine

    def mask(path: str, f: Array) -> Array:
        dot, ff, rr, size, entries = sums[_module(path)]
        norms = jnp.sqrt(ff) * jnp.sqrt(rr)
        chosen = (dot / jnp.where(norms > 0, norms, 1.0) < similarity) & (size / entries > magnitude)
        return jnp.expand_dims(chosen, tuple(range(1, f.ndim))) if _stacked(path, f) else chosen

    return map_paths(mask, grad_forget)


def _cut(masks: PyTree, updates: PyTree) -> PyTree:
    return jax.tree.map(lambda mask, x: jnp.where(mask, x, 0), masks, updates)


def _module(path: str) -> str:
    """The name of the module a leaf belongs to, layer apart: of an adapter its projection, else the leaf's own."""
    stem, _, leaf = path.rpartition("/")
    return stem if leaf in ADAPTER else path


def _stacked(path: str, leaf: Array) -> int:
    """Number of leading axes that count layers, 1 or 0."""
    return int(path.startswith("layers/") and leaf.ndim > 0)
