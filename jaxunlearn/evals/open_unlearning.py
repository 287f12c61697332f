"""OpenUnlearning's result files (Dorna et al. 2025): its names for our metrics, and our results in its form.

{metric: {agg_value, value_by_index: {"0": {name: x}}}},  attacks {agg_value, auc, forget: {...}, holdout: {...}}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn.evals.result import Result

PARTS = {"forget": "forget", "retain": "retain", "authors": "ra", "world": "wf"}
THEIRS = {
    **{f"{ours}_probability": (f"{theirs}_Q_A_Prob", "prob") for ours, theirs in PARTS.items()},
    **{f"{ours}_rouge_l": (f"{theirs}_Q_A_ROUGE", "rougeL_recall") for ours, theirs in PARTS.items()},
    **{f"{ours}_truth_ratio": (f"{theirs}_Truth_Ratio", "score") for ours, theirs in PARTS.items()},
    "authors_probability": ("ra_Q_A_Prob_normalised", "prob"),
    "world_probability": ("wf_Q_A_Prob_normalised", "prob"),
    "forget_truth_ratio": ("forget_truth_ratio", "score"),
    "forget_quality": ("forget_quality", "score"),
    "model_utility": ("model_utility", "score"),
    "forget_exact_memorisation": ("exact_memorization", "score"),
    "forget_extraction_strength": ("extraction_strength", "score"),
    "muse_verbmem_forget": ("forget_verbmem_ROUGE", "rougeL_f1"),
    "muse_knowmem_forget": ("forget_knowmem_ROUGE", "rougeL_f1"),
    "muse_knowmem_retain": ("retain_knowmem_ROUGE", "rougeL_f1"),
    "muse_privleak_open_unlearning": ("privleak", "score"),
    "muse_min_k_auc": ("mia_min_k", "score"),
    **{
        f"forget_{attack}_auc": (f"mia_{theirs}", "score")
        for attack, theirs in (
            ("min_k", "min_k"),
            ("loss", "loss"),
            ("zlib", "zlib"),
            ("min_k_plus_plus", "min_k_plus_plus"),
            ("gradient_norm", "gradnorm"),
            ("reference", "reference"),
        )
    },
}
"""Our name of a metric to OpenUnlearning's, and the key of its per-example values."""
OF_MUSE = "forget_verbmem_rouge"
"""In lower case, a metric of its MUSE files alone: there `mia_min_k` is MUSE's, elsewhere TOFU's."""


def open_unlearning(result: Result) -> dict[str, dict[str, Any]]:
    """Our result in OpenUnlearning's form and under its names, for its scripts and tables.

    Its truth ratio is wrong over correct, ours correct over wrong: `score = 1 / s`. Its attacks give a score to each
    text of `forget` and of `holdout` that is lower for members, ours one that is higher; the AUC is the same. Metrics
    it does not know keep our names; a metric without a value is left out, as its form has no place for a reason.

    Example:
        >>> found = open_unlearning({"forget_probability": {"agg_value": 0.5, "value_by_index": {"0": 0.5}}})
        >>> found
        {'forget_Q_A_Prob': {'agg_value': 0.5, 'value_by_index': {'0': {'prob': 0.5}}}}
    """
    found = {}
    for name, measure in result.items():
        if measure.get("agg_value") is None:
            continue
        theirs, key = THEIRS.get(name, (name, "score"))
        if theirs.startswith("mia_"):
            sides = {"forget": measure["value_by_index"], "holdout": measure.get("holdout_by_index") or {}}
            value = measure["agg_value"]
            found[theirs] = {"agg_value": value, "auc": value, **{side: _side(rows) for side, rows in sides.items()}}
            continue
        rows = {index: {key: value} for index, value in measure.get("value_by_index", {}).items()}
        for index, log_s in measure.get("log_ratio_by_index", {}).items():
            # The logarithm comes along because the ratio itself may overflow.
            rows[index] = {key: float(np.exp(min(-log_s, 700.0))), "log_ratio": log_s}
        found[theirs] = {"agg_value": measure["agg_value"], "value_by_index": rows}
    return found


def _side(rows: Mapping[str, float]) -> dict[str, Any]:
    """The scores of one side of an attack, lower for members."""
    scores = {index: {"score": -value} for index, value in rows.items()}
    return {"agg_value": -float(np.mean([*rows.values()])) if rows else None, "value_by_index": scores}
