r"""Meta-evaluation: does a metric tell models that know a text from models that never saw it?

A metric of knowledge is *faithful* if it ranks every model that was trained on the text above every one that was not
(Dorna et al. 2025, OpenUnlearning, arXiv 2506.12618): its faithfulness is the AUC between the two pools,

    P( metric(knows) > metric(never knew) ) + 1/2 P( equal ),

1 for a perfect metric, 1/2 for one that says nothing, below 1/2 for one that points the wrong way.

`faithfulness` takes the values of one metric; `rank` takes all that was measured of two pools of models and puts the
metrics in order.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxunlearn.evals.catalogue import METRICS, family
from jaxunlearn.evals.privacy import Attack, attack

Direction = Literal["higher", "lower"]
# Below 0 the forget set is still recognisable as known (`evals.muse`).
_LOWER = ("muse_privleak", "muse_privleak_open_unlearning")
# How a model talks, and what comes back when it is changed: nothing that it knows as it is.
_OF_ANOTHER_THING = ("_distinct_2", "_repetition", "_robustness", "_return")


class Ranking(NamedTuple):
    """How faithful metrics are.

    Attributes:
        metrics: AUC, interval and direction of each, the most faithful first.
        left_out: metrics that say nothing of what a model knows, or that were not measured on every model, with why.
    """

    metrics: dict[str, tuple[Attack, Direction]]
    left_out: dict[str, str]


def faithfulness(
    knows: Sequence[float],
    never_knew: Sequence[float],
    *,
    knowing_is: Direction = "higher",
    seed: int = 0,
) -> Attack:
    """AUC of a metric between models that know and models that never knew, with its bootstrap interval.

    Args:
        knows: the metric's value on each model that was trained on the text.
        never_knew: on each model that was not.
        knowing_is: whether knowing gives the metric higher values (exact memorisation) or lower ones (NLL).
        seed: of the interval.

    Errors:
        ValueError: an empty pool or values that are not finite.

    Example:
        >>> faithfulness([0.9, 0.8], [0.3, 0.8]).auc
        0.875
        >>> faithfulness([0.1, 0.2], [3.0, 2.0], knowing_is="lower").auc
        1.0
    """
    sign = 1.0 if knowing_is == "higher" else -1.0
    return attack(sign * np.asarray(knows, np.float64), sign * np.asarray(never_knew, np.float64), seed=seed)


def knowing_is(metric: str) -> Direction | None:
    """Which values of a metric a model has that knows the forget set; None for a metric of something else.

    A forget metric that should fall is high on a model that knows, and one that should rise is low; an attacker's
    success, and accuracy in multiple choice, are high.

    Example:
        >>> [knowing_is(name) for name in ("forget_exact_memorisation", "forget_nll", "forget_loss_auc", "retain_nll")]
        ['higher', 'lower', 'higher', None]
    """
    own = family(metric)
    if own is None or metric.endswith(_OF_ANOTHER_THING):
        return None
    row = METRICS[own]
    if row.group not in ("forget", "privacy") and not row.by_source:
        return None
    return "lower" if metric in _LOWER or row.higher_is == "better" else "higher"


def rank(knows: Sequence[Mapping[str, float]], never_knew: Sequence[Mapping[str, float]], *, seed: int = 0) -> Ranking:
    """The faithfulness of every metric that was measured on all models.

    Args:
        knows: `{metric: value}` of each model that was trained on the text.
        never_knew: of each model that was not.
        seed: of the intervals.

    Errors:
        ValueError: an empty pool.

    Example:
        >>> knows = [{"forget_nll": 0.1, "forget_loss_auc": 0.9}, {"forget_nll": 0.2, "forget_loss_auc": 0.6}]
        >>> never = [{"forget_nll": 2.0, "forget_loss_auc": 0.5}, {"forget_nll": 3.0, "forget_loss_auc": 0.7}]
        >>> {name: (found.auc, said) for name, (found, said) in rank(knows, never).metrics.items()}
        {'forget_nll': (1.0, 'lower'), 'forget_loss_auc': (0.75, 'higher')}
    """
    pools, left_out, found = (knows, never_knew), {}, {}
    if not all(pools):
        raise ValueError("faithfulness needs models that know and models that never did: one of the two pools is empty")
    everyone = [*knows, *never_knew]
    for name in dict.fromkeys(name for model in everyone for name in model):
        said, lacking = knowing_is(name), sum(name not in model for model in everyone)
        if said is None:
            left_out[name] = "it says nothing of what a model knows of the text, or its direction is not known"
        elif lacking:
            left_out[name] = f"{lacking} of {len(everyone)} models have no value"
        else:
            columns = ([model[name] for model in pool] for pool in pools)
            found[name] = faithfulness(*columns, knowing_is=said, seed=seed), said
    order = sorted(found, key=lambda name: -found[name][0].auc)
    return Ranking({name: found[name] for name in order}, left_out)
