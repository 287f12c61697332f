"""What is measured of a model that has forgotten, and the one number by which trials are chosen.

Trials are ranked by the distance to the retrained model in output space, on what was to be forgotten, on what was to
be kept and on what neither model has seen, and by what is left of the forgotten answers,

    distance = KL_forget + KL_retain + KL_unseen + memory,      KL(retrained || model),
    memory   = | NLL_model(forget) - NLL_retrained(forget) |,   all in nats per loss token.

The divergences are the tug of war of `evals.tug_of_war` in its form by KL, `-log ToW`. They ask whether the model
gives the answers of the retrained one enough probability; memory asks whether it has given up its own. The other
direction of the divergence would ask that too, but a retrained model is sure of a wrong guess, and KL(model ||
retrained) takes a model that guesses evenly to be as far from it as one that still remembers.

A method that forgets nothing pays in the first and the last term, one that destroys the model in the others, so that
no weight has to be chosen between them. Two models retrained from different seeds are not at 0 but at the seed floor.
Somebody who unlearns has no retrained model; here it judges all methods alike.

Its form by total variation (ToW) is shown beside it. On facts that only guessing could answer, that hardly tells the
original model from a retrained one: two retrained models disagree about the guess itself.
"""

from functools import partial

import numpy as np

from comparison.corpora import CODES, secret
from comparison.problems import Problem
from jaxunlearn import data, evals, models
from jaxunlearn.evals.attacks.exposure import exposure
from jaxunlearn.evals.attacks.quantisation import quantisation
from jaxunlearn.evals.attacks.relearning import relearning
from jaxunlearn.evals.tug_of_war import tug_of_war
from jaxunlearn.runs.fit import mean_nll
from jaxunlearn.types import Model, Params

Numbers = dict[str, float | None]
BATCH = 128
NEW_TOKENS = 32
SETS = ("forget", "retain", "unseen")


def distance(problem: Problem, model: Model, params: Params) -> Numbers:
    """How far the model is from the retrained one on forget, retain and unseen (module docstring)."""
    examples = {"forget": problem.sets["forget"], "retain": problem.kept, "unseen": problem.sets["holdout"]}
    found: Numbers = {}
    for name in SETS:
        apart = evals.kl(problem.model, problem.retrained, params, examples[name], model_q=model, batch_size=BATCH)
        found[f"{name}_kl"], found[f"{name}_tv"] = apart.mean_kl, apart.mean_total_variation
    forget = problem.sets["forget"]
    found["memory"] = abs(mean_nll(model, params, forget) - mean_nll(problem.model, problem.retrained, forget))
    found["distance"] = sum(found[f"{name}_kl"] for name in SETS) + found["memory"]
    if not np.isfinite(found["distance"]):  # outputs that are not finite: the model is broken
        return dict.fromkeys((*found, "tow"))
    return found | {"tow": tug_of_war([found[f"{name}_tv"] for name in SETS])}


class Measurer:
    """Measures models of one problem; what it says of the retrained model is asked once."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.retrained: evals.Result | None = None
        self.retrained = self._evaluated(problem.model, problem.retrained)

    def __call__(self, model: Model, params: Params) -> Numbers:
        found = self._evaluated(model, params)
        numbers = {name: found[name]["agg_value"] for name in _SUITE}
        numbers["log10_forget_quality"] = found["forget_quality"].get("log10_p")
        nll = found["retain_nll"]["agg_value"]
        broken = nll is None or nll > 700  # beyond that the perplexity is no number any more
        numbers["retain_perplexity"] = None if broken else float(np.exp(nll))
        numbers["exposure"] = self._exposure(model, params)
        numbers |= self._robustness(model, params)
        return numbers | distance(self.problem, model, params)

    def _evaluated(self, model: Model, params: Params) -> evals.Result:
        problem = self.problem
        return evals.evaluate(
            model,
            params,
            problem.tokenizer,
            **problem.sets,
            reference=(problem.model, problem.retrained),
            reference_result=self.retrained,
            generate=partial(models.generate, batch_size=BATCH),
            max_new_tokens=NEW_TOKENS,
            max_length=problem.context,
            truncate=True,
            batch_size=BATCH,
        )

    def _robustness(self, model: Model, params: Params) -> Numbers:
        """What fine-tuning on half of the forget set and rounding to four bits bring back, 1 for nothing."""
        problem, forget = self.problem, self.problem.sets["forget"]
        try:
            again = relearning(
                model,
                params,
                forget,
                reference=(problem.model, problem.retrained),
                epochs=2,
                learning_rate=1e-3,
                points=1,
                score_batch=BATCH,
            )
            rounded = quantisation(model, params, forget, bits=4, group=32, batch_size=BATCH)
        except ValueError:  # outputs that are not finite: the model is broken
            return {"relearning": None, "quantisation": None}
        return {"relearning": again.robustness, "quantisation": rounded.robustness}

    def _exposure(self, model: Model, params: Params) -> float | None:
        """Mean exposure of the forget set's codes, bits; each among all codes of its file."""
        problem, bits = self.problem, []
        for row in problem.secrets:
            raw = problem.sets["forget"][row].record.raw
            others = [code for code in range(CODES) if code != raw["code"]]
            asked = [{"question": raw["question"], "answer": secret(raw["entity"], code)} for code in others]
            encoded = data.encode(data.from_rows(asked), problem.tokenizer, max_length=problem.context)
            try:
                found = exposure(model, params, problem.sets["forget"][row], encoded, method="exact", batch_size=512)
            except ValueError:  # outputs that are not finite: the model is broken
                return None
            bits.append(found.bits)
        return float(np.mean(bits))


_SUITE = (
    "forget_probability",
    "forget_exact_memorisation",
    "forget_extraction_strength",
    "forget_truth_ratio",
    "forget_rouge_l",
    "forget_min_k_auc",
    "forget_loss_auc",
    "retain_probability",
    "retain_exact_memorisation",
    "model_utility",
)
