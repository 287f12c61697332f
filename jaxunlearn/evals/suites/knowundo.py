"""KnowUnDo's suite: unlearn success, retention success and perplexity, on the validation halves as published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxunlearn.data import Encoded
from jaxunlearn.evals import knowundo
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.perplexity import example_perplexity, perplexity, perplexity_interval
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.protocol import Seen
from jaxunlearn.evals.result import Measure, Result, measured
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.single import where_finite

KNOWUNDO_METRICS: dict[str, Metric] = {
    "knowundo_unlearn_success": Metric(
        "Unlearn success", "forget", "%", "better", "Share of the answers' tokens the model would no longer write."
    ),
    "knowundo_unlearn_perplexity": Metric(
        "Perplexity, unlearn", "forget", "", "better", "Equally likely tokens the model hesitates between."
    ),
    "knowundo_retention_success": Metric(
        "Retention success", "retain", "%", "better", "Share of the answers' tokens the model still writes."
    ),
    "knowundo_retention_perplexity": Metric(
        "Perplexity, retention", "retain", "", "worse", "Equally likely tokens the model hesitates between."
    ),
}


@dataclass(frozen=True)
class KnowUnDo:
    """KnowUnDo's metrics over encoded `unlearn` and `retention` answers."""

    unlearn: Sequence[Encoded]
    retention: Sequence[Encoded]
    name: ClassVar[str] = "knowundo"
    rows: ClassVar[Mapping[str, Metric]] = KNOWUNDO_METRICS

    def texts(self) -> dict[str, Sequence[Encoded]]:
        return {"unlearn": self.unlearn, "retention": self.retention}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        return {}

    def measure(self, seen: Seen) -> Result:
        forms = {"unlearn": knowundo.unlearn_success, "retention": knowundo.retention_success}
        found: Result = {}
        for part, form in forms.items():
            scores, key = seen.scores[part], f"knowundo_{part}_success"
            found[key] = where_finite(key, form(scores.hits), scores.nll, seen.run.seed)
            found |= perplexity_measure(f"knowundo_{part}_perplexity", scores, seen.run.seed)
        return found


def perplexity_measure(name: str, scores: Scores, seed: int) -> dict[str, Measure]:
    """Perplexity of a set, that of each example beside it."""
    nll, tokens = scores.nll, scores.tokens
    interval = list(perplexity_interval(nll, tokens, seed=seed))
    value = perplexity(nll, tokens)
    return {name: measured(name, example_perplexity(nll), aggregate=value, interval=interval)}
