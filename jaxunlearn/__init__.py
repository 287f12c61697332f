"""Make a language model forget, in JAX, with exact curvature.

    objective  (what to forget, what to keep)
    curvature  (the metric in which a step is small for what is kept)
    solver     (how that metric is inverted)
    noise      (what hides the residual)

`unlearn_step` composes them; a method is a named recipe. Submodules load when first used, so that importing the
package stays cheap.
"""

import importlib
from typing import TYPE_CHECKING

from jaxunlearn.version import __version__

if TYPE_CHECKING:
    from jaxunlearn import (
        accounting,
        certificate,
        curvature,
        data,
        evals,
        losses,
        methods,
        models,
        objectives,
        operators,
        private,
        sharding,
        solvers,
        transforms,
        tree,
    )
    from jaxunlearn.types import LabelledBatch, Model, Reference, TokenBatch, UnlearnBatch
    from jaxunlearn.unlearn import StepInfo, UnlearnState, init, unlearn_step

_SUBMODULES = (
    "accounting",
    "certificate",
    "curvature",
    "data",
    "evals",
    "losses",
    "methods",
    "models",
    "objectives",
    "operators",
    "private",
    "sharding",
    "solvers",
    "transforms",
    "tree",
)
_HOMES = {
    "LabelledBatch": "types",
    "Model": "types",
    "Reference": "types",
    "StepInfo": "unlearn",
    "TokenBatch": "types",
    "UnlearnBatch": "types",
    "UnlearnState": "unlearn",
    "init": "unlearn",
    "unlearn_step": "unlearn",
}

__all__ = [
    "LabelledBatch",
    "Model",
    "Reference",
    "StepInfo",
    "TokenBatch",
    "UnlearnBatch",
    "UnlearnState",
    "__version__",
    "accounting",
    "certificate",
    "curvature",
    "data",
    "evals",
    "init",
    "losses",
    "methods",
    "models",
    "objectives",
    "operators",
    "private",
    "sharding",
    "solvers",
    "transforms",
    "tree",
    "unlearn_step",
]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"jaxunlearn.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxunlearn.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
