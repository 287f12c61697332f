"""Result files of `evaluate`, `attack` and the demo, and which model each of their columns is about.

A file names the folder of every column and the hash of the weights that were in it. The hash decides: folders are
renamed and written anew, and numbers of other weights would be a false witness. Only a column whose hash was never
known, such as that of a hub id, is told by its folder.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.evals import Result

_OURS = re.compile(rb'\s*\{\s*"command":\s*"(evaluate|attack|demo)"')
_HOW = "give a file that `jaxunlearn evaluate --out` or `jaxunlearn attack --out` wrote"


class Results(NamedTuple):
    """A result file.

    Attributes:
        path: the file.
        command: "evaluate", "attack" or "demo".
        columns: column name to result.
        models: column name to checkpoint folder, as given.
        weights: column name to the hash of its weights, None where it was not known.
        inputs: "forget", "retain", "holdout" to `{"path": ..., "sha256": ...}`.
        floor: KL between two retrained seeds, by metric; the demo knows it.
        costs: row to column to value; the demo knows them.
        suite: the benchmark it was measured on, None for record files.
    """

    path: Path
    command: str
    columns: dict[str, Result]
    models: Mapping[str, str]
    weights: Mapping[str, str | None]
    inputs: Mapping[str, Mapping[str, str | None]]
    floor: Mapping[str, float]
    costs: Mapping[str, Mapping[str, float | str]]
    suite: str | None

    def column_of(self, folder: Path, weights: str | None) -> str | None:
        """The column that is about these weights, or None."""
        # A model that changed nothing is "before" as well as "after".
        names = sorted(self.columns, key=lambda name: name in ("before", "retrained"))
        for name in names:
            if weights is not None and self.weights.get(name) == weights:
                return name
        for name in names:
            if self.weights.get(name) is None and self._is_at(name, folder):
                return name
        return None

    def _is_at(self, name: str, folder: Path) -> bool:
        given = self.models.get(name)
        return given is not None and locate(given, self.path.parent) == folder.resolve()

    def sha256(self, part: str) -> str | None:
        """Hash of a record file, None where it is not known."""
        return self.inputs.get(part, {}).get("sha256")


def read_results(path: Path) -> Results:
    """Reads a result file.

    Raises:
        ValueError: no such file, or none of ours.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; {_HOW}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {_HOW}") from None
    columns = content.get("results") if isinstance(content, dict) else None
    if not isinstance(columns, dict) or not columns or not all(map(_is_result, columns.values())):
        raise ValueError(f"{path}: no results of models in it; {_HOW}")
    if content.get("command") not in ("evaluate", "attack", "demo"):
        raise ValueError(f"{path}: it does not say which command wrote it; {_HOW}")
    maps = {name: content.get(name) or {} for name in ("models", "weights", "inputs", "floor", "costs")}
    return Results(path, content["command"], columns, **maps, suite=content.get("suite"))


def results_in(*folders: Path) -> list[Results]:
    """All result files directly in the folders, the newest first; other JSON files are not opened beyond their head."""
    found = {}
    for folder in folders:
        for path in folder.glob("*.json"):
            with path.open("rb") as file:
                if _OURS.match(file.read(100)):
                    found[path.resolve()] = path
    ordered = sorted(found.values(), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    return [read_results(path) for path in ordered]


def locate(given: str, *homes: Path) -> Path | None:
    """Where a recorded path leads now, resolved; a relative one was relative to a place that nobody recorded, so it is
    tried from here and from `homes`. None where nothing is."""
    for path in (Path(given), *(home / given for home in homes)):
        if path.exists():
            return path.resolve()
    return None


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) and "agg_value" in one for one in value.values())
