"""Preference between contradicting statements as a suite of its own; see `evals.conflict`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxunlearn.data import DataError, Encoded, from_rows
from jaxunlearn.data.encode import encode
from jaxunlearn.evals import conflict
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.prompts import Prompts, without_end
from jaxunlearn.evals.protocol import Seen
from jaxunlearn.evals.result import Result, measured, skipped
from jaxunlearn.evals.score import Scores

_BELIEF = "How often the model finds the true statement likelier than one that contradicts it; one half is not knowing."

CONFLICT_METRICS: dict[str, Metric] = {
    f"forget_conflict_{wording}": Metric(f"True preferred, {wording}", "forget", "", "neither", _BELIEF, 0.5)
    for wording in conflict.WORDINGS
}


@dataclass(frozen=True)
class Conflict:
    """Win rate of true statements in each wording; `pairs` are those of `statements`."""

    pairs: dict[str, list[Encoded]] | str
    name: ClassVar[str] = "conflict"
    rows: ClassVar[Mapping[str, Metric]] = CONFLICT_METRICS

    def texts(self) -> dict[str, Sequence[Encoded]]:
        return {} if isinstance(self.pairs, str) else {**self.pairs}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        return {}

    def measure(self, seen: Seen) -> Result:
        if isinstance(self.pairs, str):
            return {key: skipped(key, self.pairs) for key in self.rows}
        found: Result = {}
        for wording in conflict.WORDINGS:
            key = f"forget_conflict_{wording}"
            true, false = np.split(seen.scores[wording].nll, 2)
            found[key] = measured(key, conflict.wins(true, false), seed=seen.run.seed)
        return found


def statements(forget: Sequence[Encoded], tokenizer: Any, max_length: int) -> dict[str, list[Encoded]] | str:
    """By wording, the true statements and then the false ones, or in words why there are none.

    False ones are the first wrong answers that records bring along in `perturbed_answer`.
    """
    records = [example.record for example in forget]
    false = [conflict.first_false(record.raw) for record in records]
    lacking = [record for record, text in zip(records, false, strict=True) if text is None]
    if lacking:
        return f'{len(lacking)} of {len(records)} records have no "perturbed_answer" (first: {lacking[0].where})'
    both = [record.completion for record in records] + false
    rows = {w: [{"text": conflict.worded(text, w)} for text in both] for w in conflict.WORDINGS}
    try:
        return {
            wording: [
                without_end(one)
                for one in encode(from_rows(texts, name=f"{wording} statements"), tokenizer, max_length=max_length)
            ]
            for wording, texts in rows.items()
        }
    except DataError:
        # The wording is ours, and what it adds may be too much for records that fit by themselves.
        return f"some statements, worded at length, pass the model's context of {max_length} tokens"
