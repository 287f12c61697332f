"""Evaluation inside a run: every so many steps on all devices, with stop rules, keeping the best checkpoint.

The same suites that judge a finished model look at the one being made. What is looked at follows from the rules: the
metrics they name, and no more than the families that measure these. The parameters of the best look so far are kept on
the devices, beside those that go on changing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxunlearn import data, evals, models
from jaxunlearn.data import Encoded
from jaxunlearn.evals import Result, Run, Suite
from jaxunlearn.evals.logs import read_result
from jaxunlearn.evals.stop import Rule, best, holds, of_first, parse_rule, resolve
from jaxunlearn.evals.suites import CHOICE_METRICS, KNOWUNDO_METRICS, MEMORISATION_METRICS, MUSE_METRICS, Sources
from jaxunlearn.evals.suites.memorisation import memorisation_suite
from jaxunlearn.evals.suites.tofu import tofu_suite
from jaxunlearn.runs.inputs import Reader
from jaxunlearn.runs.settings import Watching
from jaxunlearn.types import Model, Params

WRITTEN = ("rouge_l", "el_10", "distinct_2", "repetition", "verbmem", "knowmem")
_PUBLISHED = {"muse": MUSE_METRICS, "knowundo": KNOWUNDO_METRICS, "choice": CHOICE_METRICS}
_SHOWN = ("forget_nll", "retain_nll", "forget_exact_memorisation", "retain_exact_memorisation")


class Look(NamedTuple):
    """One evaluation: after how many steps, and what came out."""

    step: int
    result: Result


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


class Watch:
    """Looks at a model now and then, remembers the best parameters, and says when to stop.

    Args:
        every: steps between two looks.
        measure: `(params) -> Result`.
        goals, limits: resolved rules; see `evals.stop`.
        metrics: shown with each step that was looked at.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[Params], Result],
        goals: Sequence[Rule] = (),
        limits: Sequence[Rule] = (),
        metrics: Sequence[str] = _SHOWN,
    ):
        self.every, self.goals, self.limits, self.metrics = every, tuple(goals), tuple(limits), tuple(metrics)
        self.looks: list[Look] = []
        self._measure, self._params, self._kept = measure, None, None

    @property
    def kept(self) -> int | None:
        """Steps after which the best look was taken; None before any that holds the limits."""
        return self._kept

    def look(self, step: int, whole: Params, trained: Params) -> str | None:
        """Evaluates after `step` steps; returns why to stop ("goal" or "limit"), or None to go on.

        Args:
            step: steps done.
            whole: all parameters.
            trained: those that change, of which the best are kept.
        """
        result = self._measure(whole)
        self.looks.append(Look(step, result))
        found = best(self.goals, self.limits, [look.result for look in self.looks])
        if (self.goals or self.limits) and found == len(self.looks) - 1:
            self._kept, self._params = step, jax.tree.map(jnp.copy, trained)
        if not all(holds(limit, result) for limit in self.limits):
            return "limit"
        return "goal" if any(holds(goal, result) for goal in self.goals) else None

    def best_params(self, last: Params) -> Params:
        """The parameters of the best look; `last` where there are no rules to choose by."""
        return last if self._params is None else self._params

    def progress(self) -> dict[str, Any]:
        """All looks so far and which one is kept, as JSON has it: with `best_params` what `resume` goes on from."""
        return {"looks": [[look.step, look.result] for look in self.looks], "kept": self._kept}

    def resume(self, progress: dict[str, Any], best_params: Params | None) -> None:
        """Goes on after the looks of an earlier process."""
        self.looks = [Look(step, result) for step, result in progress["looks"]]
        self._kept, self._params = progress["kept"], best_params

    def facts(self) -> list[dict[str, Any]]:
        """The looks as numbers, for the record."""
        return [{"step": look.step, **self.numbers(look.result)} for look in self.looks]

    def numbers(self, result: Result) -> dict[str, float]:
        """The watched metrics of a result that have a value."""
        values = {name: result.get(name, {}).get("agg_value") for name in self.metrics}
        return {name: value for name, value in values.items() if value is not None}


def plan(
    settings: Watching,
    reads: Reader,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    holdout: Sequence[Encoded] | None,
) -> Plan | None:
    """What the settings ask for, checked and read before any weight is loaded; None if nothing is to be watched.

    Raises:
        ValueError: rules that cannot be read, or bounds without what they are taken from.
    """
    goals, limits = (tuple(map(parse_rule, texts)) for texts in (settings.stop_when, settings.keep_while))
    if settings.evaluate_every < 0:
        raise ValueError(f"--evaluate-every {settings.evaluate_every}: give a number of steps, or 0 for none")
    if not goals and not limits and not settings.evaluate_every:
        return None
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
    blind = next((c for c in conditions if c.metric.startswith("retain_") and not retain), None)
    if blind is not None:
        raise ValueError(f"stop rule {blind}: it is measured on retain records: give --retain FILE")
    metrics = tuple(dict.fromkeys(condition.metric for condition in conditions)) or _SHOWN
    cut = [part[: settings.evaluate_limit] for part in (forget, retain, holdout or ())]
    suites = _suites(metrics, settings, reads, *cut)
    unseen = _suites(metrics, settings, reads, cut[2], [], []) if "unseen" in bounds else None
    written = any(part in metric for metric in metrics for part in WRITTEN)
    return Plan(settings.evaluate_every or 1, suites, unseen, goals, limits, metrics, written, known)


def start(
    found: Plan,
    model: Model,
    params: Params,
    reads: Reader,
    *,
    seed: int,
    batch_size: int = 32,
    mesh: Mesh | None,
    keep: Callable[[str, Callable[[], Result]], Result] = lambda name, make: make(),
) -> Watch:
    """A watch whose bounds are numbers: the model before unlearning is measured where a rule asks for it.

    Args:
        keep: called for each of these measurements with a name for it, `keep(name, measure)`; may know the result.
    """

    def measure(suites: Sequence[Suite], model: Model, params: Params) -> Result:
        run = Run(model, params, reads.tokenizer, None, None, seed, batch_size, mesh)
        generate = models.generate if found.generate else None
        return evals.run_suites(suites, run, generate=generate, max_length=reads.max_length)

    known = dict(found.known)
    bounds = {condition.bound for rule in found.goals + found.limits for condition in rule}
    if "before" in bounds:
        known["before"] = keep("watch-before", lambda: measure(found.suites, model, params))
    if found.unseen is not None:
        known["unseen"] = keep("watch-unseen", lambda: measure(found.unseen, model, params))
    goals, limits = ([resolve(rule, known) for rule in rules] for rules in (found.goals, found.limits))
    return Watch(found.every, lambda weights: measure(found.suites, model, weights), goals, limits, found.metrics)


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
    left = [name for name in metrics if not any(name in rows for rows in _PUBLISHED.values())]
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
        if any(metric in rows for metric in metrics):
            sources = Sources(data=settings.evaluate_data, limit=settings.evaluate_limit, truncate=reads.text.truncate)
            suites += evals.build(name, sources, reads.tokenizer, **_text(reads))
    measured = {name for suite in suites for name in suite.rows}
    unknown = [name for name in metrics if name not in measured]
    if unknown:
        raise ValueError(f"{unknown[0]} is not measured inside a run; choose one of {', '.join(sorted(measured))}")
    return suites


def _text(reads: Reader) -> dict[str, Any]:
    template: data.Template = reads.text.template
    return {"template": template, "max_length": reads.max_length}
