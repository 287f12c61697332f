"""What takes something to compare with: the retrained model, unseen texts, or several sets at once."""

from collections.abc import Sequence

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals import privacy, tofu
from jaxunlearn.evals.bootstrap import bootstrap, weighted_mean
from jaxunlearn.evals.catalogue import METRICS
from jaxunlearn.evals.divergence import kl
from jaxunlearn.evals.forget_quality import forget_quality
from jaxunlearn.evals.protocol import NO_RETRAINED, Run
from jaxunlearn.evals.result import Measure, Result, broken, by_index, measured, skipped, why_missing
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.evals.single import Part
from jaxunlearn.evals.tug_of_war import tug_of_war, tug_of_war_kl
from jaxunlearn.evals.variants import Variants, variant_nll


def divergence(part: Part, run: Run, options: dict) -> Result:
    """KL(retrained || model) and total variation on one set."""
    names = (f"{part.name}_kl", f"{part.name}_total_variation")
    if run.reference is None:
        return {name: skipped(name, NO_RETRAINED) for name in names}
    retrained, weights = run.reference
    apart = kl(retrained, weights, run.params, part.examples, model_q=run.model, **options)
    rows, tokens = (apart.kl, apart.total_variation), part.scores.tokens
    return {
        name: measured(name, np.array([np.mean(row) for row in values]), weights=tokens, seed=run.seed)
        for name, values in zip(names, rows, strict=True)
    }


def tug(found: Result, seed: int = 0) -> Result:
    """Tug of war, once the distances on forget and on retain are known; its interval resamples the texts of each."""
    forms = {
        "kl": (tug_of_war_kl, lambda *sets: np.exp(-sum(map(weighted_mean, sets)))),
        "total_variation": (tug_of_war, lambda *sets: np.prod([1.0 - weighted_mean(one) for one in sets], axis=0)),
    }
    measures: Result = {}
    for kind, (form, of_draws) in forms.items():
        key, names = f"tug_of_war_{kind}", (f"forget_{kind}", f"retain_{kind}")
        reason = next((why_missing(found[name]) for name in names if why_missing(found[name])), None)
        if reason is not None:
            measures[key] = skipped(key, reason)
            continue
        value = form([found[name]["agg_value"] for name in names])
        tokens = (found[f"{name.split('_')[0]}_nll"]["tokens_by_index"] for name in names)
        columns = zip((found[name]["value_by_index"] for name in names), tokens, strict=True)
        sets = [np.stack([_values(column) for column in both], axis=1) for both in columns]
        interval = list(bootstrap(of_draws, *sets, seed=seed))
        n = {"n": sum(found[name]["n"] for name in names)}
        measures[key] = measured(key, np.zeros(0), aggregate=value, interval=interval) | n
    return measures


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

    sides = rows(forget.scores, forget.examples), rows(outside, holdout)
    return {key: membership_measure(key, *both, seed=seed) for key, *both in zip(keys, *sides, strict=True)}


def membership_measure(name: str, members: np.ndarray, non_members: np.ndarray, *, seed: int = 0) -> Measure:
    """The measure of one membership attack, from scores of which higher ones say "member".

    `agg_value` is the AUC; `interval`, `tpr_at_1pct` and `tpr_at_01pct` stand beside it, `value_by_index` has the
    scores of the members, `holdout_by_index` those of the non-members.

    Example:
        >>> found = membership_measure("forget_loss_auc", np.array([-1.0, -2.0]), np.array([-3.0, -4.0, -5.0]))
        >>> found["agg_value"], found["n"], found["n_holdout"], found["higher_score_says"]
        (1.0, 2, 3, 'member')
    """
    try:
        test = privacy.attack(members, non_members, seed=seed)
    except ValueError as error:
        return broken(name, str(error))
    details = {"interval": list(test.interval), "tpr_at_1pct": test.tpr_at_1pct, "tpr_at_01pct": test.tpr_at_01pct}
    details |= {"higher_score_says": "member", "n_holdout": test.n[1], "holdout_by_index": by_index(non_members)}
    return measured(name, members, aggregate=test.auc, **details)


def quality(ratio: Measure, asked: Variants | str, run: Run, options: dict) -> Result:
    """Forget Quality: the KS test between the truth ratios of this model and the retrained one."""
    key, known = "forget_quality", (run.reference_result or {}).get("forget_truth_ratio")
    reason = ratio.get("skipped")
    if reason is None and run.reference is None and known is None:
        reason = NO_RETRAINED
    if reason is not None:
        return {key: skipped(key, reason)}
    theirs = known.get("log_ratio_by_index") if known is not None else None
    if theirs is None and run.reference is None:
        return {key: skipped(key, f"the retrained model has no truth ratios ({why_missing(known)})")}
    if theirs is None:
        scores = score(*run.reference, asked.encoded, **options)
        retrained = tofu.log_truth_ratio(*variant_nll(scores, asked, np.zeros(0)))
    else:
        retrained = _values(theirs)
    try:
        test = forget_quality(_values(ratio["log_ratio_by_index"]), retrained, seed=run.seed)
    except ValueError as error:
        return {key: broken(key, str(error))}
    details = {"log10_p": test.log10_p, "ks_statistic": test.statistic, "ks_interval": list(test.interval)}
    n = {"n": min(test.n), "n_retrained": test.n[1]}
    return {key: measured(key, np.zeros(0), aggregate=test.p_value, **details) | n}


def utility(found: Result, absent: list[str], seed: int = 0) -> Result:
    """Model Utility, once its nine numbers are known; its interval resamples the questions of each set."""
    key = "model_utility"
    without = [name for name in tofu.UTILITY_SETS if name in absent]
    if without:
        return {key: skipped(key, f"no {', '.join(without)} set given")}
    names = [f"{part}_{name}" for part in tofu.UTILITY_SETS for name in tofu.UTILITY_PARTS]
    for name in names:
        reason = why_missing(found[name])
        if reason is not None:
            return {key: skipped(key, f"{METRICS[name].label}: {reason}")}
    groups = [
        np.stack([_values(found[f"{part}_{name}"]["value_by_index"]) for name in tofu.UTILITY_PARTS], axis=1)
        for part in tofu.UTILITY_SETS
    ]
    value = tofu.model_utility([found[name]["agg_value"] for name in names])
    interval = list(bootstrap(tofu.utility_of_draws, *groups, seed=seed))
    return {key: measured(key, np.zeros(0), aggregate=value, interval=interval) | {"n": len(names)}}


def _values(column: dict[str, float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in column.values()], dtype=np.float64)
