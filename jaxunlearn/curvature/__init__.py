"""Curvature as linear operators on parameter pytrees.

Two layers: functions that take any loss or predictor (`hessian`, `gauss_newton`, `empirical_fisher`), and recipes of
the same names in capitals, hashable settings called as `recipe(model, params, batch) -> LinearOperator`.
"""

from dataclasses import dataclass

from jaxunlearn import operators
from jaxunlearn.curvature.accumulate import accumulate
from jaxunlearn.curvature.empirical_fisher import EmpiricalFisher, LowRankOperator, empirical_fisher
from jaxunlearn.curvature.gauss_newton import GaussNewton, gauss_newton
from jaxunlearn.curvature.hessian import Hessian, hessian
from jaxunlearn.types import Batch, Model, Params

__all__ = [
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "Identity",
    "LowRankOperator",
    "accumulate",
    "empirical_fisher",
    "gauss_newton",
    "hessian",
]


@dataclass(frozen=True)
class Identity:
    """Curvature recipe: the Euclidean metric, under which every method is plain gradient descent on its objective."""

    def __call__(self, model: Model, params: Params, batch: Batch) -> operators.LinearOperator:
        return operators.identity(params)
