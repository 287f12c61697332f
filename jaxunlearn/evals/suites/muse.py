"""MUSE's suite: verbatim and knowledge memorisation, privacy leakage, utility; see `evals.muse` for the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxunlearn.data import Encoded, encode
from jaxunlearn.data.layouts import MuseData
from jaxunlearn.evals import muse, privacy
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.comparison import membership_measure
from jaxunlearn.evals.prompts import Prompts, as_prompts, decoded, without_end
from jaxunlearn.evals.protocol import NO_GENERATION, NO_RETRAINED, Run, Seen
from jaxunlearn.evals.result import Measure, Result, broken, measured, skipped, why_missing
from jaxunlearn.evals.score import Scores, score

AUC = "muse_min_k_auc"
_LEAK = "How far the attack's success is from that on the retrained model: below 0 known, above 0 pushed down."

MUSE_METRICS: dict[str, Metric] = {
    "muse_verbmem_forget": Metric(
        "VerbMem, forget", "forget", "", "worse", "Overlap of words between the passage and how the model continues it."
    ),
    "muse_knowmem_forget": Metric(
        "KnowMem, forget", "forget", "", "worse", "Overlap of words between the true answers and the model's."
    ),
    AUC: Metric(
        "Min-40% attack AUC, forget over holdout",
        "privacy",
        "",
        "neither",
        "Chance that an attacker ranks a forget text above one never seen; one half is blind guessing.",
        0.5,
    ),
    "muse_privleak": Metric("PrivLeak, MUSE's form", "privacy", "%", "neither", _LEAK, 0.0),
    "muse_privleak_open_unlearning": Metric("PrivLeak, OpenUnlearning's form", "privacy", "%", "neither", _LEAK, 0.0),
    "muse_knowmem_retain": Metric(
        "KnowMem, retain", "retain", "", "better", "Overlap of words between the true answers and the model's."
    ),
}


class Asked(NamedTuple):
    """Prompts and the true continuation of each."""

    prompts: Prompts
    truth: list[str]


@dataclass(frozen=True)
class Muse:
    """MUSE's metrics; make it with `muse_suite`.

    Attributes:
        verbmem, knowmem_forget, knowmem_retain: prompts and truths.
        forget, holdout: texts for the attack, encoded without end token.
    """

    verbmem: Asked
    knowmem_forget: Asked
    knowmem_retain: Asked
    forget: Sequence[Encoded]
    holdout: Sequence[Encoded]
    name: ClassVar[str] = "muse"
    rows: ClassVar[Mapping[str, Metric]] = MUSE_METRICS

    def texts(self) -> dict[str, Sequence[Encoded]]:
        return {"forget": self.forget, "holdout": self.holdout}

    def prompts(self, scores: Mapping[str, Scores]) -> dict[str, Prompts]:
        return {name: asked.prompts for name, asked in self._asked().items()}

    def measure(self, seen: Seen) -> Result:
        found: Result = {}
        for name, asked in self._asked().items():
            key = f"muse_{name}"
            if seen.written is None:
                found[key] = skipped(key, NO_GENERATION)
                continue
            texts = decoded(seen.written[name], seen.run.tokenizer)
            if name != "verbmem_forget":
                texts = [muse.cut_answer(text) for text in texts]
            generated = {str(i): text for i, text in enumerate(texts)}
            values = muse.rouge_l_f1(texts, asked.truth)
            found[key] = measured(key, values, seed=seen.run.seed, generated_by_index=generated)
        return found | self._leak(seen)

    def _asked(self) -> dict[str, Asked]:
        return {
            "verbmem_forget": self.verbmem,
            "knowmem_forget": self.knowmem_forget,
            "knowmem_retain": self.knowmem_retain,
        }

    def _leak(self, seen: Seen) -> Result:
        forms = ("muse_privleak", "muse_privleak_open_unlearning")
        ours = _attack(seen.scores["forget"], seen.scores["holdout"], seen.run.seed)
        found, problem = {AUC: ours}, why_missing(ours)
        if problem is not None:
            return found | {name: broken(name, problem) for name in forms}
        theirs = self._retrained(seen.run, ours)
        reason = NO_RETRAINED if theirs is None else why_missing(theirs)
        if theirs is None or reason is not None:
            return found | {name: skipped(name, reason) for name in forms}
        auc, retrained = ours["agg_value"], theirs["agg_value"]
        values = (
            muse.privleak_muse(1.0 - auc, 1.0 - retrained),
            muse.privleak_open_unlearning(auc, retrained),
        )
        low, high = muse.privleak_interval(_sides(ours), _sides(theirs), seed=seen.run.seed)
        more: dict[str, Any] = {"interval": [low, high]} if np.isfinite([low, high]).all() else {}
        counts = {"n": ours["n"], "n_holdout": ours["n_holdout"], "auc_retrained": retrained}
        none = np.zeros(0)
        return found | {
            name: measured(name, none, aggregate=value, **more) | counts
            for name, value in zip(forms, values, strict=True)
        }

    def _retrained(self, run: Run, ours: Measure) -> Measure | None:
        """The attack on the retrained model: known, or made now; `ours` where the model under test is that one."""
        known = (run.reference_result or {}).get(AUC)
        if known is not None or run.reference is None:
            return known
        if run.reference[1] is run.params:
            return ours
        texts = [*self.forget, *self.holdout]
        scores = score(*run.reference, texts, batch_size=run.batch_size, mesh=run.mesh)
        return _attack(scores[: len(self.forget)], scores[len(self.forget) :], run.seed)


def _attack(forget: Scores, holdout: Scores, seed: int) -> Measure:
    sides = (privacy.membership_by_min_k(one.log_probs, k=muse.MIN_K) for one in (forget, holdout))
    return membership_measure(AUC, *sides, seed=seed)


def _sides(measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """The scores behind an AUC, of forget and of holdout."""
    inside, outside = (np.array([*measure[name].values()]) for name in ("value_by_index", "holdout_by_index"))
    return inside, outside


def muse_suite(data: MuseData, tokenizer: Any, *, max_length: int) -> Muse:
    """The suite over MUSE's folders.

    Errors:
        ValueError: prompts that leave no room for their answers in the model's context.
    """
    verbmem = as_prompts(
        [row["prompt"] for row in data.verbmem],
        tokenizer,
        new=muse.VERBMEM_TOKENS,
        max_length=max_length,
        name="verbmem",
    )
    cut = [
        tokenizer.decode(
            tokenizer([row["gt"]], add_special_tokens=False)["input_ids"][0][: muse.VERBMEM_TOKENS],
            skip_special_tokens=True,
        )
        for row in data.verbmem
    ]

    def asked(name: str, rows: Sequence[Mapping[str, str]], solved: Sequence[Mapping[str, str]]) -> Asked:
        shots = [(row["question"], row["answer"]) for row in solved]
        texts = [muse.knowmem_prompt(row["question"], shots) for row in rows]
        prompts = as_prompts(texts, tokenizer, new=muse.KNOWMEM_TOKENS, max_length=max_length, name=name)
        return Asked(prompts, [row["answer"] for row in rows])

    forget, holdout = (
        [without_end(one) for one in encode(records, tokenizer, max_length=max_length, truncate=True)]
        for records in (data.forget, data.holdout)
    )
    return Muse(
        Asked(verbmem, cut),
        asked("knowmem forget_qa", data.forget_qa, data.forget_icl),
        asked("knowmem retain_qa", data.retain_qa, data.retain_icl),
        forget,
        holdout,
    )
