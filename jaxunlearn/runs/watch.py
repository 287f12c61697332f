"""Evaluation inside a run: every so many steps on all devices, with stop rules, keeping the best checkpoint.

The same suites that judge a finished model look at the one being made (`watch_plan` says at what). The parameters of
the best look so far are kept on the devices, beside those that go on changing. The loops of unlearning and of training
ask a watch alike:

    begin       before the first step: a rule that is met already, or that nothing here can measure, is an error
    due, look   after a step
    settle      at the end: the steps after which the parameters to keep were taken

and put `progress` and `best_params` into their checkpoints, from which `resume` goes on with the same looks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.evals import Result, why_missing
from jaxunlearn.evals.stop import Rule, best, holds
from jaxunlearn.types import Params

SHOWN = ("forget_nll", "retain_nll", "forget_exact_memorisation", "retain_exact_memorisation")


class Look(NamedTuple):
    """One evaluation: after how many steps, and what came out."""

    step: int
    result: Result


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
        metrics: Sequence[str] = SHOWN,
    ):
        self.every, self.goals, self.limits, self.metrics = every, tuple(goals), tuple(limits), tuple(metrics)
        self.looks: list[Look] = []
        self._measure, self._params, self._kept = measure, None, None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Goals, then limits."""
        return (*self.goals, *self.limits)

    @property
    def kept(self) -> int | None:
        """Steps after which the best look was taken; None before any that holds the limits."""
        return self._kept

    def begin(self, whole: Params, trained: Params) -> None:
        """Looks at the model before the first step; arguments as of `look`.

        Raises:
            ValueError: a rule that ends the run at once, or on a metric that has no value here.
        """
        ended = self.look(0, whole, trained)
        for condition in (condition for rule in self.rules for condition in rule):
            reason = why_missing(self.looks[-1].result.get(condition.metric, {}))
            if reason is not None:
                raise ValueError(f"stop rule {condition}: it has no value here ({reason})")
        if ended == "goal":
            raise ValueError("the model meets --stop-when before the first step: by that rule there is nothing to do")
        if ended == "limit":
            raise ValueError("the model breaks --keep-while before the first step: loosen the rule")

    def due(self, step: int) -> bool:
        """Whether to look after that many steps."""
        return step % self.every == 0

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
        if self.rules and found == len(self.looks) - 1:
            self._kept, self._params = step, jax.tree.map(jnp.copy, trained)
        if not all(holds(limit, result) for limit in self.limits):
            return "limit"
        return "goal" if any(holds(goal, result) for goal in self.goals) else None

    def best_params(self, last: Params) -> Params:
        """The parameters of the best look; `last` where there are no rules to choose by."""
        return last if self._params is None else self._params

    def settle(self, steps: int) -> int:
        """After a run of `steps` steps: the steps after which the model to keep was there, those of the best look, or
        all where there are no rules to choose by.

        Raises:
            ValueError: when that is the model before the first step.
        """
        if not self.rules:
            return steps
        if not self._kept:
            raise ValueError(
                f"no look after any of {steps} steps was better than the model before the first one, so nothing is "
                "kept; take smaller steps, look more often (--evaluate-every), or loosen the rules"
            )
        return self._kept

    def progress(self) -> dict[str, Any]:
        """All looks so far and which one is kept, as JSON has it: with `best_params` what `resume` goes on from."""
        return {"looks": [[look.step, look.result] for look in self.looks], "kept": self._kept}

    def resume(self, progress: dict[str, Any], best_params: Params | None) -> None:
        """Goes on after the looks of an earlier process."""
        self.looks = [Look(step, result) for step, result in progress["looks"]]
        self._kept, self._params = progress["kept"], best_params

    def shown(self) -> dict[str, float]:
        """Numbers of the last look, for the history of the step."""
        return {f"watched_{name}": value for name, value in self._numbers(self.looks[-1].result).items()}

    def record(self, kept: int) -> dict[str, Any]:
        """Rules, the steps whose model was kept, and the looks as numbers, for the record of the run."""
        rules = {"goals": self.goals, "limits": self.limits}
        told = {name: [[str(condition) for condition in rule] for rule in found] for name, found in rules.items()}
        looks = [{"step": look.step, **self._numbers(look.result)} for look in self.looks]
        return {**told, "kept": kept, "looks": looks}

    def _numbers(self, result: Result) -> dict[str, float]:
        """The watched metrics of a result that have a value."""
        values = {name: result.get(name, {}).get("agg_value") for name in self.metrics}
        return {name: value for name, value in values.items() if value is not None}
