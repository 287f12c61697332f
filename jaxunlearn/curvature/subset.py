"""Curvature of some of the parameters, never paying for the rest.

The other parameters become constants of the model: no tangent is pushed through them, no cotangent is pulled back
below the lowest chosen one, and vectors are as small as the choice. (`operators.restricted` masks a full product and
saves nothing.) The result is a model over the chosen leaves alone, which everything in the library takes: any operator,
any solver, and whole methods, which then change those leaves only.

    grad, Hessian, ... of theta_S -> L(theta_S, theta_rest)  are the blocks of those of L
"""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array

from jaxunlearn.types import Model, Params

Select = Callable[[str], bool] | Sequence[str | int]
Chosen = dict[str, Array]


def partition(params: Params, select: Select) -> tuple[Chosen, Params]:
    """The chosen leaves, and the tree without them.

    Args:
        params: any pytree of arrays.
        select: a predicate on a leaf's path, written "layers/mlp/up_proj/kernel"; or the beginning of such paths as a
            tuple, `("layers", "mlp")`.

    Returns:
        A dictionary from paths to leaves, and `params` with None in their places; `combine` puts them back.

    Raises:
        ValueError: when nothing is chosen, listing the paths there are.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"body": {"w": jnp.zeros(2)}, "head": jnp.ones(3)}
        >>> chosen, rest = partition(params, ("head",))
        >>> sorted(chosen), rest["head"], combine({"head": jnp.zeros(3)}, rest)["head"].tolist()
        (['head'], None, [0.0, 0.0, 0.0])
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [_path(path) for path, _ in leaves]
    if callable(select):
        keep = [bool(select(path)) for path in paths]
    else:
        start = "/".join(str(part) for part in select)
        keep = [path == start or path.startswith(f"{start}/") for path in paths]
    if not any(keep):
        raise ValueError(f"select={select!r} chooses none of the parameters {', '.join(paths)}")
    chosen = {path: leaf for path, (_, leaf), kept in zip(paths, leaves, keep, strict=True) if kept}
    if len(chosen) < sum(keep):
        raise ValueError(f"parameters share a path among {', '.join(paths)}: rename the keys that contain '/'")
    rest = [None if kept else leaf for (_, leaf), kept in zip(leaves, keep, strict=True)]
    return chosen, jax.tree.unflatten(structure, rest)


def combine(chosen: Chosen, rest: Params) -> Params:
    """`rest` with `chosen` at their paths: what `partition` took apart."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: chosen.get(_path(path)) if leaf is None else leaf, rest, is_leaf=lambda x: x is None
    )


def over_chosen(model: Model, rest: Params) -> Model:
    """The model as a function of chosen parameters, the others being `rest`; it is made anew in every trace."""

    def of_chosen(function: Callable | None) -> Callable | None:
        return None if function is None else lambda chosen, *args: function(combine(chosen, rest), *args)

    functions = {name: of_chosen(getattr(model, name)) for name in ("logits", "hidden", "logits_at", "head")}
    return model._replace(**functions, source=None)


def subset(model: Model, params: Params, select: Select) -> tuple[Model, Chosen]:
    """The model as a function of the chosen parameters, and those parameters; see `partition` for `select`.

    The model returned holds the other parameters. Make it inside the compiled function, from parameters that are
    arguments there; passed to `jax.jit` as a static argument it would write them into the program as constants:

        def step(params, state, batch):
            head, _ = subset(model, params, ("lm_head",))
            return unlearn_step(method, head, state, batch)

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxunlearn.curvature import GaussNewton
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda p, x: jnp.tanh(x @ p["body"]) @ p["head"])
        >>> params = {"body": jnp.ones((3, 4)), "head": jnp.ones((4, 2))}
        >>> head_model, head = subset(model, params, ("head",))
        >>> G = GaussNewton()(head_model, head, LabelledBatch(jnp.ones((5, 3)), jnp.zeros(5, jnp.int32)))
        >>> jax.tree.map(jnp.shape, G(head))
        {'head': (4, 2)}
    """
    chosen, rest = partition(params, select)
    return over_chosen(model, rest), chosen


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
