"""Measuring forgetting: score a set once, then compute what can be computed from the scores.

`score`, `kl` and a generator are all that touches a device; `evaluate` runs them over a forget set and what comes with
it, `suites` over published benchmarks. Every family of metrics owns its rows; `METRICS` looks all of them up.
"""

from jaxunlearn.evals.attacks.catalogue import ATTACK_METRICS
from jaxunlearn.evals.bootstrap import bootstrap
from jaxunlearn.evals.catalogue import METRICS, Metric, register
from jaxunlearn.evals.coreset import coreset
from jaxunlearn.evals.divergence import Divergence, kl
from jaxunlearn.evals.faithfulness import faithfulness
from jaxunlearn.evals.forget_quality import ForgetQuality, forget_quality
from jaxunlearn.evals.memorisation import exact_memorisation, extraction_strength
from jaxunlearn.evals.perplexity import perplexity
from jaxunlearn.evals.privacy import (
    Attack,
    attack,
    membership_by_gradient_norm,
    membership_by_loss,
    membership_by_min_k,
    membership_by_min_k_plus_plus,
    membership_by_neighbourhood,
    membership_by_recall,
    membership_by_reference,
    membership_by_zlib,
)
from jaxunlearn.evals.protocol import Run, Suite
from jaxunlearn.evals.result import Measure, Result, why_missing, write_result
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.evals.suite import evaluate
from jaxunlearn.evals.suites import (
    CHOICE_METRICS,
    KNOWUNDO_METRICS,
    MEMORISATION_METRICS,
    MUSE_METRICS,
    SUITES,
    Sources,
    build,
    run_suites,
)
from jaxunlearn.evals.tofu import (
    log_truth_ratio,
    model_utility,
    normalised_probability,
    probability,
    rouge_l_recall,
    truth_ratio_forget,
    truth_ratio_retain,
)
from jaxunlearn.evals.tug_of_war import tug_of_war, tug_of_war_kl

for _rows in (MEMORISATION_METRICS, MUSE_METRICS, KNOWUNDO_METRICS, CHOICE_METRICS, ATTACK_METRICS):
    register(_rows)

__all__ = [
    "METRICS",
    "SUITES",
    "Attack",
    "Divergence",
    "ForgetQuality",
    "Measure",
    "Metric",
    "Result",
    "Run",
    "Scores",
    "Sources",
    "Suite",
    "attack",
    "bootstrap",
    "build",
    "coreset",
    "evaluate",
    "exact_memorisation",
    "extraction_strength",
    "faithfulness",
    "forget_quality",
    "kl",
    "log_truth_ratio",
    "membership_by_gradient_norm",
    "membership_by_loss",
    "membership_by_min_k",
    "membership_by_min_k_plus_plus",
    "membership_by_neighbourhood",
    "membership_by_recall",
    "membership_by_reference",
    "membership_by_zlib",
    "model_utility",
    "normalised_probability",
    "perplexity",
    "probability",
    "register",
    "rouge_l_recall",
    "run_suites",
    "score",
    "truth_ratio_forget",
    "truth_ratio_retain",
    "tug_of_war",
    "tug_of_war_kl",
    "why_missing",
    "write_result",
]
