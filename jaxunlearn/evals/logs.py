"""Result files of three kinds, read into one form: ours, TOFU's own logs, OpenUnlearning's.

    ours            {metric: {agg_value, value_by_index: {"0": x}, ...}}, or several such under "results"
    OpenUnlearning  {metric: {agg_value, value_by_index: {"0": {name: x}}}}           (Dorna et al. 2025)
    TOFU            {task file: {quantity: {"0": x}}}: losses and recalls of each question  (Maini et al. 2024)

What they have in common is what a comparison needs: the truth ratio `log s` of each forget question, the per-example
values behind each metric, and the nine numbers of Model Utility.
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.evals import tofu
from jaxunlearn.evals.open_unlearning import OF_MUSE, PARTS, THEIRS
from jaxunlearn.evals.result import Result

_TASKS = {
    "retain": "eval_log.json",
    "authors": "eval_real_author_wo_options.json",
    "world": "eval_real_world_wo_options.json",
    "forget": "eval_log_forget.json",
}


class Log(NamedTuple):
    """What a result file says about one model.

    Attributes:
        kind: "jaxunlearn", "open_unlearning" or "tofu".
        values: per-example values of each metric, by our name.
        aggregates: of each metric; the mean of its values unless the file says otherwise.
        log_ratio: `log s` of each forget question, empty where the file has none.
        tokens: loss tokens of each example, for the metrics whose aggregate weighs examples by them.
    """

    kind: str
    values: dict[str, np.ndarray]
    aggregates: dict[str, float]
    log_ratio: np.ndarray
    tokens: Mapping[str, np.ndarray] = MappingProxyType({})

    def mean(self, name: str, examples: int | None = None) -> float:
        """Mean of the values of a metric, or of those of the first examples, weighed as its aggregate weighs them."""
        values = self.values[name][:examples]
        return float(np.average(values, weights=self.weights(name)[:examples]))

    def weights(self, name: str) -> np.ndarray:
        """Weight of each example in the aggregate of a metric."""
        return self.tokens.get(name, np.ones(len(self.values[name])))

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


def read_logs(path: str | Path, pattern: str) -> dict[str, Log]:
    """All models of a result file whose columns fit a shell pattern, by column; the only one, where it holds no more.

    Errors:
        ValueError: as `read_log`.
    """
    columns = _columns(_decoded(Path(path)))
    if columns is None or len(columns) == 1:
        return {next(iter(columns or {Path(path).stem: None})): read_log(path)}
    fitting = [column for column in columns if fnmatchcase(column, pattern)]
    if not fitting:
        raise ValueError(f"{path} holds {', '.join(columns) or 'no model'}, and no {pattern!r}; choose among them")
    return {column: read_log(path, column) for column in fitting}


def read_result(path: str | Path, column: str = "after") -> Result:
    """Reads one model's result from a file of `jaxunlearn evaluate --out`.

    Errors:
        ValueError: as `read_log`, and for a file of another kind.
    """
    measures = _measures(_load(Path(path), column), Path(path))
    if _is_theirs(measures):
        raise ValueError(f"{path} is in OpenUnlearning's form; give a result of `jaxunlearn evaluate --out`")
    return measures


def _decoded(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a result of `jaxunlearn evaluate --out`, or a published log")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); give a result file as it was written") from None


def _columns(content: Any) -> dict[str, Any] | None:
    """The models of a file, None where it is of one."""
    several = isinstance(content, dict) and isinstance(content.get("results"), dict)
    return content["results"] if several else None


def _load(path: Path, column: str) -> Any:
    """The decoded file; of several models, the one asked for."""
    content = _decoded(path)
    columns = _columns(content)
    if columns is None:
        return content
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
    """OpenUnlearning keeps a dictionary for each example, and for each side of an attack; we keep numbers."""
    rows = [row for m in measures.values() for row in (m.get("value_by_index") or {}).values()]
    return any(isinstance(row, dict) for row in rows) or any(
        isinstance(m.get("forget"), dict) for m in measures.values()
    )


def _ours(measures: Mapping[str, Any]) -> Log:
    values = {name: _column(m.get("value_by_index")) for name, m in measures.items()}
    ratio = _column(measures.get("forget_truth_ratio", {}).get("log_ratio_by_index"))
    log = _log("jaxunlearn", values, {name: m["agg_value"] for name, m in measures.items()}, ratio)
    return log._replace(tokens={name: row for name, row in _tokens(measures) if len(row) == len(values.get(name, ()))})


def _tokens(measures: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for part in PARTS:
        row = _column(measures.get(f"{part}_nll", {}).get("tokens_by_index"))
        yield from ((f"{part}_{name}", row) for name in ("nll", "kl", "total_variation") if row.size)


def _open_unlearning(measures: Mapping[str, Any]) -> Log:
    values, aggregates, ratio = {}, {}, np.zeros(0)
    # Its versions differ in the case of some names.
    ours = {theirs.lower(): (name, key) for name, (theirs, key) in THEIRS.items()}
    if OF_MUSE in {name.lower() for name in measures}:
        ours["mia_min_k"] = ("muse_min_k_auc", "score")
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
