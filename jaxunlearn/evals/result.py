"""A result: `{metric: measure}`, plain dictionaries, strict JSON, in the style of OpenUnlearning's result files.

    {"agg_value": 0.27, "value_by_index": {"0": 0.31, ...}, "n": 40, "unit": "", "higher_is": "worse"}

Nothing is left out in silence. A metric that could not be computed is there with `agg_value: null` and `skipped`, the
reason; one whose values are not all finite has `agg_value: null` and `problem`, with the offending indices as null: a
mean over what happens to be finite would flatter a model that broke.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.evals.catalogue import METRICS
from jaxunlearn.files import write_new

Measure = dict[str, Any]
Result = dict[str, Measure]


def measured(name: str, values: np.ndarray, *, aggregate: float | None = None, **extra: Any) -> Measure:
    """A measure from per-example values; the aggregate is their mean unless given.

    Example:
        >>> measured("forget_probability", np.array([0.25, 0.75]))["agg_value"]
        0.5
        >>> measured("forget_probability", np.array([0.25, np.nan]))["problem"]
        '1 of 2 values not finite, the first at index 1'
    """
    values = np.asarray(values, np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    total = (float(np.mean(values)) if values.size else None) if aggregate is None else float(aggregate)
    measure = _empty(name) | {
        "agg_value": total if not bad.size and total is not None and np.isfinite(total) else None,
        "value_by_index": by_index(values),
        "n": int(values.size),
    }
    if bad.size:
        measure["problem"] = f"{bad.size} of {values.size} values not finite, the first at index {bad[0]}"
    elif measure["agg_value"] is None:
        measure["problem"] = f"the aggregate is {total}"
    return measure | extra


def skipped(name: str, reason: str) -> Measure:
    """A measure that could not be computed, and why.

    Example:
        >>> skipped("forget_kl", "no retrained model given")["skipped"]
        'no retrained model given'
    """
    return _empty(name) | {"skipped": reason}


def broken(name: str, problem: str) -> Measure:
    """A measure that was computed and is not a number."""
    return _empty(name) | {"problem": problem}


def by_index(values: np.ndarray) -> dict[str, float | None]:
    """`{"0": v0, "1": v1, ...}`, null where not finite."""
    return {str(i): float(v) if np.isfinite(v) else None for i, v in enumerate(values)}


def why_missing(measure: Mapping[str, Any]) -> str | None:
    """Why a measure has no value; `None` when it has one."""
    if measure.get("agg_value") is not None:
        return None
    return measure.get("problem") or measure.get("skipped") or "no value"


def write_result(path: str | Path, result: Result) -> Path:
    """Writes a result as strict JSON; see `files.write_new`."""
    return write_new(path, json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False).encode())


def _empty(name: str) -> Measure:
    about = METRICS[name]
    measure = {"agg_value": None, "value_by_index": {}, "n": 0, "unit": about.unit, "higher_is": about.higher_is}
    return measure if about.target is None else measure | {"target": about.target}
