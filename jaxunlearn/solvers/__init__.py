"""Solvers for `A x = b`: called as `(operator, rhs, x0) -> (x, SolveInfo)`, pure, inside `jit`, on any mesh.

Which one, for a curvature with condition number kappa and to a residual of eps. Vectors are f32, four bytes a parameter
each, those of the product itself not counted:

    solver      for                                      products                      vectors
    CG          positive definite A: the default         sqrt(kappa) ln(2 / eps) / 2   4
    MINRES      indefinite or singular A: Hessians       as CG on |A|, up to twice     7
    BlockCG     k right-hand sides, spiked spectrum      below k times CG's            4 k
    Neumann     reference; very inexact products         kappa ln(1 / eps)             5
    LiSSA       another minibatch at every step          kappa ln(1 / eps) a chain     6
    Lanczos     powers, every damping from one run       as CG                         k of k steps
    NystromCG   outliers over a small bulk               rank + a few dozen            5 rank
    Cubic*      steps along negative curvature           as Lanczos                    k of k steps

`Cubic*` stands for `CubicRegularized` and `TrustRegionLanczos`. All of them run inside `jit`; all but the closed forms
and `NystromCG` run from the host as well, product by product and resumably (`solve_on_host`).
"""

from jaxunlearn.solvers.block_cg import BlockCG
from jaxunlearn.solvers.cg import CG
from jaxunlearn.solvers.closed_form import ClosedForm
from jaxunlearn.solvers.estimates import Estimate, squared_frobenius_norm, trace
from jaxunlearn.solvers.host import initial_state, solve_on_host
from jaxunlearn.solvers.host_basis import solve_with_host_basis
from jaxunlearn.solvers.krylov import DampingPath, damping_path, matrix_function
from jaxunlearn.solvers.lanczos import lanczos
from jaxunlearn.solvers.lissa import LiSSA, SampledOperator, sampled
from jaxunlearn.solvers.matrix_power import Lanczos
from jaxunlearn.solvers.minres import MINRES
from jaxunlearn.solvers.neumann import Neumann
from jaxunlearn.solvers.nystrom import NystromApproximation, NystromCG, nystrom
from jaxunlearn.solvers.outliers import Outliers, outliers
from jaxunlearn.solvers.protocol import IterativeSolver, drive
from jaxunlearn.solvers.ritz import ritz_values
from jaxunlearn.solvers.spectral_density import Spectrum, density, log_determinant, quadrature, slq, trace_of
from jaxunlearn.solvers.state_file import fingerprint, load_state, save_state
from jaxunlearn.solvers.status import SolveInfo, Status
from jaxunlearn.solvers.tridiagonal import Tridiagonalization
from jaxunlearn.solvers.trust_region import CubicRegularized, SecularInfo, TrustRegionLanczos

__all__ = [
    "CG",
    "MINRES",
    "BlockCG",
    "ClosedForm",
    "CubicRegularized",
    "DampingPath",
    "Estimate",
    "IterativeSolver",
    "Lanczos",
    "LiSSA",
    "Neumann",
    "NystromApproximation",
    "NystromCG",
    "Outliers",
    "SampledOperator",
    "SecularInfo",
    "SolveInfo",
    "Spectrum",
    "Status",
    "Tridiagonalization",
    "TrustRegionLanczos",
    "damping_path",
    "density",
    "drive",
    "fingerprint",
    "initial_state",
    "lanczos",
    "load_state",
    "log_determinant",
    "matrix_function",
    "nystrom",
    "outliers",
    "quadrature",
    "ritz_values",
    "sampled",
    "save_state",
    "slq",
    "solve_on_host",
    "solve_with_host_basis",
    "squared_frobenius_norm",
    "trace",
    "trace_of",
]
