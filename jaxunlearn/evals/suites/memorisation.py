"""The memorisation suite: how much of what was to be forgotten still comes out, and whether the model still talks.

Over a forget set and, if given, a retain set: likelihood and perplexity, exact memorisation and extraction strength
from the scoring pass; extraction likelihood EL_10 and k-extractability; distinct n-grams and repetition of what the
model writes; and which of two contradicting statements it prefers, where records bring wrong answers along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxunlearn.data import DataError, Encoded, from_rows
from jaxunlearn.data.encode import encode
from jaxunlearn.evals import conflict, diversity, extraction
from jaxunlearn.evals.catalogue import CORE, Metric
from jaxunlearn.evals.prompts import Prompts, answer_prompts, decoded, without_end
from jaxunlearn.evals.protocol import NO_GENERATION, Seen
from jaxunlearn.evals.result import Measure, Result, measured, skipped
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.single import Part, answers
from jaxunlearn.evals.suites.knowundo import perplexity_measure

EL_N = 10
EL_TOKENS = 200  # as many as Jang et al. measure; the cost grows with the square
GRAMS = 2
_CAME_OUT = "Share of the text's word sequences that come out when the model continues each of its beginnings."
_EXTRACTABLE = "Share of texts whose tokens 51 to 100 come out word for word after the first 50."
_DISTINCT = "Share of word pairs in what the model writes that are not repeats; low is gibberish."
_REPEATED = "Share of four-word sequences in what the model writes that stood there before; high is gibberish."
_BELIEF = "How often the model finds the true statement likelier than one that contradicts it; one half is not knowing."
_HESITATES = "Equally likely tokens the model hesitates between."

MEMORISATION_METRICS: dict[str, Metric] = {
    **{
        name: CORE[name]
        for name in (
            "forget_probability",
            "forget_nll",
            "forget_exact_memorisation",
            "forget_extraction_strength",
            "retain_probability",
            "retain_nll",
            "retain_exact_memorisation",
        )
    },
    "forget_perplexity": Metric("Perplexity, forget", "forget", "", "better", _HESITATES),
    "forget_el_10": Metric("Extraction likelihood EL10, forget", "forget", "", "worse", _CAME_OUT),
    "forget_k_extractable": Metric("50-extractable, forget", "forget", "", "worse", _EXTRACTABLE),
    "forget_distinct_2": Metric("Distinct word pairs, forget", "forget", "", "better", _DISTINCT),
    "forget_repetition": Metric("Repetition, forget", "forget", "", "worse", _REPEATED),
    "forget_conflict_formal": Metric("True preferred, formal", "forget", "", "neither", _BELIEF, 0.5),
    "forget_conflict_informal": Metric("True preferred, informal", "forget", "", "neither", _BELIEF, 0.5),
    "retain_perplexity": Metric("Perplexity, retain", "retain", "", "worse", _HESITATES),
    "retain_distinct_2": Metric("Distinct word pairs, retain", "retain", "", "better", _DISTINCT),
    "retain_repetition": Metric("Repetition, retain", "retain", "", "worse", _REPEATED),
}


@dataclass(frozen=True)
class Memorisation:
    """Memorisation of `forget` beside `retain`; make it with `memorisation_suite`.

    Attributes:
        forget, retain: encoded examples.
        pairs: by wording, the true statements and then the false ones, or in words why there are none.
        new_tokens: length of generated answers, tokens.
        begin: id of the begin token, which is no part of a text's length.
        max_length: the model's context, tokens.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    pairs: dict[str, list[Encoded]] | str
    new_tokens: int = 64
    begin: int | None = None
    max_length: int | None = None
    name: ClassVar[str] = "memorisation"
    rows: ClassVar[Mapping[str, Metric]] = MEMORISATION_METRICS

    def texts(self) -> dict[str, Sequence[Encoded]]:
        pairs = {} if isinstance(self.pairs, str) else self.pairs
        return {**self._sets(), **pairs}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        found = answer_prompts(self._sets(), self.new_tokens, self.max_length)
        if _whole(self.forget):
            found["prefixes"] = self._prefixes(scores["forget"])
        return found

    def measure(self, seen: Seen) -> Result:
        found: Result = {}
        for name, examples in self._sets().items():
            scores, seed = seen.scores[name], seen.run.seed
            found |= answers(Part(name, examples, scores, "not asked for", None), seed)
            found |= perplexity_measure(f"{name}_perplexity", scores, seed)
            found |= _talk(name, seen)
        found |= {"forget_el_10": self._likelihood(seen), "forget_k_extractable": self._extractable(seen)}
        found |= self._preference(seen)
        return {name: skipped(name, "no retain set given") for name in self.rows if name.startswith("retain")} | found

    def _sets(self) -> dict[str, Sequence[Encoded]]:
        return {"forget": self.forget, **({"retain": self.retain} if self.retain else {})}

    def _prefixes(self, scores: Scores) -> Prompts:
        """Every prefix of an answer after which the model errs, to be continued to the answer's end."""
        prompts, new = [], []
        for example, hits in zip(self.forget, scores.hits, strict=True):
            start, T = int(np.flatnonzero(example.loss_mask)[0]), min(len(hits), EL_TOKENS)
            for i in extraction.erring(hits[:T]) if T > EL_N else ():
                prompts.append(example.tokens[: start + i].tolist())
                new.append(T - i)
        return Prompts(prompts, new, stop=False)

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

    def _preference(self, seen: Seen) -> Result:
        found: Result = {}
        for wording in conflict.WORDINGS:
            key = f"forget_conflict_{wording}"
            if isinstance(self.pairs, str):
                found[key] = skipped(key, self.pairs)
                continue
            true, false = np.split(seen.scores[wording].nll, 2)
            found[key] = measured(key, conflict.wins(true, false), seed=seen.run.seed)
        return found


def memorisation_suite(
    tokenizer: Any,
    *,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded] = (),
    new_tokens: int = 64,
    max_length: int,
) -> Memorisation:
    """The suite over encoded records; statements that contradict come from their `perturbed_answer`.

    Errors:
        ValueError: an empty forget set.
    """
    if not forget:
        raise ValueError("the forget set is empty; pass the encoded examples that were to be forgotten")
    pairs = _pairs(forget, tokenizer, max_length)
    return Memorisation(forget, retain, pairs, new_tokens, tokenizer.bos_token_id, max_length)


def _pairs(forget: Sequence[Encoded], tokenizer: Any, max_length: int) -> dict[str, list[Encoded]] | str:
    records = [example.record for example in forget]
    false = [conflict.first_false(record.raw) for record in records]
    lacking = [record for record, text in zip(records, false, strict=True) if text is None]
    if lacking:
        return f'{len(lacking)} of {len(records)} records have no "perturbed_answer" (first: {lacking[0].where})'
    statements = [record.completion for record in records] + false
    rows = {w: [{"text": conflict.worded(text, w)} for text in statements] for w in conflict.WORDINGS}
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


def _talk(name: str, seen: Seen) -> Result:
    """Distinct word pairs and repetition of what was written after the prompts of a set."""
    keys = (f"{name}_distinct_2", f"{name}_repetition")
    if seen.written is None:
        return {key: skipped(key, NO_GENERATION) for key in keys}
    if name not in seen.written:
        return {key: skipped(key, "some texts have no prompt to generate from") for key in keys}
    words = [text.split() for text in decoded(seen.written[name], seen.run.tokenizer)]
    seed, empty = seen.run.seed, {"empty": sum(not text for text in words)}
    return {
        keys[0]: measured(keys[0], diversity.distinct_n(words, GRAMS), seed=seed, **empty),
        keys[1]: measured(keys[1], diversity.repetition(words), seed=seed, **empty),
    }


def _whole(examples: Sequence[Encoded]) -> bool:
    """Whether the loss tokens of every example are one run, with something before it."""
    places = [np.flatnonzero(example.loss_mask) for example in examples]
    return all(at[0] > 0 and at[-1] - at[0] == len(at) - 1 for at in places)
