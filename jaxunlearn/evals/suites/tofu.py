"""TOFU's suite (Maini et al. 2024): forget, retain, real authors and world facts, with their other answers.

It is also what `evaluate` measures on any forget and retain set: what a set lacks (paraphrases, wrong answers, a
holdout, a retrained model) leaves its metrics out, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxunlearn.data import Encoded, Template
from jaxunlearn.evals.catalogue import CORE, Metric
from jaxunlearn.evals.comparison import attacks, divergence, quality, tug, utility
from jaxunlearn.evals.prompts import Prompts, answer_prompts
from jaxunlearn.evals.protocol import Seen
from jaxunlearn.evals.result import Result, skipped
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.single import Part, answers, generation, truth_ratio
from jaxunlearn.evals.variants import Variants, variants

SETS = ("forget", "retain", "authors", "world")


@dataclass(frozen=True)
class Tofu:
    """TOFU's metrics over the sets that are given; make it with `tofu_suite`.

    Attributes:
        sets: encoded examples of forget, retain, authors and world, as far as given.
        variants: their other answers, or in words why there are none.
        holdout: texts of the same kind that no model saw.
        new_tokens: length of generated answers, tokens.
        max_length: the model's context, tokens.
    """

    sets: dict[str, Sequence[Encoded]]
    variants: dict[str, Variants | str]
    holdout: Sequence[Encoded] = ()
    new_tokens: int = 64
    max_length: int | None = None
    name: ClassVar[str] = "tofu"
    rows: ClassVar[Mapping[str, Metric]] = CORE

    def texts(self) -> dict[str, Sequence[Encoded]]:
        others = {f"{name} variants": v.encoded for name, v in self.variants.items() if isinstance(v, Variants)}
        return {**self.sets, **others, **({"holdout": self.holdout} if self.holdout else {})}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        return answer_prompts(self.sets, self.new_tokens, self.max_length)

    def measure(self, seen: Seen) -> Result:
        run, found = seen.run, {}
        parts = {
            name: Part(name, examples, seen.scores[name], self.variants[name], seen.scores.get(f"{name} variants"))
            for name, examples in self.sets.items()
        }
        for name, part in parts.items():
            found |= answers(part, run.seed) | truth_ratio(part, run.seed)
            found |= generation(part, None if seen.written is None else seen.written.get(name, ""), run)
        options = {"batch_size": run.batch_size, "mesh": run.mesh}
        for name in ("forget", "retain"):
            if name in parts:
                found |= divergence(parts[name], run, options)
        if "forget" in parts:
            empty = Scores([], [], [], [])
            found |= attacks(parts["forget"], seen.scores.get("holdout", empty), self.holdout, run.seed)
            found |= quality(found["forget_truth_ratio"], parts["forget"].variants, run, options)
        found |= utility(found, [name for name in SETS if name not in parts], run.seed)
        missing = {name: f"no {name.split('_')[0]} set given" for name in CORE if not name.startswith("tug")}
        found = {name: skipped(name, reason) for name, reason in missing.items()} | found
        return found | tug(found, run.seed)


def tofu_suite(
    tokenizer: Any,
    *,
    holdout: Sequence[Encoded] = (),
    new_tokens: int = 64,
    template: Template | None = None,
    max_length: int | None = None,
    truncate: bool = False,
    **sets: Sequence[Encoded] | None,
) -> Tofu:
    """The suite over `forget`, `retain`, `authors` and `world`; their variants come from the records' raw fields.

    Errors:
        ValueError: a variant longer than `max_length`, unless `truncate` cuts it there.
    """
    given = {name: examples for name, examples in sets.items() if examples}
    how: dict[str, Any] = {"template": template, "max_length": max_length, "truncate": truncate}
    other = {
        name: variants(examples, tokenizer, stand_in=name in ("authors", "world"), **how)
        for name, examples in given.items()
    }
    return Tofu(given, other, holdout or (), new_tokens, max_length)
