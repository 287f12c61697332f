"""Everything that can be measured about one model from the data at hand, in one call.

One scoring pass covers all texts (answers, paraphrases, wrong answers, holdout); one divergence pass a set compares
with the retrained model; generation runs only if asked for. What cannot be computed is listed with the reason, so a
table never hides that a number was not available. See `catalogue.CORE` for names, units and directions, and `suites`
for the published benchmarks, each with metrics of its own.
"""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from jaxunlearn.data import Encoded, Template
from jaxunlearn.evals.batching import Progress
from jaxunlearn.evals.protocol import Run
from jaxunlearn.evals.result import Result
from jaxunlearn.evals.suites.runner import Generate, run_suites
from jaxunlearn.evals.suites.tofu import tofu_suite
from jaxunlearn.types import Model, Params

Reference = tuple[Model, Params]


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
    truncate: bool = False,
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
        truncate: cut longer variants there.
        batch_size: examples a device call; bounds memory, changes no number.
        mesh: where to put the batches.
        seed: of the bootstrap intervals.
        progress: called with `(texts scored, texts in all)`.

    Returns:
        `{metric: measure}`, see `jaxunlearn.evals.result`; every metric of `catalogue.CORE` is present.

    Errors:
        ValueError: an empty forget set, an example without loss tokens, or a variant
            longer than `max_length` without `truncate`.
    """
    if not forget:
        raise ValueError("the forget set is empty; pass the encoded examples that were to be forgotten")
    suite = tofu_suite(
        tokenizer,
        forget=forget,
        retain=retain,
        authors=authors,
        world=world,
        holdout=holdout or (),
        new_tokens=max_new_tokens,
        template=template,
        max_length=max_length,
        truncate=truncate,
    )
    run = Run(model, params, tokenizer, reference, reference_result, seed, batch_size, mesh)
    return run_suites([suite], run, generate=generate, max_length=max_length, progress=progress)
