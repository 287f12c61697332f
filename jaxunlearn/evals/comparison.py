"""What takes something to compare with: the retrained model, unseen texts, or several sets at once."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals import privacy, tofu
from jaxunlearn.evals.catalogue import METRICS
from jaxunlearn.evals.divergence import kl
from jaxunlearn.evals.forget_quality import forget_quality
from jaxunlearn.evals.result import Measure, Result, broken, by_index, measured, skipped, why_missing
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.evals.single import Part, token_mean
from jaxunlearn.evals.variants import Variants, variant_nll
from jaxunlearn.types import Model, Params

Reference = tuple[Model, Params]


def divergence(part: Part, model: Model, params: Params, reference: Reference | None, options: dict) -> Result:
    """KL(retrained || model) and total variation on one set."""
    names = (f"{part.name}_kl", f"{part.name}_total_variation")
    if reference is None:
        return {name: skipped(name, "no retrained model given") for name in names}
    apart = kl(reference[0], reference[1], params, part.examples, model_q=model, **options)
    rows = (apart.kl, apart.total_variation)
    return {
        name: measured(name, np.array([np.mean(row) for row in values]), aggregate=token_mean(values))
        for name, values in zip(names, rows, strict=True)
    }


def attacks(forget: Part, outside: Scores, holdout: Sequence[Encoded], seed: int) -> Result:
    """Forget texts as members against the holdout, one attack a row."""
    keys = ("forget_loss_auc", "forget_min_k_auc", "forget_min_k_plus_plus_auc", "forget_zlib_auc")
    if not holdout:
        return {key: skipped(key, "no holdout set given") for key in keys}

    def rows(scores: Scores, examples: Sequence[Encoded]) -> tuple[np.ndarray, ...]:
        texts = [example.record.completion for example in examples]
        return (
            privacy.membership_by_loss(scores.log_probs),
            privacy.membership_by_min_k(scores.log_probs),
            privacy.membership_by_min_k_plus_plus(scores.log_probs, scores.means, scores.stds),
            privacy.membership_by_zlib(scores.log_probs, texts),
        )

    found: Result = {}
    members, others = rows(forget.scores, forget.examples), rows(outside, holdout)
    for key, inside, beyond in zip(keys, members, others, strict=True):
        try:
            result = privacy.attack(inside, beyond, seed=seed)
        except ValueError as error:
            found[key] = broken(key, str(error))
            continue
        details = result._asdict() | {"holdout_by_index": by_index(beyond)}
        found[key] = measured(key, inside, aggregate=result.auc, **{k: v for k, v in details.items() if k != "n"})
    return found


def quality(
    ratio: Measure, asked: Variants | str, reference: Reference | None, known: Result | None, options: dict, seed: int
) -> Result:
    """Forget Quality: the KS test between the truth ratios of this model and the retrained one."""
    key = "forget_quality"
    reason = ratio.get("skipped")
    if reason is None and reference is None and known is None:
        reason = "no retrained model given"
    if reason is not None:
        return {key: skipped(key, reason)}
    theirs = known["forget_truth_ratio"].get("log_ratio_by_index") if known is not None else None
    if theirs is None and reference is None:
        return {
            key: skipped(key, f"the retrained model has no truth ratios ({why_missing(known['forget_truth_ratio'])})")
        }
    if theirs is None:
        scores = score(*reference, asked.encoded, **options)
        retrained = tofu.log_truth_ratio(*variant_nll(scores, asked, np.zeros(0)))
    else:
        retrained = _values(theirs)
    try:
        test = forget_quality(_values(ratio["log_ratio_by_index"]), retrained, seed=seed)
    except ValueError as error:
        return {key: broken(key, str(error))}
    details = {"log10_p": test.log10_p, "ks_statistic": test.statistic, "ks_interval": list(test.interval)}
    n = {"n": min(test.n), "n_retrained": test.n[1]}
    return {key: measured(key, np.zeros(0), aggregate=test.p_value, **details) | n}


def utility(found: Result, absent: list[str]) -> Result:
    """Model Utility, once its nine numbers are known."""
    key = "model_utility"
    without = [name for name in tofu.UTILITY_SETS if name in absent]
    if without:
        return {key: skipped(key, f"no {', '.join(without)} set given")}
    names = [f"{part}_{name}" for part in tofu.UTILITY_SETS for name in tofu.UTILITY_PARTS]
    for name in names:
        reason = why_missing(found[name])
        if reason is not None:
            return {key: skipped(key, f"{METRICS[name].label}: {reason}")}
    value = tofu.model_utility([found[name]["agg_value"] for name in names])
    return {key: measured(key, np.zeros(0), aggregate=value) | {"n": len(names)}}


def _values(column: dict[str, float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in column.values()], dtype=np.float64)
