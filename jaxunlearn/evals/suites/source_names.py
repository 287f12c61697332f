"""Short names of data sources that are measured side by side, fit for the name of a metric."""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxunlearn.data import DataError
from jaxunlearn.data.hub_layouts import is_hub_name
from jaxunlearn.data.layouts import SUFFIXES

_SAYS_NOTHING = ("all", "default")


def source_names(sources: Sequence[str]) -> list[str]:
    """One name for each source: the last part of its path, or the config of a hub data set; more where that is taken.

    Errors:
        DataError: a source that is given twice, or one of which nothing is left for a name.

    Example:
        >>> source_names(["/data/WMDP-bio.json", "cais/wmdp:wmdp-cyber:test", "cais/mmlu:all:test"])
        ['wmdp_bio', 'wmdp_cyber', 'mmlu']
        >>> source_names(["/data/one/test.json", "/data/two/test.json"])
        ['one_test', 'two_test']
    """
    parts = [_parts(source) for source in sources]
    sizes = [1] * len(sources)
    while True:
        names = ["_".join(part[-size:]) for part, size in zip(parts, sizes, strict=True)]
        again = [at for at, name in enumerate(names) if names.count(name) > 1]
        if not again:
            return names
        if all(sizes[at] >= len(parts[at]) for at in again):
            raise DataError(f"--data {sources[again[-1]]} is given twice: nothing tells it from another. Give it once.")
        sizes = [size + (at in again) for at, size in enumerate(sizes)]


def _parts(source: str) -> list[str]:
    """What a name may be made of, the most telling part last."""
    if is_hub_name(source):
        name, config, split = [*source.split(":"), "", ""][:3]
        found = [*name.split("/")[:1], split, name.rpartition("/")[2], "" if config in _SAYS_NOTHING else config]
    else:
        path = Path(source).resolve()
        found = [*path.parts[:-1], path.stem if path.suffix.lower() in SUFFIXES else path.name]
    cleaned = [name for part in found if (name := re.sub(r"\W+", "_", part).strip("_").lower())]
    if not cleaned:
        raise DataError(f"--data {source}: its numbers need a name, and this path has none. Rename the folder.")
    return cleaned
