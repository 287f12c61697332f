"""What one set of examples says about one model, by itself: likelihoods, memorisation, truth ratio, generated text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals import tofu
from jaxunlearn.evals.memorisation import exact_memorisation, extraction_strength
from jaxunlearn.evals.prompts import decoded
from jaxunlearn.evals.protocol import NO_GENERATION, Run
from jaxunlearn.evals.result import Measure, Result, by_index, measured, skipped
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.variants import Variants, variant_nll


class Part(NamedTuple):
    """One set of examples with its scores.

    Attributes:
        name: "forget", "retain", "authors" or "world".
        examples: the encoded answers.
        scores: of the answers.
        variants: their other answers, or in words why there are none.
        variant_scores: of `variants.encoded`.
    """

    name: str
    examples: Sequence[Encoded]
    scores: Scores
    variants: Variants | str
    variant_scores: Scores | None


def answers(part: Part, seed: int = 0) -> Result:
    """Likelihood and memorisation of the true answers."""
    nll, name = part.scores.nll, part.name
    tokens = part.scores.tokens
    if name in ("authors", "world"):
        if isinstance(part.variants, str):
            return {f"{name}_probability": skipped(f"{name}_probability", part.variants)}
        _, wrong = variant_nll(part.variant_scores, part.variants, nll)
        likely = tofu.normalised_probability(nll, wrong)
        return {f"{name}_probability": measured(f"{name}_probability", likely, seed=seed)}
    found = {
        f"{name}_probability": measured(f"{name}_probability", tofu.probability(nll), seed=seed),
        f"{name}_nll": measured(f"{name}_nll", nll, weights=tokens, seed=seed, tokens_by_index=by_index(tokens)),
        f"{name}_exact_memorisation": where_finite(
            f"{name}_exact_memorisation", exact_memorisation(part.scores.hits), nll, seed
        ),
    }
    if name == "forget":
        key = "forget_extraction_strength"
        found[key] = where_finite(key, extraction_strength(part.scores.hits), nll, seed)
    return found


def truth_ratio(part: Part, seed: int = 0) -> Result:
    """The truth ratio in the form of its set, with `log s` of each question for Forget Quality."""
    key = f"{part.name}_truth_ratio"
    if isinstance(part.variants, str):
        return {key: skipped(key, part.variants)}
    log_s = tofu.log_truth_ratio(*variant_nll(part.variant_scores, part.variants, part.scores.nll))
    form = tofu.truth_ratio_forget if part.name == "forget" else tofu.truth_ratio_retain
    return {key: measured(key, form(log_s), seed=seed, log_ratio_by_index=by_index(log_s))}


def generation(part: Part, written: list[list[int]] | str | None, run: Run) -> Result:
    """ROUGE-L recall of what the model wrote after each prompt, with the texts."""
    key = f"{part.name}_rouge_l"
    if written is None:
        return {key: skipped(key, NO_GENERATION)}
    if not written:
        return {key: skipped(key, "some texts have no prompt to generate from")}
    texts = decoded(written, run.tokenizer)
    recall = tofu.rouge_l_recall(texts, [example.record.completion for example in part.examples])
    generated = {str(i): text for i, text in enumerate(texts)}
    return {key: measured(key, recall, seed=run.seed, generated_by_index=generated)}


def where_finite(name: str, values: np.ndarray, nll: np.ndarray, seed: int = 0) -> Measure:
    """An arg-max over NaN still has an index, so a hit counts only where the model gave a probability."""
    return measured(name, np.where(np.isfinite(nll), values, np.nan), seed=seed)
