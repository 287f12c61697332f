"""What a run looks at on its way, and by which rules it ends: settings read, checked and encoded before any weight.

What is looked at follows from the rules: the metrics they name, and no more than the families that measure these.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxunlearn import data, evals, models
from jaxunlearn.data import Encoded, layouts
from jaxunlearn.evals import Result, Run, Suite
from jaxunlearn.evals.catalogue import family
from jaxunlearn.evals.logs import read_result
from jaxunlearn.evals.stop import Rule, of_first, parse_rule, resolve
from jaxunlearn.evals.suites import CHOICE_METRICS, KNOWUNDO_METRICS, MEMORISATION_METRICS, MUSE_METRICS, Sources
from jaxunlearn.evals.suites.memorisation import memorisation_suite
from jaxunlearn.evals.suites.tofu import tofu_suite
from jaxunlearn.runs.flags import of_flag
from jaxunlearn.runs.inputs import Reader
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.runs.settings import Watching
from jaxunlearn.runs.watch import SHOWN, Watch
from jaxunlearn.types import Model, Params

WRITTEN = ("rouge_l", "el_10", "distinct_2", "repetition", "verbmem", "knowmem")
_PUBLISHED = {"muse": MUSE_METRICS, "knowundo": KNOWUNDO_METRICS, "choice": CHOICE_METRICS}


class Plan(NamedTuple):
    """What to look at and when to stop, read and encoded.

    Attributes:
        every: steps between two looks.
        suites: what is measured.
        unseen: the same suites on text the model never saw, or None.
        goals, limits: the rules, bounds from elsewhere still by name.
        metrics: those that the rules name, or the usual ones.
        generate: whether any of them needs text written.
        known: results that were read from files, by where they were measured.
    """

    every: int
    suites: Sequence[Suite]
    unseen: Sequence[Suite] | None
    goals: tuple[Rule, ...]
    limits: tuple[Rule, ...]
    metrics: tuple[str, ...]
    generate: bool
    known: dict[str, Result]


def plan(
    settings: Watching,
    reads: Reader,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    holdout: Sequence[Encoded] | None,
    *,
    steps: int,
) -> Plan | None:
    """What the settings ask for, checked and read before any weight is loaded; None if nothing is to be watched.

    Args:
        settings: the options.
        reads: tokenizer and longest sequence.
        forget, retain, holdout: records to look at, as far as there are any.
        steps: most steps of the run.

    Raises:
        ValueError: rules that cannot be read, bounds without what they are taken from, or no look before the end.
    """
    with of_flag("--stop-when"):
        goals = tuple(map(parse_rule, settings.stop_when))
    with of_flag("--keep-while"):
        limits = tuple(map(parse_rule, settings.keep_while))
    if settings.evaluate_every < 0:
        raise ValueError(f"--evaluate-every {settings.evaluate_every}: give a number of steps, or 0 for none")
    if not goals and not limits and not settings.evaluate_every:
        return None
    if settings.evaluate_every > steps:
        raise ValueError(
            f"--evaluate-every {settings.evaluate_every}: the run has {steps} steps, so nothing would be looked at; "
            f"give a number of at most {steps}"
        )
    if settings.evaluate_limit < 1:
        raise ValueError(f"--evaluate-limit {settings.evaluate_limit}: give a number of at least 1")
    conditions = [condition for rule in goals + limits for condition in rule]
    bounds = {condition.bound for condition in conditions}
    if "unseen" in bounds and not holdout:
        raise ValueError("a stop rule compares with unseen text: give --holdout FILE with records no model saw")
    if "retrained" in bounds and settings.reference_result is None:
        raise ValueError(
            "a stop rule compares with the retrained model: give --reference-result FILE, which `jaxunlearn evaluate "
            "--out` wrote"
        )
    known = {}
    if settings.reference_result is not None:
        known["retrained"] = of_first(read_result(settings.reference_result, "retrained"), settings.evaluate_limit)
        for rule in goals + limits:
            resolve(tuple(condition for condition in rule if condition.bound == "retrained"), known)
    for condition in conditions:
        part = condition.metric.partition("_")[0]
        if {"forget": forget, "retain": retain}.get(part, True) in (None, [], ()):
            raise ValueError(f"stop rule {condition}: it is measured on {part} records: give --{part} FILE")
    metrics = tuple(dict.fromkeys(condition.metric for condition in conditions)) or SHOWN
    cut = [part[: settings.evaluate_limit] for part in (forget, retain, holdout or ())]
    suites = _suites(metrics, settings, reads, *cut)
    unseen = _suites(metrics, settings, reads, cut[2], [], []) if "unseen" in bounds else None
    written = any(part in metric for metric in metrics for part in WRITTEN)
    return Plan(settings.evaluate_every or 1, suites, unseen, goals, limits, metrics, written, known)


def start(
    found: Plan | None,
    model: Model,
    params: Params,
    reads: Reader,
    *,
    seed: int,
    batch_size: int = 32,
    mesh: Mesh | None,
    keep: Callable[[str, Callable[[], Result]], Result],
    reporter: Reporter,
) -> Watch | None:
    """A watch whose bounds are numbers; None where nothing is to be watched.

    The model before the first step is measured where a rule asks for it.

    Args:
        keep: called for each of these measurements with a name for it, `keep(name, measure)`; may know the result.
        reporter: tells the rules.
    """
    if found is None:
        return None

    def measure(suites: Sequence[Suite], weights: Params) -> Result:
        run = Run(model, weights, reads.tokenizer, None, None, seed, batch_size, mesh)
        generate = models.generate if found.generate else None
        return evals.run_suites(suites, run, generate=generate, max_length=reads.max_length)

    known = dict(found.known)
    bounds = {condition.bound for rule in found.goals + found.limits for condition in rule}
    with reporter.stage("looking at the model before the first step", 1) as stage:
        if "before" in bounds:
            known["before"] = keep("watch-before", lambda: measure(found.suites, params))
        if found.unseen is not None:
            known["unseen"] = keep("watch-unseen", lambda: measure(found.unseen, params))
        stage.advance()
    goals, limits = ([resolve(rule, known) for rule in rules] for rules in (found.goals, found.limits))
    for rule in (*goals, *limits):
        reporter.say("rule: " + " and ".join(map(str, rule)))
    return Watch(found.every, lambda weights: measure(found.suites, weights), goals, limits, found.metrics)


def _suites(
    metrics: Sequence[str],
    settings: Watching,
    reads: Reader,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    holdout: Sequence[Encoded],
) -> list[Suite]:
    """The families that measure `metrics`, each over what it needs."""
    suites: list[Suite] = []
    left = [name for name in metrics if not any(family(name) in rows for rows in _PUBLISHED.values())]
    memorised = [name for name in left if name in MEMORISATION_METRICS]
    if any(name not in MEMORISATION_METRICS for name in left):
        sets = {"forget": forget, "retain": retain, "holdout": holdout}
        suites.append(tofu_suite(reads.tokenizer, **sets, **_text(reads), truncate=reads.text.truncate))
    if memorised:
        options = {"forget": forget, "retain": retain, "max_length": reads.max_length}
        suite = memorisation_suite(reads.tokenizer, **options)
        asked = any("conflict" in name for name in memorised)
        suites.append(suite if asked else dataclasses.replace(suite, pairs="not asked for"))
    for name, rows in _PUBLISHED.items():
        if any(family(metric) in rows for metric in metrics):
            given = [source for source in settings.evaluate_data if layouts.detect(source) in (name, None)]
            sources = Sources(data=given, limit=settings.evaluate_limit, truncate=reads.text.truncate)
            suites += evals.build(name, sources, reads.tokenizer, **_text(reads))
    measured = {name for suite in suites for name in suite.rows}
    unknown = [name for name in metrics if name not in measured]
    if unknown:
        raise ValueError(f"{unknown[0]} is not measured inside a run; choose one of {', '.join(sorted(measured))}")
    return suites


def _text(reads: Reader) -> dict[str, Any]:
    template: data.Template = reads.text.template
    return {"template": template, "max_length": reads.max_length}
