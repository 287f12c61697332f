r"""All membership attacks on one model, from as few passes as they need; higher scores say member in every one.

Members are texts the model was trained on, or had to forget; non-members are like them and were never seen. LOSS,
ZLib, Min-K% and Min-K%++ come from one scoring pass. The others cost more:

    gradient norm   a gradient a text
    reference       a scoring pass of a second model
    neighbourhood   a pass over the neighbours (`neighbourhood`)
    recall          a pass over the texts behind a prefix of non-members, which are left out of the comparison

Each gives an AUC with a bootstrap interval, and true positive rates at 1% and .1% false positives (`privacy.attack`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals import privacy
from jaxunlearn.evals.attacks.conditional import behind_prefix
from jaxunlearn.evals.attacks.gradient_norm import gradient_norms
from jaxunlearn.evals.attacks.neighbourhood import Source, neighbour_nll
from jaxunlearn.evals.comparison import membership_measure
from jaxunlearn.evals.result import Result, skipped
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.types import Model, Params


@dataclass(frozen=True)
class Attacker:
    """What an attacker brings along.

    Attributes:
        reference: (model, params) like the model but for the members; without it that attack is skipped.
        max_length: the model's context, tokens, for the prefix; without it that attack is skipped.
        begin: id of the tokenizer's begin token.
        keep: ids that neighbours keep, such as the special ones.
        shots: non-members in the prefix, at most half of them.
        neighbours, share, source: see `neighbourhood.neighbour_nll`.
        min_k: share of tokens of Min-K% and Min-K%++.
        at_once: gradients in memory at once.
        seed: of neighbours and bootstrap.
    """

    reference: tuple[Model, Params] | None = None
    max_length: int | None = None
    begin: int | None = None
    keep: Collection[int] = ()
    shots: int = 4
    neighbours: int = 8
    share: float = 0.15
    source: Source = "model"
    min_k: float = 0.4
    at_once: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.shots < 1:
            raise ValueError(f"Attacker(shots={self.shots}): a prefix needs at least one text")


@dataclass(frozen=True, eq=False)
class _Asked:
    """A model and the texts it is asked about, non-members first: they begin with those that make the prefix."""

    model: Model
    params: Params
    texts: Sequence[Encoded]
    scores: Scores
    attacker: Attacker
    shots: int
    options: dict[str, Any] = field(default_factory=dict)


def _min_k_plus_plus(asked: _Asked) -> np.ndarray:
    s = asked.scores
    return privacy.membership_by_min_k_plus_plus(s.log_probs, s.means, s.stds, k=asked.attacker.min_k)


def _gradient_norm(asked: _Asked) -> np.ndarray:
    norms = gradient_norms(asked.model, asked.params, asked.texts, at_once=asked.attacker.at_once, **asked.options)
    return privacy.membership_by_gradient_norm(norms)


def _reference(asked: _Asked) -> np.ndarray | str:
    if asked.attacker.reference is None:
        return "no reference model given"
    theirs = score(*asked.attacker.reference, asked.texts, **asked.options)
    return privacy.membership_by_reference(asked.scores.log_probs, theirs.log_probs)


def _neighbourhood(asked: _Asked) -> np.ndarray:
    how = asked.attacker
    nll = neighbour_nll(
        asked.model,
        asked.params,
        asked.texts,
        source=how.source,
        count=how.neighbours,
        share=how.share,
        keep=how.keep,
        seed=how.seed,
        **asked.options,
    )
    return privacy.membership_by_neighbourhood(asked.scores.log_probs, nll)


def _recall(asked: _Asked) -> np.ndarray | str:
    how = asked.attacker
    if how.max_length is None:
        return "no context length given"
    if asked.shots < 1:
        return "one non-member cannot be both prefix and comparison; give at least two"
    prefix, rest = asked.texts[: asked.shots], asked.texts[asked.shots :]
    try:
        conditional = behind_prefix(rest, prefix, max_length=how.max_length, begin=how.begin)
    except ValueError as error:
        return str(error)
    behind = score(asked.model, asked.params, conditional, **asked.options)
    return privacy.membership_by_recall(asked.scores[asked.shots :].log_probs, behind.log_probs)


ATTACKS: dict[str, Callable[[_Asked], np.ndarray | str]] = {
    "forget_loss_auc": lambda asked: privacy.membership_by_loss(asked.scores.log_probs),
    "forget_min_k_auc": lambda asked: privacy.membership_by_min_k(asked.scores.log_probs, k=asked.attacker.min_k),
    "forget_min_k_plus_plus_auc": _min_k_plus_plus,
    "forget_zlib_auc": lambda asked: privacy.membership_by_zlib(
        asked.scores.log_probs, [one.record.completion for one in asked.texts]
    ),
    "forget_gradient_norm_auc": _gradient_norm,
    "forget_reference_auc": _reference,
    "forget_neighbourhood_auc": _neighbourhood,
    "forget_recall_auc": _recall,
}
"""Metric to what scores the texts (or says why it cannot)."""


def membership(
    model: Model,
    params: Params,
    members: Sequence[Encoded],
    non_members: Sequence[Encoded],
    *,
    attacker: Attacker | None = None,
    only: Collection[str] | None = None,
    **options: Any,
) -> Result:
    """Runs the membership attacks on one model.

    Args:
        model, params: the attacked model.
        members: texts to be recognised.
        non_members: texts of the same kind that were never seen.
        attacker: what the attacks need besides.
        only: some of the keys of `ATTACKS`; default all.
        options: `batch_size`, `mesh` of `score`.

    Returns:
        A measure for each attack, see `evals.comparison.membership_measure`.

    Errors:
        ValueError: an empty side, or an attack that does not exist.
    """
    attacker = attacker or Attacker()
    for name, side in (("members", members), ("non-members", non_members)):
        if not side:
            raise ValueError(f"membership attacks need at least one text among the {name}")
    unknown = [name for name in only or () if name not in ATTACKS]
    if unknown:
        raise ValueError(f"no membership attack is called {unknown[0]!r}; there are {', '.join(ATTACKS)}")
    texts, shots = [*non_members, *members], min(attacker.shots, len(non_members) // 2)
    asked = _Asked(model, params, texts, score(model, params, texts, **options), attacker, shots, options)
    found: Result = {}
    for name in ATTACKS if only is None else [name for name in ATTACKS if name in only]:
        scores = ATTACKS[name](asked)
        if isinstance(scores, str):
            found[name] = skipped(name, scores)
            continue
        outside, inside = scores[: -len(members)], scores[-len(members) :]
        found[name] = membership_measure(name, inside, outside, seed=attacker.seed)
    return found
