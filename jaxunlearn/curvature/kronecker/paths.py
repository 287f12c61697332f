"""Parameters by path: "layers/mlp/up_proj/kernel"."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree


def paths_of(params: PyTree) -> list[tuple[str, Any]]:
    """`(path, leaf)` of every leaf, paths joined by "/".

    Example:
        >>> paths_of({"layer": [1, 2]})
        [('layer/0', 1), ('layer/1', 2)]
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def map_paths(f: Callable[[str, Any], Any], params: PyTree) -> PyTree:
    """The tree of `f(path, leaf)`."""
    return jax.tree.unflatten(jax.tree.structure(params), [f(path, leaf) for path, leaf in paths_of(params)])
