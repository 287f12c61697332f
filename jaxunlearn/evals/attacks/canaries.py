"""Exposure of all canaries of a key, template by template: what is asked of a trained model.

The candidates of a template are scored once for all its canaries. A space of at most `candidates` is listed and ranks
are exact, other canaries of the same template among the candidates; of a larger one so many others are drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxunlearn.data import encode
from jaxunlearn.data.canaries import CanaryTemplate
from jaxunlearn.data.canary_key import Canary
from jaxunlearn.evals.attacks.exposure import Exposure, Method, exposures_from_nll, sequence_nll
from jaxunlearn.evals.result import Measure, measured
from jaxunlearn.types import Model, Params


def canary_exposures(
    model: Model,
    params: Params,
    canaries: Sequence[Canary],
    tokenizer: Any,
    *,
    max_length: int,
    candidates: int = 4096,
    method: Method | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Exposure]:
    """Exposure of each canary, in the order of the key.

    Args:
        model, params: the model asked.
        canaries: of any templates.
        tokenizer, max_length: how texts become tokens.
        candidates: most candidates scored of a template.
        method: default "exact" where all candidates are scored, else "skew_normal".
        seed: of the candidates and the intervals.
        options: `batch_size`, `mesh`, `progress` of `score`.

    Errors:
        ValueError: no canaries, fewer than 2 candidates, "exact" for a space too large, a text too long.
    """
    if not canaries:
        raise ValueError("there is no canary to ask for")
    if candidates < 2:
        raise ValueError(f"candidates={candidates}: at least 2 are needed to rank a canary among")
    found: dict[Canary, Exposure] = {}
    for template in dict.fromkeys(one.template for one in canaries):
        ours = [one for one in canaries if one.template == template]
        indices = [one.index for one in ours]
        listed = template.size - 1 <= candidates and method in (None, "exact")
        if method == "exact" and not listed:
            raise ValueError(
                f"an exact rank of {template.text!r} needs all {template.size} candidates, more than {candidates}: "
                "raise the number of candidates, or take another method"
            )
        others = list(range(template.size)) if listed else _drawn(template, indices, candidates, seed)
        texts = template.records(others if listed else [*indices, *others])
        nll = sequence_nll(model, params, encode(texts, tokenizer, max_length=max_length), **options)
        if listed:
            ranked = [exposures_from_nll(nll[[i]], np.delete(nll, i), method="exact")[0] for i in indices]
        else:
            kind = {"method": method or "skew_normal", "space": template.size, "seed": seed}
            ranked = exposures_from_nll(nll[: len(ours)], nll[len(ours) :], **kind)
        found |= dict(zip(ours, ranked, strict=True))
    return [found[one] for one in canaries]


def exposure_measure(canaries: Sequence[Canary], found: Sequence[Exposure], seed: int = 0) -> Measure:
    """The measure of a key's exposures; it names canaries by template and number, not by their text."""
    rows = [
        {"template": one.template.text, "copies": one.copies} | value._asdict() | {"interval": list(value.interval)}
        for one, value in zip(canaries, found, strict=True)
    ]
    return measured("canary_exposure", np.array([value.bits for value in found]), seed=seed, canaries=rows)


def _drawn(template: CanaryTemplate, indices: Sequence[int], candidates: int, seed: int) -> list[int]:
    drawn = template.draw(candidates, np.random.default_rng(seed), avoid=indices)
    if not drawn:
        raise ValueError(f"{template.text!r} has no candidate that is not a canary: nothing to rank them among")
    return drawn
