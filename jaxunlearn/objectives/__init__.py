"""Objectives: what to forget and what to keep, as losses that any method minimises under any curvature.

Terms by family: `likelihood` (ascent, weighted or not), `preference` (logistic losses of sequence likelihoods),
`distribution` (match a given answer), `suppression` (push the true token below the others), `representation` (steer
hidden states); `sharpness` wraps any of them. `reference` computes what is stored of the original model.
"""

from jaxunlearn.objectives import reference
from jaxunlearn.objectives.distribution import UNDIAL, CounterfactualKL, Divergence, KLForget, KLRetain, MaxEntropy
from jaxunlearn.objectives.likelihood import NLL, WeightedAscent
from jaxunlearn.objectives.objective import Objective, Term, needs_of, reads
from jaxunlearn.objectives.preference import DPO, NPO, AnswerPreservation, SimNPO
from jaxunlearn.objectives.representation import ActivationMatch, Misdirection
from jaxunlearn.objectives.sharpness import SharpnessAware
from jaxunlearn.objectives.suppression import AdversarialNLL, CrossEntropyUnlearning, InvertedHinge, LogitFlattening

__all__ = [
    "DPO",
    "NLL",
    "NPO",
    "UNDIAL",
    "ActivationMatch",
    "AdversarialNLL",
    "AnswerPreservation",
    "CounterfactualKL",
    "CrossEntropyUnlearning",
    "Divergence",
    "InvertedHinge",
    "KLForget",
    "KLRetain",
    "LogitFlattening",
    "MaxEntropy",
    "Misdirection",
    "Objective",
    "SharpnessAware",
    "SimNPO",
    "Term",
    "WeightedAscent",
    "needs_of",
    "reads",
    "reference",
]
