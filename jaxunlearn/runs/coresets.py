"""A few of many records for a run, chosen by the model before its first step: `evals.coreset` from the command line.

Steps are taken on what is chosen and the original model is asked about nothing else; rules, evaluation, ledger and
certificate of the request go on speaking of all records.
"""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from jaxunlearn import evals
from jaxunlearn.data import Counterfactuals, Encoded, shapes_of
from jaxunlearn.runs.alternatives import Alternatives
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.types import Model, Params

HALVES = ("forget", "retain")


class Records(NamedTuple):
    """What a run takes its steps on.

    Attributes:
        forget, retain: encoded records.
        others: other answers, in the order of the records.
        prompts: counterfactual prompts of the forget records, or None.
    """

    forget: list[Encoded]
    retain: list[Encoded]
    others: Alternatives
    prompts: Counterfactuals | None


def check(settings: Unlearn) -> None:
    """Raises ValueError for a name without a size or a size without a name."""
    for half in HALVES:
        if (getattr(settings, f"{half}_coreset") is None) != (getattr(settings, f"{half}_coreset_size") is None):
            raise ValueError(f"--{half}-coreset and --{half}-coreset-size go together: give both, or neither")


def sizes(settings: Unlearn, forget: int, retain: int) -> tuple[int, int]:
    """How many records there are to take steps on, where there are so many in all."""
    few = settings.forget_coreset_size or forget, settings.retain_coreset_size or retain
    return min(forget, few[0]), min(retain, few[1])


def choose(
    settings: Unlearn, half: str, model: Model, params: Params, records: Records, mesh: Mesh | None
) -> list[int] | None:
    """Which records of a half are taken, by index; None for all."""
    name, size = (getattr(settings, f"{half}_coreset{end}") for end in ("", "_size"))
    given = getattr(records, half)
    if name is None or size is None or size >= len(given):
        return None
    return evals.coreset(name, model, params, given, size, seed=settings.seed, mesh=mesh)


def taken(records: Records, half: str, rows: list[int]) -> Records:
    """The records with only `rows` of one half, and what goes with them.

    Example:
        >>> few = taken(Records(["a", "b", "c"], ["x"], Alternatives(forget=["A", "B", "C"]), None), "forget", [0, 2])
        >>> few.forget, few.others.forget, few.retain
        (['a', 'c'], ['A', 'C'], ['x'])
    """
    other = getattr(records.others, half)
    others = records.others if other is None else records.others._replace(**{half: [other[row] for row in rows]})
    few = [getattr(records, half)[row] for row in rows]
    prompts = records.prompts
    if half == "forget" and prompts is not None:
        # Of fewer records the longest may be shorter, and so may the batches be that the prompts stand beside.
        kept = jax.tree.map(lambda column: column[rows], prompts)
        prompts = kept._replace(places=kept.places[..., : shapes_of(few)[1]])
    return records._replace(**{half: few}, others=others, prompts=prompts)
