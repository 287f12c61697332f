"""`Tapped`: a parameter together with the dummies of its uses, standing in the tree where the array stood."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

Taps = dict[str, dict[str, Array]]


class Use(NamedTuple):
    """One use of a watched parameter, as seen while a model is traced.

    Attributes:
        path: the parameter.
        name: "matmul", "transposed", "lookup", "scale", "shift", or "raw" for any operation that is not of this module.
        shape: shape of the parameter there, without the axes it is stacked along.
        inputs, outputs: shapes of what the operation took and gave; empty for a raw use.
        source: number of the call; products of one call share their input.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    source: int = -1


class Probe:
    """Notes the uses of one parameter in a list shared by all."""

    def __init__(self, path: str, uses: list[Use]):
        self.path, self.uses = path, uses

    def note(self, name: str, value: Array, inputs: Any = None, outputs: Any = None, source: int = -1) -> None:
        shapes = (() if a is None else jnp.shape(a) for a in (inputs, outputs))
        self.uses.append(Use(self.path, name, value.shape, *shapes, source))


@jax.tree_util.register_pytree_node_class
class Tapped:
    """A parameter with the dummies of its uses, standing in the tree where the array stood.

    Attributes:
        value: the parameter.
        taps: dummies by use and name, stacked like the parameter.
        bases: by use, eigenvectors "A" [i, i] and "G" [o, o] in which second moments are taken.
        probe: notes the uses instead, while a model is only traced.
    """

    def __init__(self, value: Array, taps: Taps, bases: Taps | None = None, probe: Probe | None = None):
        self.value, self.taps, self.bases, self.probe = value, taps, bases or {}, probe

    def tree_flatten(self) -> tuple[tuple, Probe | None]:
        return (self.value, self.taps, self.bases), self.probe

    @classmethod
    def tree_unflatten(cls, probe: Probe | None, children: tuple) -> "Tapped":
        return cls(*children, probe)

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    dtype = property(lambda self: self.value.dtype)

    def __jax_array__(self) -> Array:
        if self.probe is not None:
            self.probe.note("raw", self.value)
        return self.value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("value", "taps", "bases", "probe"):
            raise AttributeError(name)
        return getattr(self.__jax_array__(), name)

    def __getitem__(self, index: Any) -> Any:
        return self if index is Ellipsis else self.__jax_array__()[index]


def _delegate(name: str) -> Callable:
    return lambda self, *others: getattr(self.__jax_array__(), name)(*others)


for _name in ("add", "sub", "mul", "matmul", "truediv", "pow"):
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(Tapped, _form, _delegate(_form))
Tapped.__neg__ = _delegate("__neg__")


def value(w: Array | Tapped) -> Array:
    """The parameter itself."""
    return w.value if isinstance(w, Tapped) else w


def axes_of_sum(axes: tuple, use: str, name: str, ndim: int) -> tuple:
    """What each dimension of a sum is, given what each of its parameter is (a mesh axis, a logical name, or None).

    A matrix factor, [m, m] or [n, n], is split along its rows like the rows of the parameter and along its columns like
    the columns, so that it is spread over as many devices as the parameter.

    Example:
        >>> axes_of_sum(("layers", "embed", "mlp"), "matmul", "G", 3), axes_of_sum(("embed", "mlp"), "matmul", "G", 1)
        (('layers', 'embed', 'mlp'), ('mlp',))
    """
    stacked = len(axes) - (1 if use in ("scale", "shift") else 2)
    stack, own = axes[:stacked], axes[stacked:]
    if name in ("A", "G"):
        on_rows = (name == "A") != (use == "transposed")
        return axes if ndim - stacked == 2 else (*stack, own[0] if on_rows else own[1])
    return axes if name == "S" else (*stack, *(None,) * (ndim - stacked))


def lay_out(constrain: Callable[[Array, tuple], Array], w: Array | Tapped, axes: tuple) -> Array | Tapped:
    """`constrain(w, axes)`, and each dummy constrained likewise, which lays out the sum that is its derivative."""
    if not isinstance(w, Tapped):
        return constrain(w, axes)
    dummies = {
        use: {
            name: tap if name in ("X", "Y") else constrain(tap, axes_of_sum(axes, use, name, tap.ndim))
            for name, tap in kept.items()
        }
        for use, kept in w.taps.items()
    }
    return Tapped(constrain(w.value, axes), dummies, w.bases, w.probe)
