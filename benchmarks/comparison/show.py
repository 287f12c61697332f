"""Tables, all numbers and a picture from the units of work that are there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import markdown

from comparison.candidates import CANDIDATES, REGIMES
from jaxunlearn import files

Numbers = dict[str, Any]
FRAME = ("before", "seed floor", "retrained")
FAR = 10.0  # nats a token: beyond, a point is told and not drawn
NAMED = 8  # points of a panel that have their names beside them, the nearest to the retrained model

QUALITY = {
    "distance": ("distance", 2),
    "forget_kl": ("KL forget", 2),
    "retain_kl": ("KL retain", 3),
    "unseen_kl": ("KL unseen", 2),
    "memory": ("memory", 2),
    "forget_probability": ("prob. forget", 2),
    "forget_exact_memorisation": ("exact forget", 2),
    "forget_truth_ratio": ("truth ratio", 2),
    "log10_forget_quality": ("log10 FQ", 1),
    "exposure": ("exposure, bits", 1),
    "forget_min_k_auc": ("Min-K AUC", 2),
    "relearning": ("relearning R", 2),
    "quantisation": ("int4 Q", 2),
    "retain_exact_memorisation": ("exact retain", 3),
    "retain_perplexity": ("ppl retain", 3),
    "model_utility": ("utility", 2),
    "tow": ("ToW", 2),
}
COSTS = {
    "steps": ("steps", 0),
    "gradients": ("gradients", 0),
    "products": ("products", 0),
    "time_share": ("time / retraining", 2),
    "time_share_compiled": ("with compilation", 2),
    "peak": ("peak, MiB", 0),
}
ROW = {
    "distance": ("distance", 2),
    "forget_kl": ("KL forget", 2),
    "retain_kl": ("KL retain", 3),
    "unseen_kl": ("KL unseen", 2),
    "memory": ("memory", 2),
    "forget_exact_memorisation": ("exact forget", 2),
    "retain_exact_memorisation": ("exact retain", 3),
    "exposure": ("exposure, bits", 1),
}


def show(out: Path, machine: str) -> None:
    """Writes `tables.md`, `results.json` and a picture a problem into `out`."""
    found: dict[str, Any] = {}
    parts = ["# Methods compared", machine]
    for problem in sorted(path.name for path in (out / "units").iterdir()):
        folder = out / "units" / problem
        frames = _over(folder, "frame-*.json")
        found[problem] = {"frame": frames, "regimes": {}}
        columns: dict[str, dict[str, Numbers]] = {}
        for regime in (name for name in REGIMES if (folder / name).is_dir()):
            results = {method: _method(folder / regime / method) for method in CANDIDATES}
            results = {method: one for method, one in results.items() if one is not None}
            found[problem]["regimes"][regime] = results
            parts += [f"## {problem}, retain set: {regime}", *_tables(frames, results)]
            columns[regime] = results
        if any(columns.values()):
            _picture(out / f"{problem}.png", frames, columns)
    _write(out / "tables.md", "\n\n".join(parts) + "\n")
    _write(out / "results.json", json.dumps(found, indent=1))


def _method(folder: Path) -> Numbers | None:
    chosen = folder / "chosen.json"
    if not chosen.exists():
        return None
    about, in_a_row = json.loads(chosen.read_text()), folder / "row-chosen.json"
    if in_a_row.exists():
        about["row_options"] = json.loads(in_a_row.read_text()).get("options")
    return about | {"once": _over(folder, "once-*.json"), "row": _over(folder, "row-[0-9]*.json")}


def _over(folder: Path, pattern: str) -> list[Numbers]:
    """The units of all seeds."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def _tables(frames: list[Numbers], results: dict[str, Numbers]) -> list[str]:
    ranked = _nearest(results, "once")
    quality = [[name, *_cells([f[name] for f in frames], QUALITY)] for name in FRAME]

    def named(name: str, part: str) -> str:
        """The method, and how many seeds it was shown on where that is not all of them."""
        done = len(_picked(results[name][part], "numbers"))
        return name if done == len(frames) else f"{name} ({done} of {len(frames)} seeds)"

    quality += [[named(name, "once"), *_cells(_picked(results[name]["once"], "numbers"), QUALITY)] for name in ranked]
    costs = [
        [
            named(name, "once"),
            *_cells(_picked(results[name]["once"], "cost"), COSTS),
            _options(results[name]["options"]),
        ]
        for name in ranked
    ]
    tables = [
        markdown(["at once", *(label for label, _ in QUALITY.values())], quality),
        markdown(["cost", *(label for label, _ in COSTS.values()), "options"], costs),
    ]
    if in_a_row := _nearest(results, "row"):
        rows = [[name, *_cells([f[name] for f in frames], ROW), ""] for name in FRAME]
        rows += [
            [
                named(name, "row"),
                *_cells(_picked(results[name]["row"], "numbers"), ROW),
                _options(results[name]["row_options"]),
            ]
            for name in in_a_row
        ]
        tables.append(markdown(["ten requests in a row", *(label for label, _ in ROW.values()), "options"], rows))
    failed = [f"{name}: {one['error']}" for name in results for one in results[name]["once"] if "error" in one]
    return tables + (["Failed: " + "; ".join(failed)] if failed else [])


def _nearest(results: dict[str, Numbers], part: str) -> list[str]:
    """The methods that were shown, the nearest to the retrained model first."""
    shown = [name for name, one in results.items() if one[part]]
    return sorted(shown, key=lambda name: _mean(_values(results[name][part], "numbers", "distance")))


def _picked(units: list[Numbers], part: str) -> list[Numbers]:
    return [unit[part] for unit in units if part in unit]


def _values(units: list[Numbers], part: str, name: str) -> list[float | None]:
    return [one.get(name) for one in _picked(units, part)]


def _cells(rows: list[Numbers], columns: dict[str, tuple[str, int]]) -> list[str]:
    return [
        _cell([row.get(name) for row in rows], digits, 2**20 if name == "peak" else 1)
        for name, (_, digits) in columns.items()
    ]


def _cell(values: list[float | None], digits: int, unit: int) -> str:
    """Mean and half the 95% interval of Student's t over the seeds; a seed without a number is said."""
    known = [value / unit for value in values if value is not None]
    if not known:
        return "–"
    if max(known) > 1e5:
        return f"{np.mean(known):.0e}"
    mean = f"{np.mean(known):.{digits}f}"
    if len(known) > 1:
        from scipy.stats import t

        half = t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5
        mean += f" ± {half:.{digits}f}" if half >= 0.5 * 10.0**-digits else ""
    return mean + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")


def _mean(values: list[float | None]) -> float:
    """For ranking: a model that broke on any seed comes last."""
    return float("inf") if not values or None in values else float(np.mean(values))


def _options(options: Numbers) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in options.items())


def _picture(path: Path, frames: list[Numbers], regimes: dict[str, dict[str, Numbers]]) -> None:
    """Forgetting against keeping: a panel a regime, a point a method, the nearest named, the seed floor a corner."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    marks = {"first": ("o", "#1f77b4"), "second": ("D", "#d62728"), "edit": ("s", "#7f7f7f")}
    names = {"first": "first order", "second": "second order", "edit": "one-shot edit"}
    shown = [regime for regime in regimes if regimes[regime]]
    figure, panels = plt.subplots(
        1, len(shown), figsize=(5.2 * len(shown), 4.6), squeeze=False, sharey=True, layout="constrained"
    )
    points: dict[Any, dict[str, list[float]]] = {}
    largest = [0.0, 0.0]
    for panel, regime in zip(panels[0], shown, strict=True):
        floor = [_average(frames, lambda f, k=key: f["seed floor"][k]) for key in ("forget_kl", "retain_kl")]
        panel.fill_between(
            [1e-3, floor[0]], [1e-4, 1e-4], [floor[1]] * 2, color="#2ca02c", alpha=0.15, label="seed floor"
        )
        before = [_average(frames, lambda f, k=key: f["before"][k]) for key in ("forget_kl", "retain_kl")]
        panel.plot(*before, "k*", markersize=11, label="before")
        seen: set[str] = set()
        points[panel], far = {}, []
        for method, result in regimes[regime].items():
            point = [_mean(_values(result["once"], "numbers", key)) for key in ("forget_kl", "retain_kl")]
            if not np.all(np.isfinite(point)):
                continue
            if max(point) > FAR:
                far.append(f"{method}: {point[0]:.0f}, {point[1]:.0f}")
                continue
            order = CANDIDATES[method].order
            mark, colour = marks[order]
            label = None if order in seen else names[order]
            seen.add(order)
            panel.plot(*point, mark, color=colour, markersize=6, label=label)
            points[panel][method] = point
        panel.set(
            xscale="log", yscale="log", title=f"retain set: {regime}", xlabel="KL to retrained on forget, nats/token"
        )
        panel.grid(alpha=0.25, which="both")
        panel.text(0.98, 0.02, "\n".join(far), fontsize=6, transform=panel.transAxes, ha="right")
        largest = [max([one, *(p[axis] for p in points[panel].values())]) for axis, one in enumerate(largest)]
    # At the end, for all: panels share the axis, and a limit that is set keeps it from growing.
    for panel, regime in zip(panels[0], shown, strict=True):
        panel.set_xlim(0.6 * floor[0], 1.8 * max(largest[0], before[0]))
        panel.set_ylim(0.6 * min(floor[1], before[1]), 1.5 * max(largest[1], before[1]))
        drawn = [name for name in _nearest(regimes[regime], "once") if name in points[panel]]
        _label(panel, {name: points[panel][name] for name in drawn[:NAMED]})
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[-1] in "235" else "")
    panels[0][0].set_ylabel("KL to retrained on retain, nats/token")
    panels[0][0].legend(fontsize=7, loc="upper left")
    with files.new_file(path, replace=True) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def _label(panel: Any, points: dict[str, list[float]]) -> None:
    """A name beside each point, moved up where another one is in its way."""
    taken: list[tuple[float, float]] = []
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = panel.transData.transform(point) + np.array([5.0, 0.0])
        while any(abs(x - a) < 190 and abs(y - b) < 9 for a, b in taken):
            y += 3
        taken.append((x, y))
        at = panel.transData.inverted().transform((x, y))
        far = y - panel.transData.transform(point)[1] > 12
        arrow = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.4} if far else None
        panel.annotate(
            name, point, at, fontsize=6, xycoords="data", textcoords="data", arrowprops=arrow, va="center", ha="left"
        )


def _average(frames: list[Numbers], pick: Callable[[Numbers], float]) -> float:
    return float(np.mean([pick(frame) for frame in frames]))


def _write(path: Path, text: str) -> None:
    with files.new_file(path, replace=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
