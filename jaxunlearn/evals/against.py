r"""One model's result against another's, from result files alone: no model is needed.

* **Forget Quality**: the Kolmogorov-Smirnov test between the truth ratios of both; which number of questions it was
  taken over is part of it.
* **Model Utility** of both, in two conventions: TOFU's own table takes the harmonic mean of group numbers that were
  rounded to four digits before, which moves the fifth digit of the result; the other does not round.
* **Group numbers** and all other metrics both files hold, with their difference. Where both measured the same
  questions, the interval of the difference resamples *questions*, so that what is hard for both models cancels.
"""

from typing import Any

import numpy as np

from jaxunlearn.evals import tofu
from jaxunlearn.evals.bootstrap import bootstrap, weighted_mean
from jaxunlearn.evals.forget_quality import forget_quality
from jaxunlearn.evals.logs import Log

ROUNDED, UNROUNDED = "rounded to four digits, as TOFU does", "not rounded"


def against(run: Log, reference: Log, *, examples: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Compares two results.

    Args:
        run, reference: of `read_log`.
        examples: only the first so many questions of each set (TOFU scores 300); default all.
        seed: of the bootstrap intervals.

    Returns:
        `{"forget_quality": ..., "model_utility": ..., "metrics": {name: {"run", "reference", "difference", ...}}}`;
        a part that cannot be computed is `{"skipped": reason}`.

    Example:
        >>> one = Log("tofu", {"forget_nll": np.array([1.0, 3.0])}, {"forget_nll": 2.0}, np.arange(5.0))
        >>> two = Log("tofu", {"forget_nll": np.array([0.5, 0.5])}, {"forget_nll": 0.5}, np.arange(5.0) + 9)
        >>> found = against(one, two)
        >>> round(found["forget_quality"]["p_value"], 6), found["metrics"]["forget_nll"]["difference"]
        (0.007937, 1.5)
    """
    run, reference = (log if examples is None else _first(log, examples) for log in (run, reference))
    shared = [name for name in run.aggregates if name in reference.aggregates]
    return {
        "forget_quality": _quality(run, reference, seed),
        "model_utility": _utility(run, reference, seed),
        "metrics": {name: _difference(name, run, reference, seed) for name in shared},
    }


def _first(log: Log, examples: int) -> Log:
    """The log of the first questions; an aggregate that is no mean of values, such as an AUC, is dropped."""
    means = {name: log.mean(name, examples) for name in log.aggregates if _is_mean(log, name)}
    values, tokens = ({name: column[:examples] for name, column in of.items()} for of in (log.values, log.tokens))
    return log._replace(values=values, aggregates=means, log_ratio=log.log_ratio[:examples], tokens=tokens)


def _quality(run: Log, reference: Log, seed: int) -> dict[str, Any]:
    for who, log in (("the run", run), ("the reference", reference)):
        if not log.log_ratio.size:
            return {"skipped": f"{who} has no truth ratios on forget"}
    try:
        test = forget_quality(run.log_ratio, reference.log_ratio, seed=seed)
    except ValueError as error:
        return {"skipped": str(error)}
    return {
        "ks_statistic": test.statistic,
        "ks_interval": list(test.interval),
        "p_value": test.p_value,
        "log10_p": test.log10_p,
        "n": list(test.n),
    }


def _utility(run: Log, reference: Log, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for who, log in (("run", run), ("reference", reference)):
        parts = log.utility_parts()
        if parts is None:
            found[who] = {"skipped": "some of the nine numbers are missing"}
            continue
        found[who] = {ROUNDED: tofu.model_utility(np.round(parts, 4)), UNROUNDED: tofu.model_utility(parts)}
        groups = log.utility_groups()
        if groups is not None:
            found[who]["interval"] = list(bootstrap(tofu.utility_of_draws, *groups, seed=seed))
    return found


def _difference(name: str, run: Log, reference: Log, seed: int) -> dict[str, Any]:
    mine, theirs = run.aggregates[name], reference.aggregates[name]
    found = {"run": mine, "reference": theirs, "difference": mine - theirs}
    if not (name in run.values and name in reference.values):
        return found
    x, y = (np.stack([log.values[name], log.weights(name)], axis=1) for log in (run, reference))
    found["n"] = [len(x), len(y)]
    if not (_is_mean(run, name) and _is_mean(reference, name)):
        return found
    if len(x) == len(y):
        found["interval"] = list(bootstrap(_difference_of_draws, np.concatenate([x, y], axis=1), seed=seed))
    else:
        found["interval"] = list(bootstrap(lambda a, b: weighted_mean(a) - weighted_mean(b), x, y, seed=seed))
    return found


def _difference_of_draws(draws: np.ndarray) -> np.ndarray:
    return weighted_mean(draws[..., :2]) - weighted_mean(draws[..., 2:])


def _is_mean(log: Log, name: str) -> bool:
    """Whether the aggregate is the mean of its values, so that resampling them says how sure it is."""
    column = log.values.get(name)
    return column is not None and column.size > 1 and bool(np.isclose(log.mean(name), log.aggregates[name], rtol=1e-6))
