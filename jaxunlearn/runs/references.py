"""What the model said before unlearning, for every record of a run, computed once and kept on the host."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxunlearn.data import Counterfactuals, Encoded, PairStep, collate, counterfactuals, filled, shapes_of
from jaxunlearn.methods import Method
from jaxunlearn.objectives import ActivationMatch, reference
from jaxunlearn.objectives.generic import alpha_for, generic, true_nll
from jaxunlearn.runs.alternatives import Alternatives
from jaxunlearn.sharding import on_host, shard_rows
from jaxunlearn.types import Model, Params, Reference, TokenBatch, TopK, UnlearnBatch


class Stored(NamedTuple):
    """References by record, and what they say about where to stop.

    Attributes:
        forget: parts of `Reference` indexed by forget record.
        retain: parts indexed by retain record.
        covered: share of each forget record's loss tokens that have a counterfactual answer; None when not computed.
        unseen_nll: NLL of the forget answers under the counterfactual answers q, in nats per loss token: how surprising
            they are where the model is asked about entities that it has never heard of, and where an ascent should
            stop. The mean over substitutes is taken before the logarithm: single substitutes mislead a model into
            guesses that it is sure of. None without counterfactuals.
        alternatives: other answers by record, where the method asks for some.
        corrupted: whether the counterfactual prompts were the corrupted ones.
        alpha: how far the counterfactual answers were pushed away from those about the entity (`objectives.generic`).
    """

    forget: Reference
    retain: Reference
    covered: np.ndarray | None
    unseen_nll: float | None
    alternatives: Alternatives = Alternatives()
    corrupted: bool = False
    alpha: float = 0.0

    def plain(self) -> dict[str, Any]:
        """All but the other answers as dictionaries of arrays, which `runs.kept` can write."""
        return {
            "forget": _plain(self.forget),
            "retain": _plain(self.retain),
            "covered": self.covered,
            "unseen_nll": self.unseen_nll,
            "corrupted": self.corrupted,
            "alpha": self.alpha,
        }

    @classmethod
    def of(cls, plain: dict[str, Any], alternatives: Alternatives) -> "Stored":
        """From what `plain` gave."""
        halves = [
            Reference(**{name: TopK(**part) if isinstance(part, dict) else part for name, part in plain[half].items()})
            for half in ("forget", "retain")
        ]
        return cls(*halves, plain["covered"], plain["unseen_nll"], alternatives, plain["corrupted"], plain["alpha"])

    def complete(self, step: PairStep, mesh: Mesh | None = None) -> UnlearnBatch:
        """The step's batch with its references and its other answers, split over `mesh`.

        Rows that fill up carry no loss among the answers either. Each process makes the rows of its own devices.
        """
        (answers, refusals), batch = self.alternatives, step.on(mesh)
        shapes = [None if some is None else shapes_of(some) for some in (answers, refusals)]

        def of_forget(places: np.ndarray) -> tuple[Reference, TokenBatch | None]:
            rows = step.forget_rows
            other = None if answers is None else filled(answers, rows, step.real, shapes[0], places)
            return _take(self.forget, rows[places]), other

        def of_retain(places: np.ndarray) -> tuple[Reference, TokenBatch | None]:
            rows = step.retain_rows
            other = None if refusals is None else filled(refusals, rows, len(rows), shapes[1], places)
            return _take(self.retain, rows[places]), other

        forget, alternative = shard_rows(of_forget, len(step.forget_rows), mesh)
        retain, refused = Reference(), None
        if batch.retain is not None:
            retain, refused = shard_rows(of_retain, len(step.retain_rows), mesh)
        reference = Reference(*(f if r is None else r for f, r in zip(forget, retain, strict=True)))
        return batch._replace(reference=reference, alternative=alternative, retain_alternative=refused)


def _plain(reference: Reference) -> dict[str, Any]:
    parts = reference._asdict().items()
    return {name: part._asdict() if isinstance(part, TopK) else part for name, part in parts}


def _take(stored: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda x: x[rows], stored)


def store(
    method: Method,
    model: Model,
    params: Params,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    *,
    prompts: Counterfactuals | None,
    alternatives: Alternatives | None = None,
    top_k: int = 64,
    alpha: float | None = None,
    unseen_nll: float | None = None,
    corrupted: Counterfactuals | None = None,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    advance: Callable[[int], None] | None = None,
) -> Stored:
    """Compute the references that `method` reads (and the unseen NLL, when counterfactual prompts are given).

    Args:
        method: `method.needs` says which parts.
        model: pure functions.
        params: of the model before unlearning.
        forget, retain: all records of the run.
        prompts: counterfactual forget prompts, or None.
        alternatives: other answers, kept with the references.
        top_k: classes kept per place.
        alpha: how far counterfactual answers are pushed away from those about the entity (`objectives.generic`);
            default as far as `unseen_nll` asks, else not at all.
        unseen_nll: what the forget answers should lose at least under the counterfactual ones, in nats per token: the
            loss of comparable text that the model never saw.
        corrupted: what is asked instead of `prompts` where those leave the answers less surprising than that.
        batch_size: records a device call (forget records count K times under substitution).
        mesh: where batches are put.
        advance: called with the number of records done.
    """

    def on_rows(what: tuple, records: Sequence[Encoded], size: int, asked: Callable) -> Any:
        f, *fixed = what  # static beside the model, so that the next request finds the program compiled
        jitted = jax.jit(f, static_argnums=range(len(fixed) + 1))
        return _by_rows(partial(jitted, *fixed, model, params), asked, len(records), size, mesh, advance)

    needs, alternatives = method.needs, alternatives or Alternatives()
    parts = {
        "forget_nll": ((reference.sequence_nll,), forget),
        "alternative_nll": ((reference.sequence_nll,), alternatives.forget),
        "forget_top": ((_top, reference.top_with_target, top_k), forget),
        "retain_top": ((_top, reference.top, top_k), retain),
        "retain_top_all": ((_top, reference.top_all, top_k), retain),
        "retain_hidden": ((_hidden, _layer_of(method)), retain),
    }
    found = {
        name: on_rows(what, records, batch_size, _collating(records))
        for name, (what, records) in parts.items()
        if name in needs
    }
    of_retain = Reference(**{name: part for name, part in found.items() if name.startswith("retain")})
    of_forget = Reference(**{name: part for name, part in found.items() if not name.startswith("retain")})
    answers = unseen = covered = None
    used = False
    if prompts is not None:
        collating = _collating(forget)

        def answers_to(prompts: Counterfactuals) -> TopK:
            def asked(rows: np.ndarray) -> tuple[np.ndarray, ...]:
                (batch,) = collating(rows)
                targets = np.take_along_axis(batch.tokens, batch.positions, axis=1)
                return prompts.tokens[rows], prompts.places[rows], targets

            return on_rows((_top, reference.counterfactual_top, top_k), forget, max(1, batch_size // 4), asked)

        answers = answers_to(prompts)
        loss = true_nll(answers)
        low = loss is not None and unseen_nll is not None and loss < unseen_nll
        used = low and corrupted is not None
        if used:
            answers = answers_to(corrupted)
        if alpha or (low and alpha is None):

            def at_answers(rows: np.ndarray) -> tuple[TokenBatch, np.ndarray]:
                return *collating(rows), answers.ids[rows]

            own = on_rows((reference.log_probs_at,), forget, batch_size, at_answers)
            alpha = alpha_for(answers, own, unseen_nll) if alpha is None else alpha
            answers = generic(answers, own, alpha) if alpha else answers
        covered, unseen = prompts.covered, true_nll(answers)
    if "counterfactual_top" in needs:
        of_forget = of_forget._replace(counterfactual_top=answers)
    return Stored(of_forget, of_retain, covered, unseen, alternatives, used, alpha or 0.0)


def asked_of(method: Method, forget: Sequence, retain: Sequence, alternatives: Alternatives) -> int:
    """How many records the model is asked about for what `method` needs, counterfactual prompts apart."""
    sets = {"forget": forget, "alternative": alternatives.forget, "retain": retain}
    return sum(len(sets.get(name.partition("_")[0]) or ()) for name in method.needs)


def substitute(
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    tokenizer: Any,
    *,
    k: int,
    seed: int,
    max_length: int,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Counterfactuals:
    """Counterfactual prompts of the forget records with names that no text of the run holds, or `names` by entity."""
    return counterfactuals(
        forget,
        tokenizer,
        k=k,
        seed=seed,
        names=names,
        avoid=[one.text for one in retain],
        places=shapes_of(forget)[1],
        max_length=max_length,
    )


def _collating(encoded: Sequence[Encoded]) -> Callable[[np.ndarray], tuple[TokenBatch]]:
    """From row numbers to a batch of these records, in the shape of all."""
    length, places = shapes_of(encoded)
    return lambda rows: (collate([encoded[row] for row in rows], length=length, places=places),)


def _top(f: Callable, k: int, model: Model, params: Params, *data: Any) -> TopK:
    return f(model, params, *data, k)


def _hidden(layer: int | None, model: Model, params: Params, batch: TokenBatch) -> Array:
    return reference.hidden(model, params, batch, layer)


def _layer_of(method: Method) -> int | None:
    """After how many layers the method wants its hidden states."""
    return next((term.layer for _, term in method.objective.terms if isinstance(term, ActivationMatch)), None)


def _by_rows(
    call: Callable, make: Callable[[np.ndarray], tuple], n: int, size: int, mesh: Mesh | None, advance: Any
) -> Any:
    """`call(*make(rows))` over chunks of `n` rows, all of one shape, on the host."""
    size = min(size, n)
    parts = []
    for start in range(0, n, size):
        # The last chunk is filled with repeats, so that every chunk has the compiled shape.
        rows = np.minimum(np.arange(start, start + size), n - 1)
        out = on_host(call(*shard_rows(lambda places, rows=rows: make(rows[places]), size, mesh)))
        real = min(size, n - start)
        parts.append(jax.tree.map(lambda x, real=real: x[:real], out))
        if advance is not None:
            advance(real)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
