"""Curvature as optax transformations: they chain with any optimiser, schedule or clipping.

    precondition_by_curvature    g -> (A + lambda I)^-1 g, in a trust region if asked
    anchor_by_curvature          g -> g + strength A (theta - theta_0); `held_at` says where theta_0 is
    add_curvature_noise          u -> u + scale (A + lambda I)^p eps
    edit_params                  whatever g is: new parameters minus old ones

They take the model and the batch as optax extra arguments:

    updates, state = transform.update(grads, state, params, model=model, batch=batch, key=key)
"""

from jaxunlearn.transforms.anchor import AnchorState, anchor_by_curvature, held_at
from jaxunlearn.transforms.edit import edit_params
from jaxunlearn.transforms.metric import (
    RETAIN,
    STORED,
    Curvature,
    Damp,
    Metric,
    Solver,
    damp_by,
    damp_by_mean,
    metric_of,
)
from jaxunlearn.transforms.noise import NoiseState, add_curvature_noise
from jaxunlearn.transforms.precondition import CurvatureState, precondition_by_curvature
from jaxunlearn.transforms.trust_region import TrustRegion, measured_kl, predicted_kl

__all__ = [
    "RETAIN",
    "STORED",
    "AnchorState",
    "Curvature",
    "CurvatureState",
    "Damp",
    "Metric",
    "NoiseState",
    "Solver",
    "TrustRegion",
    "add_curvature_noise",
    "anchor_by_curvature",
    "damp_by",
    "damp_by_mean",
    "edit_params",
    "held_at",
    "measured_kl",
    "metric_of",
    "precondition_by_curvature",
    "predicted_kl",
]
