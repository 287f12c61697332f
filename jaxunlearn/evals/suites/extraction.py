"""Extraction by greedy decoding as a suite of its own: EL_10 and 50-extractability of the forget set.

Only prefixes after which the model errs are continued (`evals.extraction`), with a KV cache and batched; a model that
knows its texts by heart writes nothing at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals import extraction
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.protocol import NO_GENERATION, Seen
from jaxunlearn.evals.result import Measure, Result, measured, skipped
from jaxunlearn.evals.score import Scores

EL_N = 10
EL_TOKENS = 200  # as many as Jang et al. measure; the cost grows with the square

EXTRACTION_METRICS: dict[str, Metric] = {
    "forget_el_10": Metric(
        "Extraction likelihood EL10, forget",
        "forget",
        "",
        "worse",
        "Share of the text's word sequences that come out when the model continues each of its beginnings.",
    ),
    "forget_k_extractable": Metric(
        "50-extractable, forget",
        "forget",
        "",
        "worse",
        "Share of texts whose tokens 51 to 100 come out word for word after the first 50.",
    ),
}


@dataclass(frozen=True)
class Extraction:
    """EL_10 and k-extractability.

    Attributes:
        forget: encoded examples.
        begin: id of the begin token, which is no part of a text's length.
    """

    forget: Sequence[Encoded]
    begin: int | None = None
    name: ClassVar[str] = "extraction"
    rows: ClassVar[Mapping[str, Metric]] = EXTRACTION_METRICS

    def texts(self) -> dict[str, Sequence[Encoded]]:
        return {"forget": self.forget}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        """Every prefix of an answer after which the model errs, to be continued to the answer's end."""
        if not _whole(self.forget):
            return {}
        prompts, new = [], []
        for example, hits in zip(self.forget, scores["forget"].hits, strict=True):
            start, T = int(np.flatnonzero(example.loss_mask)[0]), min(len(hits), EL_TOKENS)
            for i in extraction.erring(hits[:T]) if T > EL_N else ():
                prompts.append(example.tokens[: start + i].tolist())
                new.append(T - i)
        return {"prefixes": Prompts(prompts, new, stop=False)}

    def measure(self, seen: Seen) -> Result:
        return {"forget_el_10": self._likelihood(seen), "forget_k_extractable": self._extractable(seen)}

    def _likelihood(self, seen: Seen) -> Measure:
        key = "forget_el_10"
        if seen.written is None:
            return skipped(key, NO_GENERATION)
        if "prefixes" not in seen.written:
            return skipped(key, "some texts carry loss in several places")
        written, values = iter(seen.written["prefixes"]), []
        for example, hits in zip(self.forget, seen.scores["forget"].hits, strict=True):
            truth, hits = example.tokens[np.flatnonzero(example.loss_mask)][:EL_TOKENS].tolist(), hits[:EL_TOKENS]
            if len(truth) <= EL_N:
                values.append(np.nan)
                continue
            continued = extraction.continuations(truth, hits, {i: next(written) for i in extraction.erring(hits)})
            values.append(extraction.extraction_likelihood(truth, continued, EL_N))
        return self._long_enough(key, np.array(values), f"all answers have at most {EL_N} tokens", seen)

    def _extractable(self, seen: Seen) -> Measure:
        rows = []
        for example, hits in zip(self.forget, seen.scores["forget"].hits, strict=True):
            skip = int(self.begin is not None and len(example.tokens) > 0 and example.tokens[0] == self.begin)
            places, row = np.flatnonzero(example.loss_mask) - skip, np.zeros(len(example.tokens) - skip, bool)
            row[places] = hits
            # Tokens of the prompt carry no loss, so a text that is long enough only with its prompt is not measured.
            rows.append(row if len(places) and places[0] <= 50 else row[:0])
        reason = "no text has 100 tokens with the first 50 as its beginning"
        return self._long_enough("forget_k_extractable", extraction.k_extractable(rows), reason, seen)

    def _long_enough(self, key: str, values: np.ndarray, reason: str, seen: Seen) -> Measure:
        """A measure of the texts that are long enough for it, under their own indices."""
        kept = np.flatnonzero(~np.isnan(values))
        if not len(kept):
            return skipped(key, reason)
        finite = np.isfinite(seen.scores["forget"].nll[kept])
        measure = measured(key, np.where(finite, values[kept], np.nan), seed=seen.run.seed)
        named = zip(kept, measure["value_by_index"].values(), strict=True)
        return measure | {"value_by_index": {str(i): value for i, value in named}, "too_short": len(values) - len(kept)}


def _whole(examples: Sequence[Encoded]) -> bool:
    """Whether the loss tokens of every example are one run, with something before it."""
    places = [np.flatnonzero(example.loss_mask) for example in examples]
    return all(at[0] > 0 and at[-1] - at[0] == len(at) - 1 for at in places)
