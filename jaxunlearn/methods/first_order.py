"""First-order recipes: `forget_weight * forget term + retain_weight * retain term` under a plain optimiser.

They are the baselines every comparison includes. This file holds what the families share: the retain terms, the step
from terms to a `Method`, and the arguments that nearly all recipes take (`recipe`). The optimiser is AdamW without
weight decay unless another is given.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Literal, get_args

import optax

from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, AnswerPreservation, KLRetain, Objective, Term, needs_of, reads

ASCENT = (-1.0, NLL("forget"))
Retain = Literal["nll", "kl", "none", "kl_all_positions", "answer"]
Terms = tuple[tuple[float, Term], ...]

_KEEPS: dict[str, tuple[Term, ...]] = {
    "nll": (NLL("retain"),),
    "kl": (KLRetain(),),
    "none": (),
    "kl_all_positions": (KLRetain("all_positions"),),
    "answer": (AnswerPreservation(),),
}


def keep(name: str, retain: Retain, weight: float) -> Terms:
    """The retain part of the recipe `name`.

    Args:
        name: of the recipe, for the message.
        retain: `"nll"`; `"kl"` against the original model, over loss tokens; `"kl_all_positions"`, averaged over
            prompt and padding too, as in the released code of TOFU; `"answer"`, the answer preferred over a refusal;
            or `"none"`.
        weight: of the term.
    """
    if retain not in _KEEPS:
        raise ValueError(f"{name}(retain={retain!r}): choose one of {', '.join(map(repr, get_args(Retain)))}")
    return tuple((weight, term) for term in _KEEPS[retain])


def first_order(
    name: str,
    forget: Terms,
    retain: Terms = (),
    *,
    learning_rate: float,
    optimizer: optax.GradientTransformation | None = None,
    alternative: str | None = None,
) -> Method:
    """The recipe `name`: minimise the sum of all terms with `optimizer`, or AdamW without weight decay.

    `alternative` says where a run takes other answers from; see `Method`.

    Example:
        >>> from jaxunlearn.objectives import SimNPO
        >>> first_order("mine", ((1.0, SimNPO()),), keep("mine", "kl", 1.0), learning_rate=1e-5).needs
        ('retain_top',)
    """
    terms = forget + retain
    transform = descent(name, learning_rate, optimizer)
    kept = reads(terms, "retain")
    return Method(name, Objective(terms), transform, needs_of(terms), alternative=alternative, retain=kept)


_COMMON = """    learning_rate: of AdamW without weight decay, when `optimizer` is not given.
    retain: the retain term: "nll"; "kl" to the original model; "kl_all_positions", averaged over prompt and padding
        too, as in released code; "answer", preferred over a refusal; or "none".
    forget_weight: of the forget term.
    retain_weight: of the retain term.
    optimizer: any optax transformation.
"""


def recipe(
    *,
    learning_rate: float = 1e-5,
    retain: Retain = "nll",
    forget_weight: float = 1.0,
    retain_weight: float = 1.0,
    alternative: str | None = None,
) -> Callable[[Callable[..., Term]], Callable[..., Method]]:
    """A function from hyperparameters to a forget term, made into a recipe of its name.

    The recipe takes the function's own keyword arguments and those that all share, with the defaults given here, in
    its signature as in its docstring (whose `Args:` come last before the reference):

        learning_rate, retain, forget_weight, retain_weight, optimizer

    Args:
        learning_rate, retain, forget_weight, retain_weight: the published defaults.
        alternative: where a run takes other answers from; see `Method`.

    Example:
        >>> from jaxunlearn.objectives import SimNPO
        >>> @recipe(forget_weight=0.125)
        ... def mine(*, beta: float = 4.5) -> Term:
        ...     \"\"\"SimNPO.\"\"\"
        ...     return SimNPO(beta)
        >>> mine(beta=2.0, retain="kl").needs
        ('retain_top',)
        >>> list(inspect.signature(mine).parameters)
        ['beta', 'learning_rate', 'retain', 'forget_weight', 'retain_weight', 'optimizer']
    """
    published = {
        "learning_rate": (float, learning_rate),
        "retain": (Retain, retain),
        "forget_weight": (float, forget_weight),
        "retain_weight": (float, retain_weight),
        "optimizer": (optax.GradientTransformation | None, None),
    }

    def decorate(term: Callable[..., Term]) -> Callable[..., Method]:
        name, own = term.__name__, inspect.signature(term)

        @wraps(term)
        def make(**given) -> Method:
            shared = {key: given.pop(key, default) for key, (_, default) in published.items()}
            forget = ((shared["forget_weight"], term(**given)),)
            kept = keep(name, shared["retain"], shared["retain_weight"])
            rate, optimizer = shared["learning_rate"], shared["optimizer"]
            return first_order(name, forget, kept, learning_rate=rate, optimizer=optimizer, alternative=alternative)

        more = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in published.items()
        ]
        make.__signature__ = own.replace(parameters=[*own.parameters.values(), *more], return_annotation=Method)
        make.__annotations__ = term.__annotations__ | {key: kind for key, (kind, _) in published.items()}
        make.__annotations__["return"] = Method
        make.__doc__ = _with_common(inspect.getdoc(term) or "")
        del make.__wrapped__  # its signature is not that of the recipe
        return make

    return decorate


def _with_common(doc: str) -> str:
    """A docstring with the shared arguments after its own."""
    before, found, own = doc.partition("Args:\n")
    if found:
        mine, gap, rest = own.partition("\n\n")
        return f"{before}Args:\n{mine.rstrip()}\n{_COMMON}{gap and chr(10)}{rest}"
    first, _, rest = doc.partition("\n\n")
    return f"{first}\n\nArgs:\n{_COMMON}\n{rest}"


def descent(
    name: str, learning_rate: float, optimizer: optax.GradientTransformation | None
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, or AdamW without weight decay; takes the extra arguments every method's transformation gets."""
    if not learning_rate > 0:
        raise ValueError(f"{name}(learning_rate={learning_rate}): give a positive learning rate")
    optimizer = optax.adamw(learning_rate, weight_decay=0.0) if optimizer is None else optimizer
    return optax.with_extra_args_support(optimizer)
