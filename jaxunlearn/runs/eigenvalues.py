"""Eigenvalues counted by size: a curvature's spectrum on one batch, in the form that `reports.spectrum_plot` draws.

Sizes span many decades, so that counts are taken per decade: with theta the nodes of the quadrature of a probe and w
their weights, the density of n eigenvalues in `s = log10 |theta|` is

    n sum_i w_i N(s; log10 |theta_i|, BLUR^2),

for each sign of its own. Its integral over all decades, with what is within rounding of zero and has no size to speak
of, is n.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxunlearn.reports.spectrum_plot import Counts, Panel
from jaxunlearn.sharding import on_host
from jaxunlearn.solvers import Estimate, Spectrum, density, outliers, quadrature, trace_of
from jaxunlearn.solvers.spectral_density import ROUNDINGS
from jaxunlearn.transforms import Curvature
from jaxunlearn.types import Batch, Model, Params

BLUR = 0.08
"""Standard deviation of the smoothing, decades."""
PER_DECADE = 40
"""Points of the grid."""


def spectrum_of(
    model: Model,
    params: Params,
    batch: Batch,
    curvature: Curvature,
    *,
    steps: int,
    probes: int,
    seed: int,
    advance: Callable[[], None] | None = None,
) -> Spectrum:
    """`slq` of the curvature on a batch, a probe at a time, on the host.

    A probe is one program, in whose loop the model is linearised once for all products. Progress by the product would
    linearise it for each, which takes a tenth of the work more at least.
    """
    rules = []
    for key in jax.random.split(jax.random.key(seed), probes):
        rules.append(on_host(_one(curvature, model, steps, params, batch, key)))
        if advance is not None:
            advance()
    return Spectrum(*(np.stack(part) for part in zip(*rules, strict=True)))._replace(unknowns=rules[0].unknowns)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _one(curvature: Curvature, model: Model, steps: int, params: Params, batch: Batch, key: Array) -> Spectrum:
    return quadrature(curvature(model, params, batch), key, steps)


def panel_of(spectrum: Spectrum, title: str, *, psd: bool) -> Panel:
    """Counts of eigenvalues by decade, and the outliers. What is within rounding of zero has no size: it is a note."""
    rounding = rounding_of(spectrum)
    largest = max(float(np.abs(spectrum.nodes).max()), float(np.finfo(np.float32).tiny))
    low, high = np.log10(rounding) - 4 * BLUR, np.log10(largest) + 6 * BLUR
    grid = np.linspace(low, high, int((high - low) * PER_DECADE) + 2)

    def counts(sign: int) -> Counts:
        here = sign * spectrum.nodes > rounding
        sizes = np.log10(np.where(here, sign * spectrum.nodes, 1.0))
        rule = Spectrum(jnp.asarray(sizes), jnp.asarray(spectrum.weights * here), spectrum.unknowns)
        found = on_host(density(rule, jnp.asarray(grid, rule.nodes.dtype), BLUR))
        n = float(spectrum.unknowns)
        return Counts(n * np.asarray(found.value, np.float64), n * np.asarray(found.standard_error, np.float64))

    negative = not psd and bool((spectrum.nodes < -rounding).any())
    single, (trace, flat) = outliers(spectrum), estimates_of(spectrum, lambda t: t, lambda t: abs(t) <= rounding)
    share = float(flat.value) / float(spectrum.unknowns)
    note = (
        f"{int(spectrum.unknowns):,} eigenvalues, trace {_with_error(trace)}, "
        f"{single.value.size} outliers found one by one"
        + f", {share:.1%} within {rounding:.0e} of zero"
        * (share > 1e-3)
    )
    return Panel(title, note, grid, counts(1), counts(-1) if negative else None, *single, BLUR)


def rounding_of(spectrum: Spectrum) -> float:
    """What is not told from zero."""
    largest = float(np.abs(spectrum.nodes).max())
    return max(ROUNDINGS * float(np.finfo(np.float32).eps) * largest, float(np.finfo(np.float32).tiny))


def estimates_of(spectrum: Spectrum, *functions: Callable) -> list[Estimate]:
    """`tr f(A)` for each f, on the host."""
    return [on_host(trace_of(Spectrum(*map(jnp.asarray, spectrum)), f)) for f in functions]


def _with_error(estimate: Estimate) -> str:
    """A number to the place where its error begins: 6,370 ± 200."""
    value, error = float(estimate.value), float(estimate.standard_error)
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    place = math.floor(math.log10(error))
    value, error = round(value, -place), round(error, -place)
    return f"{value:,.{max(-place, 0)}f} ± {error:,.{max(-place, 0)}f}" if -place < 5 else f"{value:.3g} ± {error:.1g}"
