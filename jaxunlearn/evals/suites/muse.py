"""MUSE's suite: verbatim and knowledge memorisation, privacy leakage, utility; see `evals.muse` for the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxunlearn.data import Encoded, encode
from jaxunlearn.data.layouts import MuseData
from jaxunlearn.evals import muse, privacy
from jaxunlearn.evals.catalogue import Metric
from jaxunlearn.evals.prompts import Prompts, as_prompts, decoded, without_end
from jaxunlearn.evals.protocol import NO_GENERATION, NO_RETRAINED, Seen
from jaxunlearn.evals.result import Result, broken, by_index, measured, skipped, why_missing
from jaxunlearn.evals.score import Scores

_LEAK = "How far the attack's success is from that on the retrained model: below 0 known, above 0 pushed down."

MUSE_METRICS: dict[str, Metric] = {
    "muse_verbmem_forget": Metric(
        "VerbMem, forget", "forget", "", "worse", "Overlap of words between the passage and how the model continues it."
    ),
    "muse_knowmem_forget": Metric(
        "KnowMem, forget", "forget", "", "worse", "Overlap of words between the true answers and the model's."
    ),
    "muse_min_k_auc": Metric(
        "Min-40% attack AUC, MUSE",
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
        key, forms = "muse_min_k_auc", ("muse_privleak", "muse_privleak_open_unlearning")
        inside, outside = (
            privacy.membership_by_min_k(seen.scores[name].log_probs, k=muse.MIN_K) for name in ("forget", "holdout")
        )
        try:
            test = privacy.attack(inside, outside, seed=seen.run.seed)
        except ValueError as error:
            return {name: broken(name, str(error)) for name in (key, *forms)}
        details = {name: value for name, value in test._asdict().items() if name not in ("n", "interval")}
        more = {"interval": list(test.interval), "holdout_by_index": by_index(outside), **details}
        found = {key: measured(key, inside, aggregate=test.auc, **more)}
        known = (seen.run.reference_result or {}).get(key)
        reason = NO_RETRAINED if known is None else why_missing(known)
        if reason is not None:
            return found | {name: skipped(name, reason) for name in forms}
        theirs, none = known["agg_value"], np.zeros(0)
        values = {
            forms[0]: muse.privleak_muse(1.0 - test.auc, 1.0 - theirs),
            forms[1]: muse.privleak_open_unlearning(test.auc, theirs),
        }
        count = {"n": len(inside), "auc_retrained": theirs}
        return found | {name: measured(name, none, aggregate=value) | count for name, value in values.items()}


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
