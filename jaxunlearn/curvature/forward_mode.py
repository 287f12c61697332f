"""Forward-mode differentiation that fails early and says which function stopped it.

Every exact curvature product pushes a tangent forward (`jax.jvp`) through the loss or through its gradient. A primitive
without a forward rule stops it: a fused attention kernel, a host callback, any function under `jax.custom_vjp`. JAX
reports a missing rule with the bare name of the primitive, and a `custom_vjp` function only when the whole program is
lowered, without a name. `jvp` here is `jax.jvp` with one clear error, raised while tracing, inside `jit`, `scan` and
`jax.checkpoint` alike. It traces its function once, reads the trace, and replays it, so that looking costs nothing.

A `custom_vjp` function does not stop a Hessian: its gradient is an ordinary program, whose forward derivative exists
if those of its two passes do. It stops a Gauss-Newton product, which needs the derivative of the function itself.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
from jax.interpreters import ad
from jaxtyping import PyTree

# What a jvp leaves behind in the place of a custom_vjp function; lowering it is the error that JAX raises too late.
DEFERRED = "custom_lin"
# Neither has a rule in the table of primitives: a custom_jvp function brings its own.
EXEMPT = ("custom_jvp_call", "custom_vjp_call")
# Rules that exist and refuse, always or for some kernels.
SUSPECTS = ("pallas_call", "pure_callback", "io_callback")
REMEDY = (
    'for attention choose attention="blockwise", which is exact and has every derivative; for any other function '
    "write it in plain JAX or give it a jax.custom_jvp rule; or take finite differences of its gradient, "
    'Hessian(mode="finite_difference")'
)


class ForwardModeError(TypeError):
    """A function inside the model has no forward-mode derivative; the message names it and the remedies."""


def jvp(f: Callable[[PyTree], PyTree], primals: PyTree, tangents: PyTree, has_aux: bool = False) -> tuple:
    """`jax.jvp(f, (primals,), (tangents,))` for `f` of one pytree.

    Returns:
        `(f(primals), J tangents)`, and the auxiliary output with `has_aux`.

    Raises:
        ForwardModeError: naming what has no forward rule.

    Example:
        >>> import jax.numpy as jnp
        >>> jvp(jnp.sin, jnp.float32(0.0), jnp.float32(2.0))[1].item()
        2.0
    """
    try:
        closed, shape = jax.make_jaxpr(lambda p, t: jax.jvp(f, (p,), (t,), has_aux=has_aux), return_shape=True)(
            primals, tangents
        )
    except Exception as error:
        name = _culprit(f, primals, error)
        if name is None:
            raise
        raise _error(name) from error
    _refuse_deferred(closed, f, primals)
    out = jex.jaxpr_as_fun(closed)(*jax.tree.leaves((primals, tangents)))
    return jax.tree.unflatten(jax.tree.structure(shape), out)


def check_forward_mode(f: Callable[..., PyTree], *args: PyTree) -> None:
    """Raise now what a product would raise later, for `f` differentiated in its first argument.

    Nothing is computed and nothing is compiled: `f` is traced, for arrays or `jax.ShapeDtypeStruct`s. For a Hessian
    check the gradient of the loss, for a Gauss-Newton product the logits.

    Raises:
        ForwardModeError: naming the primitive or `custom_vjp` function without a forward rule, and the remedies.

    Example:
        >>> import jax.numpy as jnp
        >>> @jax.custom_vjp
        ... def fused(x):
        ...     return jnp.sin(x)
        >>> fused.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda cos, g: (g * cos,))
        >>> check_forward_mode(jax.grad(fused), jnp.float32(1.0))  # a Hessian is fine
        >>> check_forward_mode(fused, jnp.float32(1.0))
        Traceback (most recent call last):
        ...
        jaxunlearn.curvature.forward_mode.ForwardModeError: 'fused' has no forward-mode derivative, ...
    """
    primals, rest = args[0], args[1:]

    def both(p: PyTree, *r: PyTree) -> None:
        jvp(lambda q: f(q, *r), p, p)

    jax.eval_shape(both, primals, *rest)


def _refuse_deferred(closed: jex.ClosedJaxpr, f: Callable, primals: PyTree) -> None:
    stopped = [_backward(eqn) for eqn in _equations(closed.jaxpr) if eqn.primitive.name == DEFERRED]
    if not stopped:
        return
    calls = [e for e in _equations(jax.make_jaxpr(f)(primals).jaxpr) if e.primitive.name == "custom_vjp_call"]
    named = [e for e in calls if _backward(e) in stopped] or calls
    raise _error(_name(named[0]) if named else "a jax.custom_vjp function")


def _backward(eqn: Any) -> Callable:
    """The backward pass that the author of a custom_vjp function wrote, which its two appearances share."""
    bwd = eqn.params["bwd"]
    return getattr(bwd, "f", bwd)


def _culprit(f: Callable, primals: PyTree, error: Exception) -> str | None:
    """The name of what has no forward rule, or None if forward mode is not what failed."""
    if isinstance(error, ForwardModeError):
        return None
    try:
        plain = jax.make_jaxpr(f)(primals)
    except Exception:
        return None
    try:
        # With a tangent that surely fits, so that only a missing rule is left to fail.
        jax.make_jaxpr(lambda p: jax.jvp(lambda q: jax.tree.leaves(f(q)), (p,), (p,)))(primals)
        return None
    except Exception:
        found = re.search(r"Differentiation rule for '(.+?)' not implemented", str(error))
    if found:
        return found.group(1)
    suspects = [e for e in _equations(plain.jaxpr) if e.primitive.name in SUSPECTS]
    suspects += [
        e for e in _equations(plain.jaxpr) if e.primitive not in ad.primitive_jvps and e.primitive.name not in EXEMPT
    ]
    return _name(suspects[0]) if suspects else f"something in {getattr(f, '__name__', 'the function')}"


def _name(eqn: Any) -> str:
    if eqn.primitive.name == "custom_vjp_call":
        return eqn.params["call_jaxpr"].jaxpr.debug_info.func_name
    name = eqn.params.get("name") or getattr(eqn.params.get("callback"), "__name__", None)
    return f"{eqn.primitive.name}: {name}" if name else eqn.primitive.name


def _error(name: str) -> ForwardModeError:
    return ForwardModeError(f"{name!r} has no forward-mode derivative, which curvature products need: {REMEDY}")


def _equations(jaxpr: jex.Jaxpr) -> Iterator[Any]:
    """Every equation of a program, those of its loops, branches and inner functions included; kernels stay closed."""
    for eqn in jaxpr.eqns:
        yield eqn
        if eqn.primitive.name != "pallas_call":
            for inner in jex.jaxprs_in_params(eqn.params):
                yield from _equations(inner)
