r"""When has a model forgotten enough, and when too much? Stop rules over any metric.

A rule is a list of conditions `metric <= bound` or `metric >= bound`, all of which must hold. The bound is a number,
or a name for the same metric measured elsewhere: `retrained` (a model that never saw the forget set), `before` (the
model before unlearning), `unseen` (the model before unlearning, on holdout text it never saw). Two published rules have
names of their own:

* `jang`: EL_10 and memorisation accuracy of the forget set are at or under those of unseen text (Jang et al. 2023);
* `muse`: KnowMem on forget is at or under the retrained model's (Shi et al. 2024).

A *goal* ends a run when it is reached, a *limit* (the perplexity of what is to be kept, say) when it no longer holds.
Which checkpoint is best follows: among those that hold the limits, the one that misses the goals by least,

    miss(rule) = sum_c max(0, +-(value_c - bound_c)) / max(|bound_c|, 10^-6),       miss = min over goals,

and of equal ones the earliest, as every further step costs what was to be kept.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.evals.catalogue import METRICS, family
from jaxunlearn.evals.result import Measure, Result, why_missing

ELSEWHERE = ("retrained", "before", "unseen")
NAMED = {
    "jang": "forget_el_10<=unseen, forget_exact_memorisation<=unseen",
    "muse": "muse_knowmem_forget<=retrained",
}
_CONDITION = re.compile(r"^\s*(\w+)\s*(<=|>=)\s*(\S+)\s*$")


class Condition(NamedTuple):
    """`metric <= bound` or `metric >= bound`; a bound from elsewhere is a name until it is resolved."""

    metric: str
    relation: str
    bound: float | str

    def __str__(self) -> str:
        bound = self.bound if isinstance(self.bound, str) else f"{self.bound:.6g}"
        return f"{self.metric} {self.relation} {bound}"


Rule = tuple[Condition, ...]


def parse_rule(text: str) -> Rule:
    """A rule from text: conditions joined by commas, or the name of a published rule.

    Errors:
        ValueError: a condition that cannot be read, or a metric or bound that does not exist.

    Example:
        >>> [str(condition) for condition in parse_rule("forget_nll >= 3.5, retain_nll<=before")]
        ['forget_nll >= 3.5', 'retain_nll <= before']
        >>> [str(condition) for condition in parse_rule("muse")]
        ['muse_knowmem_forget <= retrained']
    """
    return tuple(_condition(part, text) for part in NAMED.get(text.strip(), text).split(","))


def resolve(rule: Rule, known: Mapping[str, Result]) -> Rule:
    """The rule with numbers for the bounds that were names.

    Args:
        rule: of `parse_rule`.
        known: results by where they were measured: "retrained", "before", "unseen".

    Errors:
        ValueError: a bound whose model was not measured, or whose value is missing.

    Example:
        >>> rule = parse_rule("retain_nll <= before")
        >>> str(resolve(rule, {"before": {"retain_nll": {"agg_value": 1.5}}})[0])
        'retain_nll <= 1.5'
    """
    return tuple(
        condition._replace(bound=_value(condition, known)) if isinstance(condition.bound, str) else condition
        for condition in rule
    )


def of_first(result: Result, records: int) -> Result:
    """The result as if only the first so many records had been measured, as a look inside a run does.

    A bound taken from more records than the looks see would compare different questions. What is no mean of its values
    (a perplexity, an AUC) and was measured on more records has no value then, and says so.

    Example:
        >>> measure = {"agg_value": 2.5, "n": 2, "value_by_index": {"0": 1.0, "1": 4.0}}
        >>> of_first({"muse_knowmem_forget": measure}, 1)["muse_knowmem_forget"]["agg_value"]
        1.0
    """
    return {name: _of_first(measure, records) for name, measure in result.items()}


def _of_first(measure: Measure, records: int) -> Measure:
    columns = (measure.get("value_by_index") or {}, measure.get("tokens_by_index") or {})
    if why_missing(measure) is not None or all(int(index) < records for index in columns[0]):
        return measure
    rows = [(int(i), value, columns[1].get(i, 1.0)) for i, value in columns[0].items()]
    index, values, weights = (np.array(column) for column in zip(*rows, strict=True))
    seen = index < records
    if np.isclose(np.average(values, weights=weights), measure["agg_value"], rtol=1e-6) and seen.any():
        value = float(np.average(values[seen], weights=weights[seen]))
        return measure | {"agg_value": value, "n": int(seen.sum())}
    reason = (
        f"it was measured on {len(values)} records, and looks see {records}: give --evaluate-limit {index.max() + 1}"
    )
    return measure | {"agg_value": None, "skipped": reason}


def miss(rule: Rule, result: Result) -> float:
    """By how much a result misses a resolved rule: 0 where it holds, infinity where a value is missing.

    Example:
        >>> rule = parse_rule("forget_nll >= 4, retain_nll <= 1")
        >>> miss(rule, {"forget_nll": {"agg_value": 3.0}, "retain_nll": {"agg_value": 0.5}})
        0.25
    """
    return sum(_miss(condition, result) for condition in rule)


def holds(rule: Rule, result: Result) -> bool:
    """Whether every condition holds."""
    return miss(rule, result) == 0.0


def best(goals: Sequence[Rule], limits: Sequence[Rule], results: Sequence[Result]) -> int | None:
    """Index of the best of several checkpoints, by the rule above; None if none holds the limits.

    Without goals the last one that holds the limits is best.

    Example:
        >>> def result(forget, retain):
        ...     return {"forget_nll": {"agg_value": forget}, "retain_nll": {"agg_value": retain}}
        >>> results = [result(1.0, 1.0), result(3.0, 1.0), result(5.0, 9.0)]
        >>> best([parse_rule("forget_nll>=4")], [parse_rule("retain_nll<=2")], results)
        1
    """
    kept = [i for i, result in enumerate(results) if all(holds(limit, result) for limit in limits)]
    if not kept:
        return None
    if not goals:
        return kept[-1]
    return min(kept, key=lambda i: (min(miss(goal, results[i]) for goal in goals), i))


def _condition(part: str, text: str) -> Condition:
    found = _CONDITION.match(part)
    if found is None:
        raise ValueError(
            f"stop rule {text!r}: {part.strip()!r} is no condition; write METRIC<=BOUND or METRIC>=BOUND, joined by "
            f"commas, or one of {', '.join(NAMED)}"
        )
    metric, relation, bound = found.groups()
    if family(metric) is None:
        import difflib

        near = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`jaxunlearn evaluate --out` names them all"
        raise ValueError(f"stop rule {text!r}: no metric is called {metric!r}; {hint}")
    if bound in ELSEWHERE:
        return Condition(metric, relation, bound)
    try:
        number = float(bound)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"stop rule {text!r}: the bound {bound!r} is neither a number nor {', '.join(ELSEWHERE)}")
    return Condition(metric, relation, number)


def _value(condition: Condition, known: Mapping[str, Result]) -> float:
    where, result = condition.bound, known.get(condition.bound)
    if result is None:
        raise ValueError(f"stop rule {condition}: nothing was measured that is called {where!r}")
    reason = why_missing(result.get(condition.metric, {}))
    if reason is not None:
        raise ValueError(f"stop rule {condition}: {where} has no value of {condition.metric} ({reason})")
    return float(result[condition.metric]["agg_value"])


def _miss(condition: Condition, result: Result) -> float:
    value = result.get(condition.metric, {}).get("agg_value")
    if value is None:
        return math.inf
    excess = value - condition.bound if condition.relation == "<=" else condition.bound - value
    return max(0.0, excess) / max(abs(condition.bound), 1e-6)
