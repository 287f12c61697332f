"""RMU: steer what must be forgotten to a random direction inside the model, by three small matrices.

Only the down projections of the MLPs in the chosen block and the two below it are trained; everything above is not
even computed (see `objectives.representation`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxunlearn.methods.first_order import descent
from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import ActivationMatch, Misdirection, Objective, needs_of
from jaxunlearn.types import Params


def rmu(
    *,
    layer: int = 7,
    coefficient: float = 6.5,
    learning_rate: float = 5e-5,
    forget_weight: float = 1.0,
    retain_weight: float = 1200.0,
    seed: int = 0,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    """Representation misdirection: `||h - c u||^2 / D` on forget, `||h - h_ref||^2 / D` on retain.

    Args:
        layer: number of the block, counted from 0, whose output h is steered; blocks `layer - 2` to `layer` are
            trained. Published: 7 of 32.
        coefficient: c, length of the target; published from 6.5 to 20, more for models with larger hidden states.
        learning_rate: of AdamW without weight decay, when `optimizer` is not given.
        forget_weight: of the forget term.
        retain_weight: of the retain term; published from 100 to 1200.
        seed: of the random direction u.
        optimizer: any optax transformation.

    Reference: Li et al., "The WMDP benchmark: measuring and reducing malicious use with unlearning", ICML 2024.
    """
    if layer < 0:
        raise ValueError(f"rmu(layer={layer}): blocks are counted from 0")
    terms = ((forget_weight, Misdirection(layer + 1, coefficient, seed)), (retain_weight, ActivationMatch(layer + 1)))
    chosen = only(down_projections(range(max(layer - 2, 0), layer + 1)), descent("rmu", learning_rate, optimizer))
    return Method("rmu", Objective(terms), chosen, needs_of(terms))


def down_projections(layers: range) -> Callable[[Params], PyTree]:
    """`params -> {leaf: 1 where it belongs to the down projection of one of `layers`, else 0}`, for stacked layers.

    A leaf of shape [L, ...] gets a mask [L, 1, ...] and a leaf outside the layers the number 0. Layers cut into several
    stacks (`models.split_layers`) are counted on from stack to stack.
    """

    def mask(params: Params) -> PyTree:
        stacks = params.get("layers", {}) if isinstance(params, dict) else {}
        cut = "0" in stacks
        groups = [stacks[str(i)] for i in range(len(stacks))] if cut else [stacks]
        sizes = [jax.tree.leaves(group)[0].shape[0] if group else 0 for group in groups]
        if sum(sizes) < layers.stop:
            raise ValueError(
                f"layer={layers.stop - 1}: the parameters hold {sum(sizes)} blocks under 'layers', counted from 0; "
                "choose a lower one (a hand-written model keeps its blocks stacked under params['layers'])"
            )

        def of(path: tuple, leaf: jax.Array):
            names = [getattr(entry, "key", None) for entry in path]
            if names[0] != "layers" or "down_proj" not in names or names[-1] != "kernel":
                return 0
            first = sum(sizes[: int(names[1])]) if cut else 0
            number = first + jnp.arange(leaf.shape[0]).reshape(-1, *(1,) * (leaf.ndim - 1))
            return (number >= layers.start) & (number < layers.stop)

        return jax.tree_util.tree_map_with_path(of, params)

    return mask


def only(
    mask: Callable[[Params], PyTree], optimizer: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` on the entries that `mask` marks; the updates of all others are exactly zero.

    Leaves that are not marked at all have no state in the optimiser, and under `jit` their gradient is not computed.
    """

    def cut(updates: PyTree) -> PyTree:
        return jax.tree.map(
            lambda m, u: jnp.where(m, u, 0) if isinstance(m, jax.Array) else jnp.zeros_like(u), mask(updates), updates
        )

    marked = optax.masked(optimizer, lambda tree: jax.tree.map(lambda m: isinstance(m, jax.Array), mask(tree)))

    def update(updates, state, params=None, **extra):
        updates, state = marked.update(cut(updates), state, params, **extra)
        return cut(updates), state

    return optax.GradientTransformationExtraArgs(marked.init, update)
