"""First-order recipes: `forget_weight * forget term + retain_weight * retain term` under a plain optimiser.

They are the baselines every comparison includes. This file holds what the families share: the retain terms, and the
step from terms to a `Method`. The optimiser is AdamW without weight decay unless another is given.
"""

from typing import Literal, get_args

import optax

from jaxunlearn.methods.method import Method
from jaxunlearn.objectives import NLL, AnswerPreservation, KLRetain, Objective, Term, needs_of

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
    return Method(name, Objective(terms), transform, needs_of(terms), alternative=alternative)


def descent(
    name: str, learning_rate: float, optimizer: optax.GradientTransformation | None
) -> optax.GradientTransformationExtraArgs:
    """`optimizer`, or AdamW without weight decay; takes the extra arguments every method's transformation gets."""
    if not learning_rate > 0:
        raise ValueError(f"{name}(learning_rate={learning_rate}): give a positive learning rate")
    optimizer = optax.adamw(learning_rate, weight_decay=0.0) if optimizer is None else optimizer
    return optax.with_extra_args_support(optimizer)
