"""The multiple-choice suite: accuracy on questions in the schema of MMLU and WMDP, in all and by task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.multiple_choice import Choices, by_task, choice_probability, pick
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.protocol import Seen
from jaxunlearn.evals.result import Result, measured
from jaxunlearn.evals.score import Scores

CHOICE_METRICS: dict[str, Metric] = {
    "choice_accuracy": Metric(
        "Multiple choice, accuracy", "utility", "", "neither", "Share of questions whose right answer looks likeliest."
    ),
    "choice_probability": Metric(
        "Multiple choice, probability", "utility", "", "neither", "Share of probability on the right answer offered."
    ),
}
"""Neither direction is better: on general knowledge accuracy is to be kept, on what was to go it is to fall."""


@dataclass(frozen=True)
class Choice:
    """Accuracy over `choices`."""

    choices: Choices
    name: ClassVar[str] = "choice"
    rows: ClassVar[Mapping[str, Metric]] = CHOICE_METRICS

    def texts(self) -> dict[str, Sequence[Encoded]]:
        return {"choices": self.choices.encoded}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        return {}

    def measure(self, seen: Seen) -> Result:
        nll = seen.scores["choices"].nll
        _, counts, answers, tasks, cut = self.choices
        picked = pick(nll, counts)
        share = choice_probability(nll, counts, answers)
        right = np.where(np.isfinite(share), picked == np.array(answers), np.nan)
        seed = seen.run.seed
        return {
            "choice_accuracy": measured(
                "choice_accuracy",
                right,
                seed=seed,
                by_task=by_task(right, tasks),
                picked_by_index={str(i): int(p) for i, p in enumerate(picked)},
                questions_cut=cut,
            ),
            "choice_probability": measured("choice_probability", share, seed=seed, by_task=by_task(share, tasks)),
        }
