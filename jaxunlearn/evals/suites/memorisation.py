"""The memorisation suite: how much of what was to be forgotten still comes out, and whether the model still talks.

Over a forget set, a retain set, or both: likelihood and perplexity, exact memorisation and extraction strength
from the scoring pass; extraction likelihood EL_10 and k-extractability; distinct n-grams and repetition of what the
model writes; and which of two contradicting statements it prefers, where records bring wrong answers along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxunlearn.data import Encoded
from jaxunlearn.evals import diversity
from jaxunlearn.evals.catalogue import CORE, Metric
from jaxunlearn.evals.prompts import Prompts, answer_prompts, decoded
from jaxunlearn.evals.protocol import NO_GENERATION, Seen
from jaxunlearn.evals.result import Result, measured, skipped
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.single import Part, answers
from jaxunlearn.evals.suites.conflict import CONFLICT_METRICS, Conflict, statements
from jaxunlearn.evals.suites.extraction import EXTRACTION_METRICS, Extraction
from jaxunlearn.evals.suites.knowundo import perplexity_measure

GRAMS = 2
_DISTINCT = "Share of word pairs in what the model writes that are not repeats; low is gibberish."
_REPEATED = "Share of four-word sequences in what the model writes that stood there before; high is gibberish."
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
    **EXTRACTION_METRICS,
    "forget_distinct_2": Metric("Distinct word pairs, forget", "forget", "", "better", _DISTINCT),
    "forget_repetition": Metric("Repetition, forget", "forget", "", "worse", _REPEATED),
    **CONFLICT_METRICS,
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
        return {**self._sets(), **Conflict(self.pairs).texts()}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        found = answer_prompts(self._sets(), self.new_tokens, self.max_length)
        return found | (Extraction(self.forget, self.begin).prompts(scores) if self.forget else {})

    def measure(self, seen: Seen) -> Result:
        found: Result = {}
        for name, examples in self._sets().items():
            scores, seed = seen.scores[name], seen.run.seed
            found |= answers(Part(name, examples, scores, "not asked for", None), seed)
            found |= perplexity_measure(f"{name}_perplexity", scores, seed)
            found |= _talk(name, seen)
        if self.forget:
            found |= Extraction(self.forget, self.begin).measure(seen) | Conflict(self.pairs).measure(seen)
        return {name: skipped(name, f"no {name.split('_')[0]} set given") for name in self.rows} | found

    def _sets(self) -> dict[str, Sequence[Encoded]]:
        return {name: part for name, part in (("forget", self.forget), ("retain", self.retain)) if part}


def memorisation_suite(
    tokenizer: Any,
    *,
    forget: Sequence[Encoded] = (),
    retain: Sequence[Encoded] = (),
    new_tokens: int = 64,
    max_length: int,
) -> Memorisation:
    """The suite over encoded records; statements that contradict come from their `perturbed_answer`.

    Errors:
        ValueError: no records at all.
    """
    if not forget and not retain:
        raise ValueError("both sets are empty; pass the encoded examples that were to be forgotten")
    pairs = statements(forget, tokenizer, max_length) if forget else "no forget set given"
    return Memorisation(forget, retain, pairs, new_tokens, tokenizer.bos_token_id, max_length)


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
