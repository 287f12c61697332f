"""Parts of a published benchmark on the hub, by the names they have there."""

from pathlib import Path

from jaxunlearn.data.errors import DataError
from jaxunlearn.data.records import Record, from_rows
from jaxunlearn.data.sources import read_rows


def is_hub_name(source: str | Path) -> bool:
    """Whether a source looks like `owner/name`, perhaps with a config, and no such file is here."""
    path = Path(source)
    return not path.exists() and not path.is_absolute() and str(source).count("/") == 1 and str(source)[0] not in ".~"


def on_hub(source: str, name: str) -> str:
    """`owner/name:config:split`; a name with a folder is a config and a split, any other a config of one split."""
    config, _, split = name.partition("/")
    return f"{source}:{config}:{split or 'train'}"


def nested(source: str, part: str) -> list[Record]:
    """The records of one part of KnowUnDo on the hub, from rows that hold them as lists."""
    name, _, rest = source.partition(":")
    if rest.count(":") != 1:
        raise DataError(
            f"--data {source.rpartition(':')[0]}: on the hub KnowUnDo has two subjects. Write {name}:privacy or "
            f"{name}:copyright."
        )
    rows = [one for row in read_rows(source).rows for one in row.value.get(part) or ()]
    return from_rows(rows, name=f"{source}, {part}")
