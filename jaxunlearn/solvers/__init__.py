"""Solvers for `A x = b`: called as `(operator, rhs, x0) -> (x, SolveInfo)`, pure, inside `jit`, on any mesh."""

from jaxunlearn.solvers.cg import CG
from jaxunlearn.solvers.closed_form import ClosedForm
from jaxunlearn.solvers.status import SolveInfo, Status

__all__ = ["CG", "ClosedForm", "SolveInfo", "Status"]
