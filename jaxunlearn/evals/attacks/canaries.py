"""Exposure of all canaries of a key, template by template: what is asked of a trained model.

The candidates of a template are scored once for all its canaries. A space of at most `candidates` is listed and ranks
are exact, other canaries of the same template among the candidates; of a larger one so many others are drawn.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import Encoded, encode
from jaxunlearn.data.canaries import CanaryTemplate
from jaxunlearn.data.canary_key import Canary
from jaxunlearn.evals.attacks.exposure import Exposure, Method, exposures_from_nll, sequence_nll
from jaxunlearn.evals.batching import Progress
from jaxunlearn.evals.result import Measure, measured
from jaxunlearn.types import Model, Params


class Candidates(NamedTuple):
    """The texts of one template that are to be scored.

    Attributes:
        template: what they fill in.
        canaries: of the key, in its order.
        listed: whether the texts are all of the template's, by number; else the canaries come first, then others that
            were drawn.
        encoded: the texts.
    """

    template: CanaryTemplate
    canaries: list[Canary]
    listed: bool
    encoded: list[Encoded]


def candidates_among(
    canaries: Sequence[Canary],
    tokenizer: Any,
    *,
    max_length: int,
    candidates: int = 4096,
    method: Method | None = None,
    seed: int = 0,
) -> list[Candidates]:
    """What `canary_exposures` scores, template by template; arguments and errors as there."""
    if not canaries:
        raise ValueError("there is no canary to ask for")
    if candidates < 2:
        raise ValueError(f"candidates={candidates}: at least 2 are needed to rank a canary among")
    found = []
    for template in dict.fromkeys(one.template for one in canaries):
        ours = [one for one in canaries if one.template == template]
        indices = [one.index for one in ours]
        listed = template.size - 1 <= candidates and method in (None, "exact")
        if method == "exact" and not listed:
            raise ValueError(
                f"an exact rank of {template.text!r} needs all {template.size} candidates, more than {candidates}: "
                "raise the number of candidates, or take another method"
            )
        asked = list(range(template.size)) if listed else [*indices, *_drawn(template, indices, candidates, seed)]
        encoded = encode(template.records(asked), tokenizer, max_length=max_length)
        found.append(Candidates(template, ours, listed, encoded))
    return found


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
        options: `batch_size`, `mesh`, `progress` of `score`, the last over all templates.

    Errors:
        ValueError: no canaries, fewer than 2 candidates, "exact" for a space too large, a text too long.
    """
    how = {"max_length": max_length, "candidates": candidates, "method": method, "seed": seed}
    return exposures_among(
        model, params, canaries, candidates_among(canaries, tokenizer, **how), method=method, seed=seed, **options
    )


def exposures_among(
    model: Model,
    params: Params,
    canaries: Sequence[Canary],
    among: Sequence[Candidates],
    *,
    method: Method | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> list[Exposure]:
    """`canary_exposures` among texts that `candidates_among` has chosen with the same `method` and `seed`."""
    found: dict[Canary, Exposure] = {}
    done, total = 0, sum(len(one.encoded) for one in among)
    for one in among:

        def seen(here: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + here, total)

        nll = sequence_nll(model, params, one.encoded, progress=seen, **options)
        done += len(one.encoded)
        if one.listed:
            indices = [canary.index for canary in one.canaries]
            ranked = [exposures_from_nll(nll[[i]], np.delete(nll, i), method="exact")[0] for i in indices]
        else:
            count, kind = len(one.canaries), {"method": method or "skew_normal", "seed": seed}
            ranked = exposures_from_nll(nll[:count], nll[count:], space=one.template.size, **kind)
        found |= dict(zip(one.canaries, ranked, strict=True))
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
