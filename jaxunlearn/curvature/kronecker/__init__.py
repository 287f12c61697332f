"""K-FAC and EK-FAC: curvature as Kronecker products of small factors that come out of `jax.grad`."""

from jaxunlearn.curvature.kronecker.eigen import KroneckerEigen, eigendecompose
from jaxunlearn.curvature.kronecker.factors import KroneckerFactors, kronecker_factors, second_moments
from jaxunlearn.curvature.kronecker.joint import gradient_and_factors
from jaxunlearn.curvature.kronecker.operator import KroneckerOperator, from_eigen, from_factors, mean_eigenvalues
from jaxunlearn.curvature.kronecker.recipes import EKFAC, KFAC
from jaxunlearn.curvature.kronecker.settings import Settings
from jaxunlearn.curvature.kronecker.storage import load, save
from jaxunlearn.curvature.kronecker.table import Row, Table, Term, make_table

__all__ = [
    "EKFAC",
    "KFAC",
    "KroneckerEigen",
    "KroneckerFactors",
    "KroneckerOperator",
    "Row",
    "Settings",
    "Table",
    "Term",
    "eigendecompose",
    "from_eigen",
    "from_factors",
    "gradient_and_factors",
    "kronecker_factors",
    "load",
    "make_table",
    "mean_eigenvalues",
    "save",
    "second_moments",
]
