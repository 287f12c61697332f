"""Canaries among other rows, and the key that says which they are.

The key is JSON lines, one canary a line: its text, the template, its number among the candidates, and how often it was
inserted. It is a file of records as well, so what was inserted can be forgotten by `unlearn --forget KEY`. Whoever has
the key has the secrets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data.canaries import CanaryTemplate, canary_row
from jaxunlearn.data.errors import DataError, Problem, raise_if_any, shorten
from jaxunlearn.data.records import Fields
from jaxunlearn.data.sources import read_rows

Row = dict[str, Any]


class Canary(NamedTuple):
    """One inserted secret: candidate number `index` of `template`, inserted `copies` times."""

    template: CanaryTemplate
    index: int
    copies: int

    @property
    def text(self) -> str:
        return self.template.fill(self.index)


def insert(
    rows: Sequence[Mapping[str, Any]],
    templates: Sequence[CanaryTemplate],
    *,
    count: int = 1,
    copies: Sequence[int] = (1, 4, 16),
    fields: Fields | None = None,
    seed: int = 0,
) -> tuple[list[Mapping[str, Any]], list[Canary]]:
    """Puts canaries at random places among the rows, which keep their order.

    Args:
        rows: of a training file.
        templates: of the canaries.
        count: different canaries for each template and each number of copies.
        copies: how often a canary is inserted; several numbers give the exposure as a function of it.
        fields: of the file, so that the canaries are read like its rows.
        seed: draws canaries and places.

    Raises:
        DataError: a count or a number of copies below 1, or a space too small for so many canaries.

    Example:
        >>> made, key = insert([{"text": "a"}] * 3, [CanaryTemplate("code {digits:3}")], copies=[2], seed=1)
        >>> len(made), len(key), sum(row["text"] == key[0].text for row in made)
        (5, 1, 2)
    """
    if count < 1 or not copies or min(copies) < 1:
        raise DataError(f"count {count}, copies {list(copies)}: insert at least one canary, at least once.")
    rng = np.random.default_rng(seed)
    key = []
    for template in templates:
        wanted = count * len(copies)
        if wanted >= template.size:
            raise DataError(
                f"canary template {shorten(template.text)} has {template.size} candidates, not more than the {wanted} "
                "canaries asked for. Widen it, or ask for fewer."
            )
        drawn = template.draw(wanted, rng)
        key += [Canary(template, index, copies[number // count]) for number, index in enumerate(drawn)]
    added = [canary_row(canary.text, fields or Fields()) for canary in key for _ in range(canary.copies)]
    places = rng.permutation(np.arange(len(rows) + len(added)) < len(added))
    shuffled = iter([added[i] for i in rng.permutation(len(added))])
    old = iter(rows)
    return [next(shuffled) if canary else next(old) for canary in places], key


def key_rows(key: Sequence[Canary], fields: Fields | None = None) -> list[Row]:
    """The key as rows to write, each a record that holds the canary's text."""
    return [
        canary_row(one.text, fields or Fields())
        | {"canary": {"template": one.template.text, "index": one.index, "copies": one.copies}}
        for one in key
    ]


def read_key(path: str | Path) -> list[Canary]:
    """The canaries of a key file.

    Raises:
        DataError: no such file, or lines that are no canaries.

    Example:
        >>> import json, tempfile
        >>> one = Canary(CanaryTemplate("code {digits:3}"), 42, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "key.jsonl")
        ...     _ = path.write_text("".join(json.dumps(row) for row in key_rows([one])))
        ...     read_key(path) == [one], read_key(path)[0].text
        (True, 'code 042')
    """
    table = read_rows(path)
    found, problems = [], list(table.problems)
    for row in table.rows:
        held = row.value.get("canary") if isinstance(row.value, Mapping) else None
        try:
            one = Canary(CanaryTemplate(held["template"]), int(held["index"]), int(held["copies"]))
            _ = one.text
        except DataError as error:
            problems.append(Problem(row.where, str(error)))
        except (TypeError, KeyError, ValueError):
            what = f"{shorten(row.value)} is no canary. Give the key that `jaxunlearn canary insert` wrote."
            problems.append(Problem(row.where, what))
        else:
            found.append(one)
    raise_if_any(problems, f"{table.name}: {len(problems)} of {len(table.rows) + len(table.problems)} canaries")
    return found
