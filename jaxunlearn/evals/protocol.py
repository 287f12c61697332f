"""What a suite is: it names its texts and prompts, and makes its metrics of what the model said.

A suite never touches the model. It says which texts are to be scored and, once they are, which prompts are to be
continued; the runner does both for all suites together, and hands back scores and continuations under the suite's own
names. So a text or prompt that two suites share costs once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh

from jaxunlearn.data import Encoded
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.prompts import Prompts
from jaxunlearn.evals.result import Result
from jaxunlearn.evals.score import Scores
from jaxunlearn.types import Model, Params

NO_GENERATION = "generation was not asked for"
NO_RETRAINED = "no retrained model given"


class Run(NamedTuple):
    """The model under test and what it is compared with.

    Attributes:
        model, params, tokenizer: the model.
        reference: (model, params) retrained without the forget set, or None.
        reference_result: what these suites measured of the retrained model, or None.
        seed: of the bootstrap intervals.
        batch_size: examples a device call.
        mesh: where batches are put.
    """

    model: Model
    params: Params
    tokenizer: Any
    reference: tuple[Model, Params] | None = None
    reference_result: Result | None = None
    seed: int = 0
    batch_size: int = 32
    mesh: Mesh | None = None


class Seen(NamedTuple):
    """What the model said to one suite.

    Attributes:
        scores: of its texts, by the suite's names.
        written: continuations of its prompts, as token ids, by the suite's names; None without generation.
        run: the model.
    """

    scores: Mapping[str, Scores]
    written: Mapping[str, list[list[int]]] | None
    run: Run


class Suite(Protocol):
    """A family of metrics over given data.

    Attributes:
        name: as `--suite` takes it, with the source behind it where a suite is one of several sources.
        rows: the metrics it measures.
    """

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> Mapping[str, Metric]: ...

    def texts(self) -> dict[str, Sequence[Encoded]]:
        """Sets of texts to score, by name."""
        ...

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        """Sets of prompts to continue, by name; may depend on the scores."""
        ...

    def measure(self, seen: Seen) -> Result:
        """The measures; the runner fills in what is left out."""
        ...
