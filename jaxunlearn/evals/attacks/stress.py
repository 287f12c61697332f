"""All stress tests on one model, by family; what cannot be run says why.

A family that needs something that is not there (a retain set, a holdout, a retrained model, a key of canaries) skips
its metrics with the reason; one that fails on this model, because its outputs are not finite for example, reports the
problem and does not keep the others from running.
"""

from collections.abc import Sequence

from jaxunlearn.data.errors import nearest
from jaxunlearn.evals.attacks.families import FAMILIES
from jaxunlearn.evals.attacks.target import Doses, Target
from jaxunlearn.evals.result import Result, broken, skipped


def stress(
    target: Target,
    doses: Doses | None = None,
    *,
    only: Sequence[str] | None = None,
) -> Result:
    """Runs the stress tests on one model.

    Args:
        target: the model and what there is to test it with.
        doses: how hard.
        only: some of `FAMILIES`; default all.

    Returns:
        A measure for every metric of the families asked for.

    Errors:
        ValueError: an empty forget set, or a family that does not exist.
    """
    if not target.forget:
        raise ValueError("the forget set is empty; pass the encoded texts that were to be forgotten")
    check_families(only or ())
    found: Result = {}
    for name, family in FAMILIES.items():
        if only and name not in only:
            continue
        try:
            given = family.run(target, doses or Doses())
        except ValueError as error:
            found |= {metric: broken(metric, str(error)) for metric in family.metrics}
        else:
            if isinstance(given, str):
                found |= {metric: skipped(metric, given) for metric in family.metrics}
            else:
                found |= {family.metrics[0]: given} if "agg_value" in given else given
    return found


def check_families(only: Sequence[str]) -> None:
    """Raises ValueError, with the nearest name, for a family that does not exist."""
    for name in only:
        if name not in FAMILIES:
            near = nearest(name, FAMILIES)
            hint = f"did you mean {near}?" if near else f"choose among {', '.join(FAMILIES)}"
            raise ValueError(f"no stress test is called {name!r}; {hint}")
