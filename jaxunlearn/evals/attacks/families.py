"""The stress tests as families: each takes a target and doses and gives its measures, or the reason why it cannot."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxunlearn.data import Encoded, Record
from jaxunlearn.evals.attacks import documents
from jaxunlearn.evals.attacks.audit import audit, non_members_needed
from jaxunlearn.evals.attacks.canaries import canary_exposures, exposure_measure
from jaxunlearn.evals.attacks.membership import ATTACKS, Attacker, membership
from jaxunlearn.evals.attacks.probes import entities, linear_probe, logit_lens
from jaxunlearn.evals.attacks.prompts import paraphrases, prefixed, returned
from jaxunlearn.evals.attacks.quantisation import quantisation
from jaxunlearn.evals.attacks.relearning import relearning
from jaxunlearn.evals.attacks.target import Doses, Target
from jaxunlearn.evals.protocol import Run
from jaxunlearn.evals.result import Measure, Result, by_index, measured, skipped
from jaxunlearn.evals.suites.conflict import CONFLICT_METRICS, Conflict, statements
from jaxunlearn.evals.suites.extraction import EXTRACTION_METRICS, Extraction
from jaxunlearn.evals.suites.runner import run_suites
from jaxunlearn.models import generate

NO_HOLDOUT = "no holdout set given"
THE_REFERENCE = "this is the reference model itself"


def _membership(target: Target, doses: Doses) -> Result | str:
    if not target.holdout:
        return NO_HOLDOUT
    attacker = Attacker(
        reference=None if target.is_reference else target.reference,
        max_length=target.max_length,
        begin=target.tokenizer.bos_token_id,
        keep=target.tokenizer.all_special_ids,
        at_once=doses.at_once,
        seed=doses.seed,
    )
    found = membership(target.model, target.params, target.forget, target.holdout, attacker=attacker, **target.options)
    if target.is_reference:
        found["forget_reference_auc"] = skipped("forget_reference_auc", THE_REFERENCE)
    return found


def _extraction(target: Target, doses: Doses) -> Result:
    suite = Extraction(target.forget, target.tokenizer.bos_token_id)
    return run_suites([suite], _run(target, doses), generate=generate, max_length=target.max_length)


def _conflict(target: Target, doses: Doses) -> Result:
    suite = Conflict(statements(target.forget, target.tokenizer, target.max_length))
    return run_suites([suite], _run(target, doses))


def _run(target: Target, doses: Doses) -> Run:
    return Run(target.model, target.params, target.tokenizer, seed=doses.seed, **target.options)


def _document(target: Target, doses: Doses) -> Measure | str:
    forget, retain, holdout = target.documents or (target.forget, target.retain, target.holdout)
    if not retain or not holdout:
        return "an auditor needs documents known to be learned (retain) and documents known not to be (holdout)"
    groups = entities(retain), entities(holdout)
    folds = min(5, *(len(set(side)) for side in groups))
    if folds < 2:
        return "an auditor needs retain and holdout documents about at least two entities each"
    rows = _features(target, doses, [*forget, *retain, *holdout], len(forget))
    suspects, members, others = np.split(rows, [len(forget), len(forget) + len(retain)])
    found = audit(members, others, suspects, groups=groups, classifier=doses.classifier, folds=folds, seed=doses.seed)
    return measured(
        "forget_document_auc",
        np.array([one.probability for one in found.suspects]),
        aggregate=found.suspect_auc,
        interval=list(found.suspect_interval),
        p_value_by_index=by_index(np.array([one.p_value for one in found.suspects])),
        p_interval_by_index={str(i): list(one.interval) for i, one in enumerate(found.suspects)},
        verdict_by_index={str(i): one.verdict for i, one in enumerate(found.suspects)},
        never_seen={"documents": len(others), "needed": non_members_needed()},
        auditor_auc=found.auc,
        auditor_interval=list(found.interval),
    )


def _features(target: Target, doses: Doses, texts: Sequence[Encoded], suspects: int) -> np.ndarray:
    """A row for each document; the auditor learns from all but the first `suspects` of them."""
    context = min(doses.context, target.max_length)
    read = partial(documents.read_documents, documents=texts, context=context, stride=context - 1, **target.options)
    own = read(target.model, target.params)
    norms = [one.log_probs for one in read(*target.general)] if target.general else documents.log_frequencies(own, own)
    values = documents.normalised(own, doses.normalisation, norms)
    if doses.features == "histogram":
        return documents.histogram_features(values, values[suspects:])
    return documents.aggregate_features(values)


def _relearning(target: Target, doses: Doses) -> Measure | str:
    if target.is_reference:
        return THE_REFERENCE
    if target.reference is None:
        return "no retrained model given to compare the speed with"
    found = relearning(
        target.model,
        target.params,
        target.forget,
        reference=target.reference,
        share=doses.relearn_share,
        epochs=doses.relearn_epochs,
        learning_rate=doses.relearn_rate,
        metric=doses.metric,
        seed=doses.seed,
        mesh=target.options.get("mesh"),
        score_batch=target.options.get("batch_size", 32),
    )
    return measured(
        "relearning_robustness",
        found.unlearned[-1],
        aggregate=found.robustness,
        interval=list(found.interval),
        steps=found.steps.tolist(),
        curve=found.curve.tolist(),
        unlearned=found.unlearned.mean(axis=1).tolist(),
        retrained=found.retrained.mean(axis=1).tolist(),
        measured=found.measured.tolist(),
    )


def _quantisation(target: Target, doses: Doses) -> Result:
    measures = {}
    for bits, group in ((8, None), (4, doses.group)):
        name = f"quantisation_int{bits}_robustness"
        found = quantisation(
            target.model,
            target.params,
            target.forget,
            bits=bits,
            group=group,
            metric=doses.metric,
            seed=doses.seed,
            **target.options,
        )
        before, after = float(found.before.mean()), float(found.after.mean())
        extra = {"interval": list(found.interval), "before": before, "after": after, "group": group}
        measures[name] = measured(name, found.after, aggregate=found.robustness, **extra)
    return measures


def _returned(name: str, ways: Callable[[Sequence[Encoded]], list[list[Record]]], target: Target) -> Measure | str:
    others = ways(target.forget)
    if not any(others):
        return "no forget record has " + ("a paraphrased_question" if name.startswith("para") else "a prompt")
    found = returned(
        target.model,
        target.params,
        target.forget,
        others,
        target.tokenizer,
        max_length=target.max_length,
        template=target.template,
        **target.options,
    )
    best = float(np.nanmax(found.ways, axis=1).mean())
    extra = {
        "taught": float(found.taught.mean()),
        "best_way": best,
        "asked": found.asked.tolist(),
        "too_long": found.too_long,
    }
    return measured(name, found.returned, **extra)


def _paraphrase(target: Target, doses: Doses) -> Measure | str:
    return _returned("paraphrase_return", paraphrases, target)


def _prefix(target: Target, doses: Doses) -> Measure | str:
    return _returned("prefix_return", prefixed, target)


def _lens(target: Target, doses: Doses) -> Measure:
    found = logit_lens(target.model, target.params, target.forget, **target.options)
    by_layer = dict(zip(map(str, found.layers), found.memorised.mean(axis=1).tolist(), strict=True))
    best = found.layers[found.best]
    return measured("logit_lens_memorisation", found.memorised[found.best], by_layer=by_layer, layer=best)


def _probe(target: Target, doses: Doses) -> Measure | str:
    folds = min(5, *(len(set(entities(side))) for side in (target.forget, target.holdout)))
    if folds < 2:
        return (
            "a probe needs forget and holdout texts about at least two entities each" if target.holdout else NO_HOLDOUT
        )
    found = linear_probe(
        target.model, target.params, target.forget, target.holdout, folds=folds, seed=doses.seed, **target.options
    )
    by_layer = dict(zip(map(str, found.layers), found.auc.tolist(), strict=True))
    extra = {"interval": list(found.intervals[found.best]), "by_layer": by_layer, "layer": found.layers[found.best]}
    return measured("probe_auc", np.zeros(0), aggregate=float(found.auc[found.best]), **extra)


def _canaries(target: Target, doses: Doses) -> Measure | str:
    if not target.canaries:
        return "no key of canaries given"
    found = canary_exposures(
        target.model,
        target.params,
        target.canaries,
        target.tokenizer,
        max_length=target.max_length,
        candidates=doses.candidates,
        seed=doses.seed,
        **target.options,
    )
    return exposure_measure(target.canaries, found)


class Family(NamedTuple):
    """Stress tests that run together.

    Attributes:
        metrics: what they measure.
        run: `(target, doses)` to the measures; a string is the reason why there are none.
        needs: parts of the target without which there are none.
    """

    metrics: tuple[str, ...]
    run: Callable[[Target, Doses], Result | Measure | str]
    needs: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "membership": Family(tuple(ATTACKS), _membership, ("holdout",)),
    "document": Family(("forget_document_auc",), _document, ("retain", "holdout")),
    "canaries": Family(("canary_exposure",), _canaries, ("canaries",)),
    "extraction": Family(tuple(EXTRACTION_METRICS), _extraction),
    "conflict": Family(tuple(CONFLICT_METRICS), _conflict),
    "paraphrase": Family(("paraphrase_return",), _paraphrase),
    "prefix": Family(("prefix_return",), _prefix),
    "lens": Family(("logit_lens_memorisation",), _lens),
    "probe": Family(("probe_auc",), _probe),
    "quantisation": Family(("quantisation_int8_robustness", "quantisation_int4_robustness"), _quantisation),
    "relearning": Family(("relearning_robustness",), _relearning, ("reference",)),
}
