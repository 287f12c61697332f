"""The multiple-choice suite: accuracy on questions in the schema of MMLU and WMDP, in all and by task.

Of several sources each is a suite, with numbers of its own: accuracy on WMDP is to fall and that on MMLU to stay, and
one number for both would say nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals.catalogue import Metric, about
from jaxunlearn.evals.multiple_choice import Choices, by_task, choice_probability, pick
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.protocol import Seen
from jaxunlearn.evals.result import Result, measured
from jaxunlearn.evals.score import Scores

_ACCURACY = "Share of questions whose right answer looks likeliest."
_PROBABILITY = "Share of probability on the right answer offered."

CHOICE_METRICS: dict[str, Metric] = {
    "choice_accuracy": Metric("Multiple choice, accuracy", "utility", "", "neither", _ACCURACY, by_source=True),
    "choice_probability": Metric(
        "Multiple choice, probability", "utility", "", "neither", _PROBABILITY, by_source=True
    ),
}
"""Neither direction is better: on general knowledge accuracy is to be kept, on what was to go it is to fall."""


@dataclass(frozen=True)
class Choice:
    """Accuracy over `choices`.

    Attributes:
        choices: the questions.
        source: where they come from, where several sources are measured side by side: `choice_accuracy_mmlu`.
    """

    choices: Choices
    source: str | None = None

    @property
    def name(self) -> str:
        return self._of("choice")

    @property
    def rows(self) -> Mapping[str, Metric]:
        return {self._of(name): about(self._of(name)) for name in CHOICE_METRICS}

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
        accuracy, probability = map(self._of, CHOICE_METRICS)
        return {
            accuracy: measured(
                accuracy,
                right,
                seed=seed,
                by_task=by_task(right, tasks),
                picked_by_index={str(i): int(p) for i, p in enumerate(picked)},
                questions_cut=cut,
            ),
            probability: measured(probability, share, seed=seed, by_task=by_task(share, tasks)),
        }

    def _of(self, name: str) -> str:
        return name if self.source is None else f"{name}_{self.source}"
