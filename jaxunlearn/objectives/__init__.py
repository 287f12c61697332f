"""Objectives: what to forget and what to keep, as losses that any method minimises under any curvature."""

from jaxunlearn.objectives import reference
from jaxunlearn.objectives.objective import Objective, Term
from jaxunlearn.objectives.terms import NLL, NPO, CounterfactualKL, KLRetain

__all__ = ["NLL", "NPO", "CounterfactualKL", "KLRetain", "Objective", "Term", "reference"]
