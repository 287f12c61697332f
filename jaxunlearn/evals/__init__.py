"""Measuring forgetting: score a set once, then compute what can be computed from the scores.

`score` and `kl` are the only functions here that touch a device; `evaluate` runs them for a whole suite.
"""

from jaxunlearn.evals.catalogue import METRICS, Metric
from jaxunlearn.evals.divergence import Divergence, kl
from jaxunlearn.evals.forget_quality import ForgetQuality, forget_quality
from jaxunlearn.evals.memorisation import exact_memorisation, extraction_strength
from jaxunlearn.evals.privacy import (
    Attack,
    attack,
    membership_by_loss,
    membership_by_min_k,
    membership_by_min_k_plus_plus,
    membership_by_zlib,
)
from jaxunlearn.evals.result import Measure, Result, why_missing, write_result
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.evals.suite import evaluate
from jaxunlearn.evals.tofu import (
    log_truth_ratio,
    model_utility,
    normalised_probability,
    probability,
    rouge_l_recall,
    truth_ratio_forget,
    truth_ratio_retain,
)

__all__ = [
    "METRICS",
    "Attack",
    "Divergence",
    "ForgetQuality",
    "Measure",
    "Metric",
    "Result",
    "Scores",
    "attack",
    "evaluate",
    "exact_memorisation",
    "extraction_strength",
    "forget_quality",
    "kl",
    "log_truth_ratio",
    "membership_by_loss",
    "membership_by_min_k",
    "membership_by_min_k_plus_plus",
    "membership_by_zlib",
    "model_utility",
    "normalised_probability",
    "probability",
    "rouge_l_recall",
    "score",
    "truth_ratio_forget",
    "truth_ratio_retain",
    "why_missing",
    "write_result",
]
