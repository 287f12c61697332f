"""The privacy suite: membership attacks on the forget set, with a holdout of the same kind as non-members."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxunlearn.data import Encoded
from jaxunlearn.evals.catalogue import CORE, Metric
from jaxunlearn.evals.comparison import attacks
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.protocol import Seen
from jaxunlearn.evals.result import Result
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.single import Part


@dataclass(frozen=True)
class Privacy:
    """LOSS, Min-K%, Min-K%++ and ZLib attacks; see `evals.privacy`."""

    forget: Sequence[Encoded]
    holdout: Sequence[Encoded]
    name: ClassVar[str] = "privacy"
    rows: ClassVar[Mapping[str, Metric]] = {name: row for name, row in CORE.items() if row.group == "privacy"}

    def texts(self) -> dict[str, Sequence[Encoded]]:
        return {"forget": self.forget, "holdout": self.holdout}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        return {}

    def measure(self, seen: Seen) -> Result:
        part = Part("forget", self.forget, seen.scores["forget"], "not asked for", None)
        return attacks(part, seen.scores["holdout"], self.holdout, seen.run.seed)
