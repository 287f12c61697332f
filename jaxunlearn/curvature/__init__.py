"""Curvature as linear operators on parameter pytrees.

Two layers: functions that take any loss or predictor (`hessian`, `gauss_newton`, `empirical_fisher`), and recipes of
the same names in capitals, hashable settings called as `recipe(model, params, batch) -> LinearOperator`.

Which one, with P the bytes of the parameters in f32 and costs in gradients:

    recipe                 what it is                      a product              beyond a gradient     powers
    GaussNewton            metric of the predictions, >= 0 1.6, in a loop 1.2     little                by a solver
    Hessian                exact, indefinite               2.6, linearised 2.1    1x, linearised 5-11x  by a solver
    KFAC, EKFAC            blocks, approximate             .4 to .6, 1.7 once     sides squared         exact
    EmpiricalFisher        m true gradients, rank m        2m passes over P       m P                   exact
      stored=False         the same, nothing kept          1.5                    little                m^2/16 once
    TrueFisher             m drawn gradients, E[.] = G     2m passes over P       m P                   exact
    GaussNewtonBartlett    diagonal, E[.] = diag G         elementwise, 1 once    P                     exact
    SquaredGradients       diagonal of EmpiricalFisher     elementwise, 1 once    P                     exact
    HutchinsonDiagonal     diagonal of any of them         elementwise, k once    P                     exact

GaussNewton under CG is the default. A low-rank form when one needs powers, or many solves at one point; a diagonal when
curvature must cost no more than the second moment of an optimiser; the Hessian for influence and negative directions.
`streamed` takes products over data that the host walks through, `streamed_diagonal` diagonals; `subset` takes any over
some parameters, `Stored` reads what was taken beforehand (Kronecker factors, dual gradients or a Lanczos basis), which
`save` and `load` keep in a folder.
"""

from dataclasses import dataclass

from jaxunlearn import operators
from jaxunlearn.accumulate import accumulate
from jaxunlearn.curvature.diagonal import (
    DiagonalOperator,
    GaussNewtonBartlett,
    HutchinsonDiagonal,
    SquaredGradients,
    diagonal,
    gauss_newton_bartlett,
    hutchinson_diagonal,
    squared_gradients,
)
from jaxunlearn.curvature.empirical_fisher import EmpiricalFisher, empirical_fisher, empirical_fisher_factor
from jaxunlearn.curvature.factors import gauss_newton_factor
from jaxunlearn.curvature.forward_mode import ForwardModeError, check_forward_mode
from jaxunlearn.curvature.gauss_newton import GaussNewton, gauss_newton
from jaxunlearn.curvature.hessian import Hessian, hessian, hessian_product
from jaxunlearn.curvature.kronecker import EKFAC, KFAC, KroneckerOperator
from jaxunlearn.curvature.low_rank import LowRankOperator
from jaxunlearn.curvature.probe import check_deterministic
from jaxunlearn.curvature.store_files import Store, load, save
from jaxunlearn.curvature.stored import Stored, StoredRows, store_krylov, store_rows
from jaxunlearn.curvature.streamed import streamed, streamed_diagonal, streamed_product
from jaxunlearn.curvature.subset import combine, over_chosen, partition, subset
from jaxunlearn.curvature.true_fisher import TrueFisher, true_fisher
from jaxunlearn.types import Batch, Model, Params

__all__ = [
    "EKFAC",
    "KFAC",
    "DiagonalOperator",
    "EmpiricalFisher",
    "ForwardModeError",
    "GaussNewton",
    "GaussNewtonBartlett",
    "Hessian",
    "HutchinsonDiagonal",
    "Identity",
    "KroneckerOperator",
    "LowRankOperator",
    "SquaredGradients",
    "Store",
    "Stored",
    "StoredRows",
    "TrueFisher",
    "accumulate",
    "check_deterministic",
    "check_forward_mode",
    "combine",
    "diagonal",
    "empirical_fisher",
    "empirical_fisher_factor",
    "gauss_newton",
    "gauss_newton_bartlett",
    "gauss_newton_factor",
    "hessian",
    "hessian_product",
    "hutchinson_diagonal",
    "load",
    "over_chosen",
    "partition",
    "save",
    "squared_gradients",
    "store_krylov",
    "store_rows",
    "streamed",
    "streamed_diagonal",
    "streamed_product",
    "subset",
    "true_fisher",
]


@dataclass(frozen=True)
class Identity:
    """Curvature recipe: the Euclidean metric, under which every method is plain gradient descent on its objective."""

    def __call__(self, model: Model, params: Params, batch: Batch) -> operators.LinearOperator:
        return operators.identity(params)
