"""The files of published benchmarks, found by the names they were published under, in a folder or on the hub.

    TOFU       forgetXX_perturbed, retain_perturbed, real_authors_perturbed, world_facts_perturbed, holdoutXX
    MUSE       verbmem/forget, knowmem/{forget,retain}_qa(_icl), privleak/{forget,retain,holdout},
               {scal,sust}/forget_{1,2,3,4}
    KnowUnDo   unlearn_val, retention_val (and _train); on the hub splits `unlearn` and `retention` of a subject
    choices    rows of `question, choices, answer` and perhaps `task` or `subject`: MMLU, WMDP

A name stands for a file in any form that is read (`.json`, `.jsonl`, `.parquet`, or the shards
`name-00000-of-00001.parquet` that the hub makes). Where a data set renamed a file between versions, both names do. All
that is missing is told in one error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.data.errors import DataError, Problem, raise_if_any, shorten
from jaxunlearn.data.hub_layouts import is_hub_name, nested, on_hub
from jaxunlearn.data.records import Fields, Record, read
from jaxunlearn.data.sources import read_rows

LAYOUTS = ("tofu", "muse", "knowundo", "choice")
TOFU_SPLITS = ("forget01", "forget05", "forget10")
MUSE_FOLDS = tuple(f"{kind}/{number}" for kind in ("scal", "sust") for number in (1, 2, 3, 4))
SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")


class TofuData(NamedTuple):
    """TOFU's records; `holdout` is empty where the folder has none."""

    forget: list[Record]
    retain: list[Record]
    authors: list[Record]
    world: list[Record]
    holdout: list[Record]


class MuseData(NamedTuple):
    """MUSE's rows (`prompt, gt`; `question, answer`) and its texts for the membership attack."""

    verbmem: list[Mapping[str, str]]
    forget_qa: list[Mapping[str, str]]
    forget_icl: list[Mapping[str, str]]
    retain_qa: list[Mapping[str, str]]
    retain_icl: list[Mapping[str, str]]
    forget: list[Record]
    retain: list[Record]
    holdout: list[Record]


class KnowUnDoData(NamedTuple):
    """KnowUnDo's records."""

    unlearn: list[Record]
    retention: list[Record]


def detect(source: str | Path) -> str | None:
    """Which layout a folder or file holds, or None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "unlearn_val.json").write_text("[]")
        ...     detect(folder)
        'knowundo'
    """
    path = Path(source)
    if path.is_file():
        return "choice"
    if not path.is_dir():
        return None
    if any(_find(path, f"{split}{end}") for split in TOFU_SPLITS for end in ("", "_perturbed")):
        return "tofu"
    if any((path / part).is_dir() for part in ("knowmem", "verbmem", "privleak")):
        return "muse"
    if any(_find(path, name) for name in ("unlearn_val", "retention_val", "unlearn_train")):
        return "knowundo"
    return "choice" if _choice_files(path) else None


def tofu(source: str | Path, split: str = "forget10") -> TofuData:
    """TOFU's evaluation sets for one forget split.

    Raises:
        DataError: an unknown split, or all files that are missing.
    """
    if split not in TOFU_SPLITS:
        raise DataError(f"--split {split}: TOFU has {', '.join(TOFU_SPLITS)}.")
    names = [f"{split}_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]
    sets = [read(file) for file in _all(source, [(name,) for name in names])]
    return TofuData(*sets, _unseen(source, split))


def _unseen(source: str | Path, split: str) -> list[Record]:
    """TOFU's holdout; none where there is none, since it was published later than the rest."""
    if is_hub_name(source):
        try:
            return read(on_hub(str(source), f"holdout{split[-2:]}"))
        except DataError:
            return []
    files = (_find(Path(source), f"holdout{share}") for share in (split[-2:], "10", "05", "01"))
    found = next((file for file in files if file), None)
    return read(found) if found else []


def muse(source: str | Path, fold: str | None = None) -> MuseData:
    """MUSE's evaluation sets.

    Args:
        source: the folder, or its name on the hub.
        fold: the forget set, one of `MUSE_FOLDS`; default that of the membership attack.

    Raises:
        DataError: another fold, all files that are missing, or rows without the published fields.
    """
    if fold is not None and fold not in MUSE_FOLDS:
        raise DataError(f"MUSE has no forget set called {fold!r}: choose one of {', '.join(MUSE_FOLDS)}.")
    names = [
        ("verbmem/forget",),
        ("knowmem/forget_qa",),
        ("knowmem/forget_qa_icl",),
        ("knowmem/retain_qa", "knowmem/retain2_qa"),
        ("knowmem/retain_qa_icl", "knowmem/retain2_qa_icl"),
        ("privleak/forget" if fold is None else fold.replace("/", "/forget_"),),
        ("privleak/retain", "privleak/retain2"),
        ("privleak/holdout",),
    ]
    files = _all(source, names)
    asked = [_rows(file, ("question", "answer")) for file in files[1:5]]
    return MuseData(_rows(files[0], ("prompt", "gt")), *asked, *(_texts(file) for file in files[5:]))


def muse_folds(source: str | Path, kind: str) -> list[list[Record]]:
    """MUSE's four forget sets of `scal` (nested, growing) or `sust` (disjoint, for requests in a row).

    Raises:
        DataError: another kind, or all files that are missing.
    """
    if kind not in ("scal", "sust"):
        raise DataError(f"MUSE has no folds called {kind!r}: choose scal or sust.")
    names = [(fold.replace("/", "/forget_"),) for fold in MUSE_FOLDS if fold.startswith(kind)]
    return [_texts(file) for file in _all(source, names)]


def knowundo(source: str | Path, part: str = "val") -> KnowUnDoData:
    """KnowUnDo's unlearn and retention records, of the part `val` (published for evaluation) or `train`.

    On the hub the subject is a config, `owner/name:privacy` or `owner/name:copyright`, its halves are splits of one
    row each, and that row holds the records of both parts.

    Raises:
        DataError: another part, or all files that are missing.
    """
    if part not in ("val", "train"):
        raise DataError(f"KnowUnDo has no part {part!r}: choose val or train.")
    if is_hub_name(source):
        return KnowUnDoData(*(nested(f"{source}:{half}", part) for half in ("unlearn", "retention")))
    return KnowUnDoData(*(read(file) for file in _all(source, [(f"unlearn_{part}",), (f"retention_{part}",)])))


def choices(source: str | Path) -> list[dict[str, Any]]:
    """Multiple-choice questions of a file, of all such files in a folder, or of a hub data set.

    Raises:
        DataError: no such rows, or every row that breaks the schema.
    """
    path = Path(source)
    files = _choice_files(path) if path.is_dir() else [source]
    if not files:
        raise DataError(f"{path} holds no file of rows with question, choices and answer. Name a file or its folder.")
    rows, problems = [], []
    for file in files:
        table = read_rows(file)
        problems += [Problem(f"{table.name}, {p.where}", p.what) for p in table.problems]
        for row in table.rows:
            wrong = _not_a_choice(row.value)
            if wrong:
                problems.append(Problem(f"{table.name}, {row.where}", wrong))
            else:
                rows.append(dict(row.value))
    raise_if_any(problems, f"{len(problems)} multiple-choice questions cannot be used")
    return rows


def _not_a_choice(value: Any) -> str | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("question"), str):
        return f"{shorten(value)} has no question. Write an object with question, choices and answer."
    offered, right = value.get("choices"), value.get("answer")
    if not (isinstance(offered, Sequence) and not isinstance(offered, str) and len(offered) > 1):
        return f'field "choices" holds {shorten(offered)}. Write a list of at least two texts.'
    if not all(isinstance(text, str) and text.strip() for text in offered):
        return f'field "choices" holds {shorten(offered)}. Write every choice as a text.'
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(offered):
        return f'field "answer" holds {shorten(right)}. Write the index of the right choice, 0 to {len(offered) - 1}.'
    return None


def _choice_files(folder: Path) -> list[Path]:
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
        try:
            first = read_rows(path).rows[:1]
        except DataError:
            continue
        if first and isinstance(first[0].value, Mapping) and {"question", "choices", "answer"} <= set(first[0].value):
            found.append(path)
    return found


def _all(source: str | Path, wanted: Sequence[tuple[str, ...]]) -> list[str | Path]:
    """The file of each name (or of the first of its other names that exists); one error for all that are missing."""
    path = Path(source)
    if is_hub_name(source):
        return [on_hub(str(source), names[0]) for names in wanted]
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder of the data set, or its hub name owner/name.")
    found = [next((file for file in (_find(path, name) for name in names) if file), None) for names in wanted]
    missing = [" or ".join(names) for names, file in zip(wanted, found, strict=True) if file is None]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(wanted)} files: {', '.join(missing)} "
            f"(as {', '.join(SUFFIXES)}). Copy them there under their published names."
        )
    return [*found]


def _find(folder: Path, name: str) -> Path | None:
    """The file of a name: in any form, in one piece or as the first of the hub's shards, with - for _ if need be."""
    for stem in (name, name.replace("_", "-")):
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
        shards = sorted((folder / stem).parent.glob(f"{Path(stem).name}-?????-of-?????.parquet"))
        if len(shards) > 1:
            raise DataError(f"{folder / stem} is in {len(shards)} shards. Join them into one Parquet file.")
        if shards:
            return shards[0]
    return None


def _rows(source: str | Path, fields: tuple[str, ...]) -> list[Mapping[str, str]]:
    """Rows with the given text fields."""
    table = read_rows(source)
    problems = [Problem(f"{table.name}, {p.where}", p.what) for p in table.problems]
    for row in table.rows:
        for field in fields:
            value = row.value.get(field) if isinstance(row.value, Mapping) else None
            if not isinstance(value, str) or not value.strip():
                what = f'field "{field}" holds {shorten(value)}. Write a text.'
                problems.append(Problem(f"{table.name}, {row.where}", what))
    raise_if_any(problems, f"{table.name}: {len(problems)} of {len(table.rows)} rows cannot be used")
    return [row.value for row in table.rows]


def _texts(source: str | Path) -> list[Record]:
    """Whole texts: rows with a field `text`, or an array of strings."""
    return read(source, fields=Fields(text="text"))
