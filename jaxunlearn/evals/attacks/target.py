"""What stress tests are run on, and how hard they press."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxunlearn.data import Encoded, Template
from jaxunlearn.data.canary_key import Canary
from jaxunlearn.evals.attacks.audit import Classifier
from jaxunlearn.evals.attacks.documents import Features, Normalisation
from jaxunlearn.evals.attacks.memorised import Measured
from jaxunlearn.types import Model, Params


@dataclass(frozen=True)
class Doses:
    """How hard each test presses.

    Attributes:
        relearn_share, relearn_epochs, relearn_rate: see `relearning`; the rate has no default that fits all models.
        metric: the measure of memorisation for relearning and quantisation.
        group: inputs that share a scale at 4 bits; None for all inputs of an output.
        candidates: most candidates a canary is ranked among.
        classifier, normalisation, features: of the document audit.
        context: tokens of a document's window.
        at_once: gradients in memory at once.
        seed: of all that is drawn.
    """

    relearn_share: float = 0.5
    relearn_epochs: int = 1
    relearn_rate: float = 2e-5
    metric: Measured = "probability"
    group: int | None = None
    candidates: int = 4096
    classifier: Classifier = "random_forest"
    normalisation: Normalisation = "ratio"
    features: Features = "aggregate"
    context: int = 128
    at_once: int = 1
    seed: int = 0


class Target(NamedTuple):
    """A model under test, and what there is to test it with.

    Attributes:
        model, params, tokenizer: the model.
        max_length: its context, tokens.
        forget, retain, holdout: encoded texts; the last two may be empty.
        documents: the same three as `forget`, `retain` and `holdout` before any cutting; None takes those.
        reference: (model, params) retrained without the forget set, or None.
        general: (model, params) of the same vocabulary that read none of the texts; the document audit relates
            probabilities to its own. None for token frequencies.
        is_reference: whether the model under test is that one itself.
        canaries: of a key, may be empty.
        template: how questions are written.
        options: `batch_size` and `mesh`.
    """

    model: Model
    params: Params
    tokenizer: Any
    max_length: int
    forget: Sequence[Encoded]
    retain: Sequence[Encoded] = ()
    holdout: Sequence[Encoded] = ()
    documents: tuple[Sequence[Encoded], Sequence[Encoded], Sequence[Encoded]] | None = None
    reference: tuple[Model, Params] | None = None
    general: tuple[Model, Params] | None = None
    is_reference: bool = False
    canaries: Sequence[Canary] = ()
    template: Template | None = None
    options: Mapping[str, Any] = MappingProxyType({})
