"""`jaxunlearn spectrum`: what the curvature of retain and of forget looks like, and which damping suits a Newton step.

    spectrum.svg, .png    eigenvalues by size, from stochastic Lanczos quadrature, with the outliers that were found one
                          by one (`solvers.outliers`)
    damping.svg, .png     the damping path (`damping_path`): predicted KL on retain and gain on forget, the same as
                          measured, and the step that `unlearn` would take first
    spectrum.json         every number of both, with error bounds, settings, seed and hashes of the inputs

The batch is that of the first step of `unlearn` with the same records, sizes and seed, and the marked step is that
step itself, taken and thrown away: of `gauss_newton_ascent` for Gauss-Newton, of `newton_removal` for the Hessian.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import data, models
from jaxunlearn.curvature import GaussNewton, Hessian
from jaxunlearn.files import new_folder
from jaxunlearn.methods import Method
from jaxunlearn.reports.damping_plot import Curves, Taken, Tried, damping_picture
from jaxunlearn.reports.spectrum_plot import Panel, spectrum_picture
from jaxunlearn.runs import dry_run
from jaxunlearn.runs import record as records
from jaxunlearn.runs.damping_path import NewtonSpace, damping_of, damping_path, measure_path, newton_space
from jaxunlearn.runs.eigenvalues import estimates_of, panel_of, rounding_of, spectrum_of
from jaxunlearn.runs.options import hyperparameters, options_of
from jaxunlearn.runs.prepared import batch_sizes, prepare
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Spectrum as Settings
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.sharding import on_host
from jaxunlearn.solvers import Spectrum, Status
from jaxunlearn.types import Model, Params, UnlearnBatch
from jaxunlearn.unlearn import init, unlearn_step

METHODS = {"gauss-newton": "gauss_newton_ascent", "hessian": "newton_removal"}
NAMES = {"gauss-newton": "Gauss-Newton matrix", "hessian": "Hessian"}


def spectrum(settings: Settings) -> Path:
    """Run it; returns the output folder, which `--dry-run` does not make.

    Raises:
        ValueError: bad input, overlap of forget and retain, or an existing output folder, before any weight is loaded.
    """
    for name, least in (("lanczos_steps", 2), ("probes", 2), ("tries", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(settings, name)}: give at least {least}")
    asked = _as_unlearn(settings)
    ready = prepare(asked)
    options = {option.name: option.default for option in options_of(asked.method)}
    options |= hyperparameters(asked.method, settings.option)
    kind = GaussNewton if settings.curvature == "gauss-newton" else Hessian
    curvature, start = kind(options["microbatch"]), time.monotonic()
    if settings.dry_run:
        dry_run.spectrum(settings, asked, ready, curvature)
        return settings.out
    sizes = batch_sizes(asked, len(ready.forget), len(ready.retain))
    first = next(data.pair(ready.forget, ready.retain, sizes[0], retain_size=sizes[1], seed=settings.seed))
    with Reporter() as reporter:
        mesh = settings.devices.make_mesh()
        model, params = models.load(settings.model, mesh=mesh)
        batch = first.on(mesh)
        panels, facts = {}, {}
        for name in ("retain", "forget"):
            part = getattr(batch, name)
            with reporter.stage(f"spectrum on {name}", settings.probes) as stage:
                found = spectrum_of(
                    model, params, part, curvature,
                    steps=settings.lanczos_steps, probes=settings.probes, seed=settings.seed, advance=stage.advance,
                )  # fmt: skip
            tokens = int(np.count_nonzero(getattr(first.batch, name).loss_mask))
            about = f"{name}: {sizes[name == 'retain']:,} records, {tokens:,} loss tokens"
            panels[name] = panel_of(found, about, psd=kind is GaussNewton)
            facts[name] = _facts(found, panels[name])
            reporter.say(f"{about}; {panels[name].note}")
        with reporter.stage("damping path", 1) as stage:
            space = newton_space(
                model, params, batch, curvature, steps=settings.lanczos_steps, microbatch=options["microbatch"]
            )
            stage.advance()
        with reporter.stage(f"first step of {asked.method}", 1) as stage:
            taken, solved = first_step(ready.method, model, params, batch, seed=settings.seed)
            stage.advance()
        with reporter.stage("steps tried", settings.tries) as stage:
            curves = curves_of(
                model, params, batch, space, taken,
                max_kl=options["max_kl"], method=asked.method, tries=settings.tries, advance=stage.advance,
            )  # fmt: skip
        reporter.say(_in_words(curves))
        facts |= {"path": _path_facts(space, curves), "first_step": taken._asdict() | solved}
        facts |= {"seconds": round(time.monotonic() - start, 1), "method": asked.method, "options": options}
        inputs = {name: getattr(settings, name) for name in ("model", "forget", "retain")}
        text = records.record("spectrum", settings, inputs, digests={"model": ready.before}, **facts)
        named, of = NAMES[settings.curvature], Path(settings.model).name
        with new_folder(settings.out) as folder:
            if folder is not None:
                (folder / "spectrum.json").write_text(text, encoding="utf-8")
                (folder / records.CONFIG).write_text(records.configuration("spectrum", settings), encoding="utf-8")
                places = [
                    [folder / f"{name}.{suffix}" for suffix in ("svg", "png")] for name in ("spectrum", "damping")
                ]
                spectrum_picture(list(panels.values()), *places[0], title=f"Spectrum of the {named} of “{of}”")
                title = f"A Newton step of “{of}” in the {named} of retain, by damping"
                damping_picture(curves, *places[1], title=title)
        reporter.say(f"pictures and numbers -> {settings.out}")
    return settings.out


def first_step(
    method: Method, model: Model, params: Params, batch: UnlearnBatch, *, seed: int
) -> tuple[Taken, dict[str, Any]]:
    """What the method's first step does, and how its system was solved; the parameters stay as they are."""
    state = init(method, model, params, key=jax.random.key(seed))
    info = on_host(jax.jit(lambda state, batch: unlearn_step(method, model, state, batch)[1])(state, batch))
    c, state = info.certificate, info.curvature
    taken = Taken(
        float(state.used_damping), float(state.length), int(state.solve.steps), float(c.kl_predicted),
        float(c.forget_predicted), float(c.kl_measured), float(c.forget_after - c.forget_before),
    )  # fmt: skip
    solve = state.solve
    return taken, {
        "residual": float(solve.relative_residual),
        "status": Status(int(solve.status)).name,
        "applied": bool(info.applied),
    }


def curves_of(
    model: Model,
    params: Params,
    batch: UnlearnBatch,
    space: NewtonSpace,
    taken: Taken | None,
    *,
    max_kl: float | None,
    method: str,
    tries: int,
    advance: Callable[[], None] | None = None,
) -> Curves:
    """The path over all dampings that matter: those of the curvature's own sizes, and the method's."""
    largest = np.abs(np.linalg.eigvalsh(space.matrix)).max()
    at = None if max_kl is None else damping_of(space, max_kl)
    marked = [value for value in (at, taken and taken.damping) if value]
    low, high = min([1e-5 * largest, *(0.2 * m for m in marked)]), max([10 * largest, *(5 * m for m in marked)])
    path = damping_path(space, np.geomspace(low, high, 161))
    definite = path.damping[path.positive_definite]
    tested = np.geomspace(definite[0], definite[-1], tries)
    kl, gain = measure_path(model, params, batch, space, damping_path(space, tested), advance)
    return Curves(
        path.damping, path.kl, path.gain, path.residual, path.positive_definite, Tried(tested, kl, gain), taken, max_kl,
        at, method,
    )  # fmt: skip


def _as_unlearn(settings: Settings) -> Unlearn:
    """The run of `unlearn` whose first step is looked at."""
    names = ("model", "forget", "retain", "out", "option", "batch_size", "retain_size", "seed", "dry_run", "text",
             "devices")  # fmt: skip
    given = {name: getattr(settings, name) for name in names}
    return Unlearn(**given, method=METHODS[settings.curvature])


def _facts(spectrum: Spectrum, panel: Panel) -> dict[str, Any]:
    """Numbers of one spectrum for the record."""
    wanted = {"trace": lambda t: t, "within_rounding": lambda t: 1.0 * (abs(t) <= rounding_of(spectrum))}
    estimates = estimates_of(spectrum, *wanted.values())
    return {
        "about": panel.title,
        "unknowns": int(spectrum.unknowns),
        **{
            name: {"value": e.value, "standard_error": e.standard_error}
            for name, e in zip(wanted, estimates, strict=True)
        },
        "rounding": rounding_of(spectrum),
        "smallest": float(spectrum.nodes.min()),
        "largest": float(spectrum.nodes.max()),
        "outliers": [{"value": v, "error": e} for v, e in zip(panel.outliers, panel.errors, strict=True)],
        "nodes": spectrum.nodes,
        "weights": spectrum.weights,
        "errors": _finite(spectrum.errors),
        "density": {
            "decades": panel.decades,
            "positive": panel.positive._asdict(),
            "negative": panel.negative and panel.negative._asdict(),
            "blur": panel.blur,
        },
    }


def _path_facts(space: NewtonSpace, curves: Curves) -> dict[str, Any]:
    facts = curves._asdict() | {"tried": {name: _finite(values) for name, values in curves.tried._asdict().items()}}
    facts = {name: value for name, value in facts.items() if name not in ("taken", "method")}
    return facts | {"gradient_norm": space.norm, "diagonal": np.diag(space.matrix), "beyond": space.beyond,
                    "off_diagonal": np.diag(space.matrix, 1)}  # fmt: skip


def _finite(values: np.ndarray) -> np.ndarray:
    """JSON has no infinity: null stands where there is no number."""
    return np.where(np.isfinite(values), values, None)


def _in_words(curves: Curves) -> str:
    taken = curves.taken
    told = (
        f"first step of {curves.method}: damping {taken.damping:.3g}, scaled by {taken.factor:.3g}; KL on retain "
        f"{taken.kl:.2e} predicted, {taken.kl_measured:.2e} measured; forget loss {taken.gain:+.2e} predicted, "
        f"{taken.gain_measured:+.2e} measured"
    )
    if curves.damping_at_bound is not None:
        told += (
            f"\na full step is predicted to cost the allowed {curves.max_kl:g} at damping {curves.damping_at_bound:.3g}"
        )
    return told
