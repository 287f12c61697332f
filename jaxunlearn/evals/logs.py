"""Result files of three kinds, read into one form: ours, TOFU's own logs, OpenUnlearning's.

    ours            {metric: {agg_value, value_by_index: {"0": x}, ...}}, or several such under "results"
    OpenUnlearning  {metric: {agg_value, value_by_index: {"0": {name: x}}}}           (Dorna et al. 2025)
    TOFU            {task file: {quantity: {"0": x}}}: losses and recalls of each question  (Maini et al. 2024)

What they have in common is what a comparison needs: the truth ratio `log s` of each forget question, the per-example
values behind each metric, and the nine numbers of Model Utility. `open_unlearning` writes our results in
OpenUnlearning's form, so that its scripts can read them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.evals import tofu
from jaxunlearn.evals.result import Result

_TASKS = {
    "retain": "eval_log.json",
    "authors": "eval_real_author_wo_options.json",
    "world": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}
_PARTS = {"forget": "forget", "retain": "retain", "authors": "ra", "world": "wf"}
_THEIRS = {
    **{f"{ours}_probability": (f"{theirs}_Q_A_Prob", "prob") for ours, theirs in _PARTS.items()},
    **{f"{ours}_rouge_l": (f"{theirs}_Q_A_ROUGE", "rougeL_recall") for ours, theirs in _PARTS.items()},
    **{f"{ours}_truth_ratio": (f"{theirs}_Truth_Ratio", "score") for ours, theirs in _PARTS.items()},
    "authors_probability": ("ra_Q_A_Prob_normalised", "prob"),
    "world_probability": ("wf_Q_A_Prob_normalised", "prob"),
    "forget_truth_ratio": ("forget_truth_ratio", "score"),
    "forget_quality": ("forget_quality", "score"),
    "model_utility": ("model_utility", "score"),
    "forget_exact_memorisation": ("exact_memorization", "score"),
    "forget_extraction_strength": ("extraction_strength", "score"),
    "muse_verbmem_forget": ("forget_verbmem_ROUGE", "rougeL_f1"),
    "muse_knowmem_forget": ("forget_knowmem_ROUGE", "rougeL_f1"),
    "muse_knowmem_retain": ("retain_knowmem_ROUGE", "rougeL_f1"),
    "muse_privleak_open_unlearning": ("privleak", "score"),
    "muse_min_k_auc": ("mia_min_k", "score"),
}
"""Our name of a metric to OpenUnlearning's, and the key of its per-example values."""


class Log(NamedTuple):
    """What a result file says about one model.

    Attributes:
        kind: "jaxunlearn", "open_unlearning" or "tofu".
        values: per-example values of each metric, by our name.
        aggregates: of each metric; the mean of its values unless the file says otherwise.
        log_ratio: `log s` of each forget question, empty where the file has none.
    """

    kind: str
    values: dict[str, np.ndarray]
    aggregates: dict[str, float]
    log_ratio: np.ndarray

    def utility_parts(self) -> list[float] | None:
        """The nine numbers of Model Utility, or None where one is missing."""
        names = [f"{part}_{name}" for part in tofu.UTILITY_SETS for name in tofu.UTILITY_PARTS]
        return [self.aggregates[name] for name in names] if all(name in self.aggregates for name in names) else None

    def utility_groups(self) -> list[np.ndarray] | None:
        """Per-question values [n, 3] of each of its three sets, or None where one is missing."""
        groups = [[self.values.get(f"{part}_{name}") for name in tofu.UTILITY_PARTS] for part in tofu.UTILITY_SETS]
        fitting = all(v is not None and len(v) == len(group[0]) > 0 for group in groups for v in group)
        return [np.stack(group, axis=1) for group in groups] if fitting else None


def read_log(path: str | Path, column: str = "after") -> Log:
    """Reads a result file of any of the three kinds.

    Args:
        path: the file.
        column: which model, in a file of `jaxunlearn evaluate --out` that holds several.

    Errors:
        ValueError: no such file, not JSON, none of the three kinds, or no such column.
    """
    content = _load(Path(path), column)
    if isinstance(content, dict) and set(_TASKS.values()) & set(content):
        return _tofu(content, Path(path))
    measures = _measures(content, Path(path))
    return _open_unlearning(measures) if _is_theirs(measures) else _ours(measures)


def read_result(path: str | Path, column: str = "after") -> Result:
    """Reads one model's result from a file of `jaxunlearn evaluate --out`.

    Errors:
        ValueError: as `read_log`, and for a file of another kind.
    """
    measures = _measures(_load(Path(path), column), Path(path))
    if _is_theirs(measures):
        raise ValueError(f"{path} is in OpenUnlearning's form; give a result of `jaxunlearn evaluate --out`")
    return measures


def open_unlearning(result: Result) -> dict[str, dict[str, Any]]:
    """Our result in OpenUnlearning's form and under its names, for its scripts and tables.

    Its truth ratio is wrong over correct, ours correct over wrong: `score = 1 / s`. Metrics it does not know keep our
    names; a metric without a value is left out, as its form has no place for a reason.

    Example:
        >>> found = open_unlearning({"forget_probability": {"agg_value": 0.5, "value_by_index": {"0": 0.5}}})
        >>> found
        {'forget_Q_A_Prob': {'agg_value': 0.5, 'value_by_index': {'0': {'prob': 0.5}}}}
    """
    found = {}
    for name, measure in result.items():
        if measure.get("agg_value") is None:
            continue
        theirs, key = _THEIRS.get(name, (name, "score"))
        rows = {index: {key: value} for index, value in measure.get("value_by_index", {}).items()}
        for index, log_s in measure.get("log_ratio_by_index", {}).items():
            # The logarithm comes along because the ratio itself may overflow.
            rows[index] = {key: float(np.exp(min(-log_s, 700.0))), "log_ratio": log_s}
        found[theirs] = {"agg_value": measure["agg_value"], "value_by_index": rows}
    return found


def _load(path: Path, column: str) -> Any:
    """The decoded file; of several models, the one asked for."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a result of `jaxunlearn evaluate --out`, or a published log")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); give a result file as it was written") from None
    if not (isinstance(content, dict) and isinstance(content.get("results"), dict)):
        return content
    columns = content["results"]
    if column not in columns and len(columns) != 1:
        raise ValueError(f"{path} holds {', '.join(columns) or 'no model'}, and no {column!r}; choose one of them")
    return columns.get(column) or next(iter(columns.values()))


def _measures(content: Any, path: Path) -> Result:
    found = {}
    if isinstance(content, dict):
        found = {name: m for name, m in content.items() if isinstance(m, dict) and "agg_value" in m}
    if not found:
        raise ValueError(
            f"{path} is no result file: it holds neither metrics with an agg_value nor TOFU's task files "
            f"({', '.join(_TASKS.values())})"
        )
    return found


def _is_theirs(measures: Result) -> bool:
    """OpenUnlearning keeps a dictionary for each example, we a number."""
    return any(isinstance(row, dict) for m in measures.values() for row in (m.get("value_by_index") or {}).values())


def _ours(measures: Mapping[str, Any]) -> Log:
    values = {name: _column(m.get("value_by_index")) for name, m in measures.items()}
    ratio = _column(measures.get("forget_truth_ratio", {}).get("log_ratio_by_index"))
    return _log("jaxunlearn", values, {name: m["agg_value"] for name, m in measures.items()}, ratio)


def _open_unlearning(measures: Mapping[str, Any]) -> Log:
    values, aggregates, ratio = {}, {}, np.zeros(0)
    # Its versions differ in the case of some names.
    ours = {theirs.lower(): (name, key) for name, (theirs, key) in _THEIRS.items()}
    for theirs, measure in measures.items():
        name, key = ours.get(theirs.lower(), (theirs, "score"))
        rows = {index: _entry(row, key) for index, row in (measure.get("value_by_index") or {}).items()}
        column = _column(rows)
        if name.endswith("_truth_ratio"):
            exact = _column({i: _entry(row, "log_ratio") for i, row in (measure.get("value_by_index") or {}).items()})
            with np.errstate(divide="ignore"):
                log_s = exact if exact.size and np.isfinite(exact).all() else -np.log(column)
            ratio = log_s if name == "forget_truth_ratio" else ratio
            form = tofu.truth_ratio_forget if name == "forget_truth_ratio" else tofu.truth_ratio_retain
            column = form(log_s)
        values[name], aggregates[name] = column, measure["agg_value"]
    return _log("open_unlearning", values, aggregates, ratio)


def _tofu(content: Mapping[str, Any], path: Path) -> Log:
    values: dict[str, np.ndarray] = {}
    ratio = np.zeros(0)
    for part, file in _TASKS.items():
        if file not in content:
            continue
        task = content[file]
        missing = {"avg_gt_loss", "average_perturb_loss", "avg_paraphrased_loss", "rougeL_recall"} - set(task)
        if missing:
            raise ValueError(f"{path}: {file} has no {', '.join(sorted(missing))}; give the log as TOFU wrote it")
        nll, wrong = _column(task["avg_gt_loss"]), [np.array(r) for r in task["average_perturb_loss"].values()]
        log_s = tofu.log_truth_ratio(_column(task["avg_paraphrased_loss"]), wrong)
        offered = part in ("authors", "world")
        form = tofu.truth_ratio_forget if part == "forget" else tofu.truth_ratio_retain
        values[f"{part}_probability"] = tofu.normalised_probability(nll, wrong) if offered else tofu.probability(nll)
        values[f"{part}_rouge_l"] = _column(task["rougeL_recall"])
        values[f"{part}_truth_ratio"] = form(log_s)
        ratio = log_s if part == "forget" else ratio
    return _log("tofu", values, {name: float(np.mean(column)) for name, column in values.items()}, ratio)


def _log(kind: str, values: dict[str, np.ndarray], aggregates: Mapping[str, Any], ratio: np.ndarray) -> Log:
    known = {name: float(value) for name, value in aggregates.items() if isinstance(value, int | float)}
    return Log(kind, {name: column for name, column in values.items() if column.size}, known, ratio)


def _entry(row: Any, key: str) -> Any:
    """The value of one example: the entry of its row that the metric is made of."""
    value = row.get(key) if isinstance(row, Mapping) else row
    return value if isinstance(value, int | float) else None


def _column(rows: Mapping[str, Any] | None) -> np.ndarray:
    values = [np.nan if value is None else value for value in (rows or {}).values()]
    return np.array(values, np.float64)
