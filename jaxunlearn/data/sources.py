"""From a source (a local file or a hub data set) to rows: one decoded value each, with the place it came from.

What a file holds is decided by its content where that is cheap: a `.json` file whose first character is `[` is one
array, anything else is read as JSON lines (TOFU publishes its `.json` files as JSON lines). A row that does not
decode is kept as a problem, so that the reader can report all of them at once.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.data.errors import DataError, Problem, nearest, shorten

_FILE_SUFFIXES = {".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".csv", ".tsv", ".gz", ".zip"}
_EXAMPLE = '{"question": "...", "answer": "..."}'


class Row(NamedTuple):
    """One decoded value; `where` is "line 3" in JSON lines and "record 3" in arrays, tables and hub data sets."""

    number: int
    where: str
    value: Any


class Table(NamedTuple):
    """All rows of a source, and the places where something could not be decoded."""

    name: str
    rows: list[Row]
    problems: list[Problem]


def read_rows(source: str | Path) -> Table:
    """Decode every row of `source`.

    Args:
        source: a path to JSON lines, a JSON array or Parquet; or a hub data set as `name`, `name:config` or
            `name:config:split` (split `train` unless given). A local path wins.

    Raises:
        DataError: the file is missing (the nearest name is suggested), a folder, empty, not UTF-8, or the hub
            data set cannot be loaded.
    """
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a data file. Name one file in it{_listing(path)}.")
    if path.is_file():
        return _read_file(path)
    if path.suffix.lower() in _FILE_SUFFIXES or path.is_absolute() or str(source).startswith((".", "~")):
        raise DataError(f"{path}: no such file.{_suggestion(path)} Check the path.")
    return _read_hub(str(source))


def _read_file(path: Path) -> Table:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Write at least one record, such as {_EXAMPLE}.")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text ({error.reason}). Save the file as UTF-8.") from None
    if not text.strip():
        raise DataError(f"{path} is empty (only white space). Write at least one record, such as {_EXAMPLE}.")
    return _read_array(path, text) if text.lstrip().startswith("[") else _read_lines(path, text)


def _read_lines(path: Path, text: str) -> Table:
    rows, problems = [], []
    # str.splitlines would also break at U+2028 and its kin, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row(number, f"line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            what = (
                f"not JSON at column {error.colno} ({error.msg}): {shorten(line.strip())}. Write one JSON object a line"
            )
            problems.append(Problem(f"line {number}", f"{what}, such as {_EXAMPLE}."))
    return Table(str(path), rows, problems)


def _read_array(path: Path, text: str) -> Table:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON at column {error.colno} ({error.msg}). It starts with '[', so "
            f"it must be one JSON array of objects: repair that line, or write one object a line, no brackets."
        ) from None
    if not values:
        raise DataError(f"{path} holds an empty array. Write at least one record, such as [{_EXAMPLE}].")
    return Table(str(path), _numbered(values), [])


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}). Write it again, or use JSON lines.") from None
    if not values:
        raise DataError(f"{path} is empty (no rows). Write at least one record.")
    return Table(str(path), _numbered(values), [])


def _read_hub(source: str) -> Table:
    import datasets

    name, config, split = [*source.split(":"), "", ""][:3]
    try:
        values = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the hub client raises many unrelated types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: no such file, and it did not load as a hub data set either ({reason})."
            f"{_suggestion(Path(source))} Check the path, or name the data set as name:config:split."
        ) from None
    rows = _numbered(list(values))
    if not rows:
        raise DataError(f"{source} is empty (no rows). Choose another split, as name:config:split.")
    return Table(source, rows, [])


def _numbered(values: list) -> list[Row]:
    return [Row(number, f"record {number}", value) for number, value in enumerate(values, start=1)]


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in {".json", ".jsonl", ".ndjson", ".parquet"})
    return f": {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else ""


def _suggestion(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist."
    found = nearest(path.name, (p.name for p in path.parent.iterdir()))
    return f" Did you mean {path.parent / found}?" if found else ""
