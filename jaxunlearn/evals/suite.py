"""Everything that can be measured about one model from the data at hand, in one call.

One scoring pass covers all texts (answers, paraphrases, wrong answers, holdout); one divergence pass a set compares
with the retrained model; generation runs only if asked for. What cannot be computed is listed with the reason, so a
table never hides that a number was not available. See `catalogue.METRICS` for names, units and directions.
"""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from jaxunlearn.data import Encoded, Template
from jaxunlearn.evals.batching import Progress
from jaxunlearn.evals.catalogue import METRICS
from jaxunlearn.evals.comparison import Reference, attacks, divergence, quality, utility
from jaxunlearn.evals.result import Result, skipped
from jaxunlearn.evals.score import Scores, score
from jaxunlearn.evals.single import Generate, Part, answers, generation, truth_ratio
from jaxunlearn.evals.variants import Variants, variants
from jaxunlearn.types import Model, Params


def evaluate(
    model: Model,
    params: Params,
    tokenizer: Any,
    *,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded] | None = None,
    holdout: Sequence[Encoded] | None = None,
    authors: Sequence[Encoded] | None = None,
    world: Sequence[Encoded] | None = None,
    reference: Reference | None = None,
    reference_result: Result | None = None,
    generate: Generate | None = None,
    max_new_tokens: int = 64,
    template: Template | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Measures one model.

    Args:
        model, params: the model to measure.
        tokenizer: encodes the answers' variants and decodes generated text.
        forget, retain: encoded examples; `record.raw` may hold `paraphrased_answer` and `perturbed_answer`.
        holdout: texts of the same kind that no model saw, for membership attacks.
        authors, world: TOFU's real authors and world facts, for Model Utility.
        reference: (model, params) retrained without the forget set, for KL and Forget Quality.
        reference_result: what `evaluate` returned for the retrained model; spares scoring its truth ratios again.
        generate: `jaxunlearn.models.generate` (with `functools.partial` for its other arguments), or any function
            `(model, params, prompts, *, max_new_tokens, stop_ids)` that returns the new tokens of each prompt.
            Without it nothing is generated and ROUGE-L is skipped.
        max_new_tokens: length of generated answers, tokens.
        template: how questions and answers were joined when they were encoded.
        max_length: the model's context, tokens.
        batch_size: examples a device call; bounds memory, changes no number.
        mesh: where to put the batches.
        seed: of the bootstrap intervals.
        progress: called with `(texts scored, texts in all)`.

    Returns:
        `{metric: measure}`, see `jaxunlearn.evals.result`; every metric of the catalogue is present.

    Errors:
        ValueError: an empty forget set, an example without loss tokens, or a variant longer than `max_length`.
    """
    options = {"batch_size": batch_size, "mesh": mesh}
    sets = {"forget": forget, "retain": retain, "authors": authors, "world": world}
    other = {
        name: variants(
            examples, tokenizer, stand_in=name in ("authors", "world"), template=template, max_length=max_length
        )
        for name, examples in sets.items()
        if examples
    }
    if not forget:
        raise ValueError("the forget set is empty; pass the encoded examples that were to be forgotten")
    parts, outside = _score_all(model, params, sets, other, holdout or [], options | {"progress": progress})

    found: Result = {}
    for part in parts.values():
        found |= answers(part)
        found |= truth_ratio(part)
        found |= generation(part, model, params, tokenizer, generate, max_new_tokens)
    for name in ("forget", "retain"):
        if name in parts:
            found |= divergence(parts[name], model, params, reference, options)
    found |= attacks(parts["forget"], outside, holdout or [], seed)
    found |= quality(found["forget_truth_ratio"], parts["forget"].variants, reference, reference_result, options, seed)
    found |= utility(found, [name for name, examples in sets.items() if not examples])
    missing = {name: f"no {name.split('_')[0]} set given" for name in METRICS}
    return {name: found.get(name) or skipped(name, missing[name]) for name in METRICS}


def _score_all(
    model: Model,
    params: Params,
    sets: dict[str, Sequence[Encoded] | None],
    other: dict[str, Variants | str],
    holdout: Sequence[Encoded],
    options: dict[str, Any],
) -> tuple[dict[str, Part], Scores]:
    """One pass over all texts, cut up again afterwards: few compilations, one progress bar."""
    texts: list[Encoded] = []

    def place(examples: Sequence[Encoded]) -> slice:
        texts.extend(examples)
        return slice(len(texts) - len(examples), len(texts))

    spans = {name: place(examples) for name, examples in sets.items() if examples}
    more = {name: place(v.encoded) for name, v in other.items() if isinstance(v, Variants)}
    beyond = place(holdout)
    scores = score(model, params, texts, **options)
    parts = {
        name: Part(name, sets[name], scores[span], other[name], scores[more[name]] if name in more else None)
        for name, span in spans.items()
    }
    return parts, scores[beyond]
