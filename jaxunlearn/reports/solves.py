"""How well the linear systems of a second-order run were solved, and what they saw of the curvature's spectrum.

Each step solves `(A + lambda I) x = g` by products with A alone. The relative residual
`||g - (A + lambda I) x|| / ||g||` says how far the step is from the exact one; a truncated solve with a large residual
is a legitimate, more cautious step, but it is not the Newton step of the textbook, and a page that calls it one must
show this number.

CG and MINRES build a tridiagonal matrix T on the way. Its eigenvalues, the Ritz values, lie within the spectrum of the
damped curvature, and the squared first components of its eigenvectors are their weights in the spectral measure of the
gradient: the share of `||g||^2` that lies in each direction. (Golub and Meurant, "Matrices, moments and quadrature with
applications", 2010.)
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.reports.canvas import INK, PALETTE, deliver, sheet
from jaxunlearn.solvers import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Solve(NamedTuple):
    """What is known of the solves of one run.

    Attributes:
        by_step: relative residual at the end of each step's solve.
        by_product: residual norm after each product of the last solve, over that of the right-hand side.
        ritz: Ritz values of the last solve, ascending; empty where its solver keeps no tridiagonal matrix.
        weights: their shares of the squared gradient.
    """

    by_step: Float[np.ndarray, " S"]
    by_product: Float[np.ndarray, " m"]
    ritz: Float[np.ndarray, " r"]
    weights: Float[np.ndarray, " r"]


def solve_of(history: Sequence[Mapping[str, float]], certificate: Mapping[str, Any]) -> Solve | None:
    """The solves that a run recorded; None for a method without any.

    Args:
        history: the steps' numbers, with `residual`.
        certificate: of the last step, with the fields of `solvers.SolveInfo`.

    Example:
        >>> found = solve_of([{"residual": 0.5}], {"steps": 2, "residual_norms": [2.0, 1.0, 0.5, 0.5],
        ...                                        "alphas": [1.0, 3.0, 0.0], "betas": [0.0, 0.0, 0.0]})
        >>> found.by_product.tolist(), found.ritz.tolist(), found.weights.tolist()
        ([1.0, 0.5, 0.25], [1.0, 3.0], [1.0, 0.0])
    """
    by_step = np.array([step["residual"] for step in history if "residual" in step], np.float64)
    norms, steps = _vector(certificate.get("residual_norms")), int(certificate.get("steps") or 0)
    norms = norms[: steps + 1]
    if not by_step.size and norms.size < 2:
        return None
    first = norms[0] if norms.size and norms[0] > 0 else 1.0
    return Solve(by_step, norms / first, *_ritz(certificate, steps))


def solve_record(
    solve: Solve,
    path: str | Path | None = None,
    *,
    damping: float | None = None,
    format: Literal["svg", "png"] = "svg",
) -> bytes:
    """Up to three panels: residual by step, residual by product of the last solve, Ritz values with their weights.

    Args:
        solve: of `solve_of`.
        path: also write the picture there (a new file).
        damping: lambda of the last step, drawn among the Ritz values: those near it belong to flat directions.
        format: "svg" or "png".

    Errors:
        ValueError: nothing to draw.
    """
    by_step, by_product = (_drawable(values) for values in (solve.by_step, solve.by_product))
    panels = [
        (_curve, (by_step, "residual at the end of each step", "step", 1)) if by_step.size else None,
        (_curve, (by_product, "residual during the last solve", "product", 0)) if by_product.size > 1 else None,
        (_spectrum, (solve.ritz, solve.weights, damping)) if solve.ritz.size else None,
    ]
    panels = [panel for panel in panels if panel is not None]
    if not panels:
        raise ValueError("no residual and no Ritz value was recorded, so there is nothing to draw")
    figure, axes = sheet(1, len(panels), (9.0, 3.1))
    for ax, (draw, values) in zip(axes, panels, strict=True):
        draw(ax, *values)
    figure.tight_layout()
    return deliver(figure, path, format)


def _ritz(certificate: Mapping[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import eigh_tridiagonal

    alphas, betas = (_vector(certificate.get(name)) for name in ("alphas", "betas"))
    count = min(steps - (certificate.get("status") == Status.NON_FINITE), alphas.size, betas.size + 1)
    if count < 1 or not np.isfinite([*alphas[:count], *betas[: count - 1]]).all():
        return np.zeros(0), np.zeros(0)
    values, vectors = eigh_tridiagonal(alphas[:count], betas[: count - 1])
    return values, vectors[0] ** 2


def _vector(values: Any) -> np.ndarray:
    """A recorded list of numbers; empty for anything else, such as the matrices of block solvers."""
    found = np.asarray([] if values is None else values, np.float64)
    return found if found.ndim == 1 else np.zeros(0)


def _drawable(values: np.ndarray) -> np.ndarray:
    """On a logarithmic axis, what is exactly solved stands at rounding."""
    return np.maximum(values[np.isfinite(values)], 1e-17)


def _curve(ax: "Axes", values: np.ndarray, title: str, unit: str, start: int) -> None:
    ax.semilogy(np.arange(values.size) + start, values, color=PALETTE["violet"], linewidth=1.8, marker=".")
    ax.axhline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
    _label(ax, title, unit, "relative residual")
    ax.xaxis.get_major_locator().set_params(integer=True)


def _spectrum(ax: "Axes", ritz: np.ndarray, weights: np.ndarray, damping: float | None) -> None:
    marked = [damping] if damping else []
    sizes = np.abs([*ritz, *marked])
    sizes = sizes[sizes > 0]
    if ritz.min() > 0:
        ax.set_xscale("log")
    elif sizes.size:
        threshold = float(sizes.min())
        ax.set_xscale("symlog", linthresh=threshold)
        ax.set_xticks(_ticks(ritz, threshold))
        ax.axvline(0.0, color=INK, linewidth=1, alpha=0.6)
    ax.vlines(ritz, 0, weights, color=PALETTE["teal"], linewidth=2)
    ax.plot(ritz, weights, "o", color=PALETTE["teal"], markersize=5)
    if marked:
        ax.axvline(damping, color=PALETTE["ochre"], linewidth=1.2, linestyle=(0, (4, 3)), label="damping")
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    ax.set_ylim(bottom=0)
    _label(ax, "curvature seen by the last solve", "Ritz value of the damped curvature", "share of the gradient")
    ax.tick_params(axis="x", labelrotation=40)


def _ticks(ritz: np.ndarray, threshold: float) -> list[float]:
    """Zero and a few powers of ten on either side, none so near zero that their labels would touch."""
    found = [0.0]
    for sign, most in ((1.0, ritz.max()), (-1.0, -ritz.min())):
        if most > 0:
            low, high = (math.floor(math.log10(value)) for value in (10 * threshold, max(most, 10 * threshold)))
            found += [sign * 10.0**power for power in range(low, high + 1, max(1, -(-(high - low) // 3)))]
    return sorted(found)


def _label(ax: "Axes", title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_xlabel(x, color=INK, fontsize=9)
    ax.set_ylabel(y, color=INK, fontsize=9)
