"""Records: one example each, whatever layout its file uses, with the place it came from.

Five layouts are told apart by their fields, so the files of the usual benchmarks are read as they are published:
`{question, answer}` (TOFU), `{prompt, completion}`, `{text}`, `{messages: [{role, content}, ...]}` (chat) and
`{text, labels}` (KnowUnDo: prompt and completion). Any other names are mapped by `Fields`. The whole original object
stays in `raw`: evaluations look up `paraphrased_answer`, `perturbed_answer` and the like there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxunlearn.data.errors import DataError, Problem, raise_if_any, shorten
from jaxunlearn.data.sources import Row, read_rows

Kind = Literal["question", "prompt", "text", "messages"]
_PAIRS: tuple[tuple[str, str, Kind], ...] = (
    ("question", "answer", "question"),
    ("prompt", "completion", "prompt"),
    ("text", "labels", "prompt"),
)


class Fields(NamedTuple):
    """Which fields of a file hold what; `None` leaves it to the usual names.

    Give `prompt` and `completion`, or `text`, or `messages`. `entity` names the field with the name(s) of whom or what
    a record is about (a string or a list of strings; usual name `entity`).
    """

    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    messages: str | None = None
    entity: str | None = None


@dataclass(frozen=True)
class Record:
    """One example and where it came from.

    Attributes:
        kind: "question" (rendered by a question template), "prompt" (joined verbatim), "text" or "messages".
        prompt: what is given; empty for "text", and for "messages" all that is not the assistant's.
        completion: what carries loss; for "text" the whole text, for "messages" the assistant's turns.
        messages: (role, content) pairs of a chat.
        entity: names of whom or what the record is about, where the file says so.
        file, line: the place, counted from 1 (the record's number for arrays, Parquet and hub data sets).
        where: the place in words, "forget.jsonl, line 3".
        raw: the whole original object.
    """

    kind: Kind
    prompt: str
    completion: str
    messages: tuple[tuple[str, str], ...] = ()
    entity: tuple[str, ...] = ()
    file: str = "records"
    line: int = 1
    where: str = "records, record 1"
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def read(source: str | Path, *, fields: Fields | None = None) -> list[Record]:
    """Read all records of a file or hub data set, or say everything that is wrong with it.

    Args:
        source: JSON lines, a JSON array, Parquet, or a hub data set `name[:config[:split]]`; a local path wins. An
            array of nothing but texts, as MUSE publishes its forget sets, is one of records with a field `text`.
        fields: names of the fields, where they are not the usual ones.

    Raises:
        DataError: missing or empty file, wrong JSON, objects without usable fields; one message for the whole file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "facts.jsonl")
        ...     _ = path.write_text('{"question": "Who?", "answer": "Ada."}')
        ...     [record] = read(path)
        >>> record.kind, record.completion, record.line
        ('question', 'Ada.', 1)
    """
    table = read_rows(source)
    rows = table.rows
    if all(isinstance(row.value, str) for row in rows):
        rows = [row._replace(value={"text": row.value}) for row in rows]
    return _build(table.name, rows, table.problems, fields or Fields())


def from_rows(
    rows: Iterable[Mapping[str, Any]], *, name: str = "records", fields: Fields | None = None
) -> list[Record]:
    """Records from objects already in memory, checked as `read` checks a file.

    Example:
        >>> from_rows([{"text": "Once upon a time"}])[0].kind
        'text'
    """
    numbered = [Row(number, f"record {number}", row) for number, row in enumerate(rows, start=1)]
    if not numbered:
        raise DataError(f"{name} is empty. Give at least one record.")
    return _build(name, numbered, [], fields or Fields())


def check_overlap(forget: Sequence[Record], retain: Sequence[Record]) -> None:
    """Refuse a record that stands in both sets: no method can forget and keep the same text.

    Two records are the same when they agree up to case and white space (`normalised`).

    Raises:
        DataError: names both places of each shared record.

    Example:
        >>> one = from_rows([{"question": "Who?", "answer": "Ada."}], name="forget")
        >>> check_overlap(one, from_rows([{"question": "Who?", "answer": "Alan."}], name="retain"))
    """
    kept = {normalised(record): record for record in reversed(retain)}
    problems = []
    for record in forget:
        twin = kept.get(normalised(record))
        if twin is not None:
            shown = shorten(record.prompt or record.completion)
            problems.append(Problem(record.where, f"{shown} is also at {twin.where}"))
    total = f"{len(problems)} of {len(forget)} forget records are in the retain set too"
    raise_if_any(problems, f"{total}; remove each from one of the two")


def normalised(record: Record) -> tuple[str, str]:
    """Prompt and completion up to case and white space: two records are the same when these agree."""
    return tuple(" ".join(part.casefold().split()) for part in (record.prompt, record.completion))


def _build(name: str, rows: list[Row], problems: list[Problem], fields: Fields) -> list[Record]:
    records, found = [], [(int(problem.where.split()[-1]), problem) for problem in problems]
    for row in rows:
        try:
            records.append(_record(name, row, fields))
        except DataError as error:
            found.append((row.number, Problem(row.where, str(error))))
    total = len(rows) + len(problems)
    ordered = [problem for _, problem in sorted(found, key=lambda pair: pair[0])]
    raise_if_any(ordered, f"{name}: {len(ordered)} of {total} records cannot be used")
    return records


def _record(name: str, row: Row, fields: Fields) -> Record:
    value = row.value
    if not isinstance(value, Mapping):
        raise DataError(f"{shorten(value)} is not an object. Write one JSON object with named fields.")
    kind, names = _layout(value, fields)
    messages: tuple[tuple[str, str], ...] = ()
    if kind == "messages":
        messages = _messages(value[names[0]], names[0])
        prompt = "\n".join(content for role, content in messages if role != "assistant")
        completion = "\n".join(content for role, content in messages if role == "assistant")
    else:
        texts = [_text(value, key) for key in names]
        prompt, completion = texts if len(texts) == 2 else ("", texts[0])
        if not completion.strip():
            raise DataError(
                f'field "{names[-1]}" is blank ({shorten(completion)}). Write a text, or remove the record.'
            )
    entity = _entities(value, fields.entity)
    where = f"{name}, {row.where}"
    return Record(kind, prompt, completion, messages, entity, name, row.number, where, value)


def _layout(value: Mapping, fields: Fields) -> tuple[Kind, tuple[str, ...]]:
    """The record's kind and the names of the fields that hold it."""
    wanted = [(fields.messages,), (fields.prompt, fields.completion), (fields.text,)]
    for kind, names in zip(("messages", "prompt", "text"), wanted, strict=True):
        if any(names):
            if None in names:
                raise DataError(
                    "a prompt field needs a completion field. Give both --prompt-field and --completion-field."
                )
            missing = [key for key in names if key not in value]
            if missing:
                raise DataError(f'no field "{missing[0]}"; the record has {_present(value)}. {_FLAGS}')
            return kind, names
    if "messages" in value:
        return "messages", ("messages",)
    for prompt, completion, kind in _PAIRS:
        if prompt in value and completion in value:
            return kind, (prompt, completion)
    if "text" in value:
        return "text", ("text",)
    raise DataError(f"no usable fields; the record has {_present(value)}. {_FLAGS}")


_FLAGS = "Name the fields with --prompt-field and --completion-field, --text-field or --messages-field."


def _present(value: Mapping) -> str:
    names = [f'"{key}"' for key in value]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def _text(value: Mapping, key: str) -> str:
    text = value[key]
    if not isinstance(text, str):
        raise DataError(f'field "{key}" holds {shorten(text)} ({type(text).__name__}), not text. Write it as a string.')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f'field "{key}" holds half a surrogate pair ({shorten(text)}). Save the file as UTF-8 again.')
    return text


def _messages(value: Any, key: str) -> tuple[tuple[str, str], ...]:
    turns = []
    for turn in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        if not (isinstance(turn, Mapping) and all(isinstance(turn.get(part), str) for part in ("role", "content"))):
            raise DataError(
                f'field "{key}" holds {shorten(turn)}. Each message needs the strings "role" and "content".'
            )
        turns.append((turn["role"], turn["content"]))
    if not any(role == "assistant" and content.strip() for role, content in turns):
        raise DataError(f'field "{key}" has no assistant turn with text, so nothing carries loss. Add one.')
    return tuple(turns)


def _entities(value: Mapping, key: str | None) -> tuple[str, ...]:
    held = value.get(key or "entity")
    if held is None:
        if key is not None:
            raise DataError(f'no field "{key}"; the record has {_present(value)}. Name it with --entity-field.')
        return ()
    names = [held] if isinstance(held, str) else held
    if not (isinstance(names, Sequence) and all(isinstance(name, str) and name.strip() for name in names)):
        raise DataError(f'field "{key or "entity"}" holds {shorten(held)}. Write a name or a list of names.')
    return tuple(names)
