"""Task-vector negation: learn the forget set harder, and go the same way backwards.

    theta' = theta - scale (theta_overfit - theta)

`theta_overfit` is theta after further training on the forget set alone. The difference, the task vector, is what that
task adds to the weights; subtracted, the model loses the task far more than anything else it can do. Nothing bounds the
step: choose `scale` on held-out text, as with every ascent.

Reference: Ilharco et al., "Editing models with task arithmetic", ICLR 2023; Liu et al., "Towards safer large language
models through machine unlearning", Findings of ACL 2024 (on language models).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxunlearn import tree
from jaxunlearn.types import Params


def task_vector(params: Params, overfit: Params, *, scale: float = 1.0) -> Params:
    """`params - scale (overfit - params)`, taken in f32 or wider and returned in the dtypes and layout of `params`.

    Pure: `jit` it with `scale` traced to try many.

    Args:
        params: the model that is to forget.
        overfit: the same after further training on the forget set.
        scale: how far to go; 0 changes nothing, -1 gives `overfit`.

    Raises:
        ValueError: when the two are not parameters of one model.

    Example:
        >>> task_vector({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.5, 2.0])}, scale=2.0)["w"].tolist()
        [0.0, 2.0]
    """
    if jax.tree.structure(params) != jax.tree.structure(overfit):  # type: ignore[operator]  # jax types no `!=` there
        raise ValueError("task_vector(): the two models have different parameters; give one model and its fine-tuning")

    def leaf(path: tuple, a: Array, b: Array) -> Array:
        if a.shape != b.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"task_vector(): {where} is {list(a.shape)} before and {list(b.shape)} after fine-tuning")
        wide = jnp.promote_types(a.dtype, jnp.float32)
        a_wide = a.astype(wide)
        return (a_wide - scale * (b.astype(wide) - a_wide)).astype(a.dtype)

    return tree.shard_like(jax.tree_util.tree_map_with_path(leaf, params, overfit), params)
