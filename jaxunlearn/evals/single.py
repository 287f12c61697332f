"""What one set of examples says about one model, by itself: likelihoods, memorisation, truth ratio, generated text."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.evals import tofu
from jaxunlearn.evals.memorisation import exact_memorisation, extraction_strength
from jaxunlearn.evals.result import Measure, Result, by_index, measured, skipped
from jaxunlearn.evals.score import Scores
from jaxunlearn.evals.variants import Variants, variant_nll
from jaxunlearn.types import Model, Params

Generate = Callable[..., list[list[int]]]


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


def answers(part: Part) -> Result:
    """Likelihood and memorisation of the true answers."""
    nll, name = part.scores.nll, part.name
    tokens = {"tokens_by_index": by_index(part.scores.tokens)}
    if name in ("authors", "world"):
        if isinstance(part.variants, str):
            return {f"{name}_probability": skipped(f"{name}_probability", part.variants)}
        _, wrong = variant_nll(part.variant_scores, part.variants, nll)
        return {f"{name}_probability": measured(f"{name}_probability", tofu.normalised_probability(nll, wrong))}
    found = {
        f"{name}_probability": measured(f"{name}_probability", tofu.probability(nll)),
        f"{name}_nll": measured(f"{name}_nll", nll, aggregate=token_mean(part.scores.log_probs, -1.0), **tokens),
        f"{name}_exact_memorisation": _where_finite(
            f"{name}_exact_memorisation", exact_memorisation(part.scores.hits), nll
        ),
    }
    if name == "forget":
        key = "forget_extraction_strength"
        found[key] = _where_finite(key, extraction_strength(part.scores.hits), nll)
    return found


def truth_ratio(part: Part) -> Result:
    """The truth ratio in the form of its set, with `log s` of each question for Forget Quality."""
    key = f"{part.name}_truth_ratio"
    if isinstance(part.variants, str):
        return {key: skipped(key, part.variants)}
    log_s = tofu.log_truth_ratio(*variant_nll(part.variant_scores, part.variants, part.scores.nll))
    form = tofu.truth_ratio_forget if part.name == "forget" else tofu.truth_ratio_retain
    return {key: measured(key, form(log_s), log_ratio_by_index=by_index(log_s))}


def generation(
    part: Part, model: Model, params: Params, tokenizer: Any, generate: Generate | None, max_new_tokens: int
) -> Result:
    """ROUGE-L recall of what the model writes after each prompt, with the texts."""
    key = f"{part.name}_rouge_l"
    if generate is None:
        return {key: skipped(key, "generation was not asked for")}
    prompts = [example.tokens[: int(np.flatnonzero(example.loss_mask)[0])].tolist() for example in part.examples]
    if not all(prompts):
        return {key: skipped(key, "some texts have no prompt to generate from")}
    stop = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    written = generate(model, params, prompts, max_new_tokens=max_new_tokens, stop_ids=stop)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
    recall = tofu.rouge_l_recall(texts, [example.record.completion for example in part.examples])
    generated = {str(i): text for i, text in enumerate(texts)}
    return {key: measured(key, recall, generated_by_index=generated)}


def token_mean(rows: Sequence[np.ndarray], sign: float = 1.0) -> float:
    """Mean over the loss tokens of a set: examples count by their length."""
    return sign * float(np.mean(np.concatenate(rows)))


def _where_finite(name: str, values: np.ndarray, nll: np.ndarray) -> Measure:
    """An arg-max over NaN still has an index, so a hit counts only where the model gave a probability."""
    return measured(name, np.where(np.isfinite(nll), values, np.nan))
