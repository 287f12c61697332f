"""A result: `{metric: measure}`, plain dictionaries, strict JSON, in the style of OpenUnlearning's result files.

    {"agg_value": 0.27, "interval": [0.21, 0.33], "value_by_index": {"0": 0.31, ...}, "n": 40, "unit": "",
     "higher_is": "worse"}

The interval is a bootstrap over the examples (95%, seeded), given from two examples on. Nothing is left out in
silence. A metric that could not be computed is there with `agg_value: null` and `skipped`, the reason; one whose
values are not all finite has `agg_value: null` and `problem`, with the offending indices as null: a mean over what
happens to be finite would flatter a model that broke.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.evals.bootstrap import bootstrap, weighted_mean
from jaxunlearn.evals.catalogue import about as row_of
from jaxunlearn.files import write_new

Measure = dict[str, Any]
Result = dict[str, Measure]


def measured(
    name: str,
    values: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    aggregate: float | None = None,
    seed: int = 0,
    **extra: Any,
) -> Measure:
    """A measure from per-example values.

    Args:
        name: a metric of the catalogue.
        values: one for each example.
        weights: of the examples in the aggregate (loss tokens, say); default equal ones.
        aggregate: the aggregate, where it is no mean of the values; its interval is then the caller's to give.
        seed: of the bootstrap interval.
        extra: more entries of the measure; an interval goes with the aggregate, if that has no value.

    Example:
        >>> measured("forget_probability", np.array([0.25, 0.75]))["agg_value"]
        0.5
        >>> measured("forget_nll", np.array([1.0, 4.0]), weights=np.array([2, 1]))["agg_value"]
        2.0
        >>> measured("forget_probability", np.array([0.25, np.nan]))["problem"]
        '1 of 2 values not finite, the first at index 1'
    """
    values = np.asarray(values, np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    weights = np.ones(values.size) if weights is None else np.asarray(weights, np.float64)
    total = aggregate
    if aggregate is None and values.size:
        total = float(np.sum(weights * values) / np.sum(weights))
    fine = not bad.size and total is not None and np.isfinite(total)
    measure = _empty(name) | {
        "agg_value": float(total) if fine else None,
        "value_by_index": by_index(values),
        "n": int(values.size),
    }
    if fine and aggregate is None and values.size > 1:
        measure["interval"] = list(bootstrap(weighted_mean, np.stack([values, weights], axis=1), seed=seed))
    if bad.size:
        measure["problem"] = f"{bad.size} of {values.size} values not finite, the first at index {bad[0]}"
    elif measure["agg_value"] is None:
        measure["problem"] = f"the aggregate is {total}"
    if not fine:
        extra.pop("interval", None)
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
    about = row_of(name)
    measure = {"agg_value": None, "value_by_index": {}, "n": 0, "unit": about.unit, "higher_is": about.higher_is}
    return measure if about.target is None else measure | {"target": about.target}
