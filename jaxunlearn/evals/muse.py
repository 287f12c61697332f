r"""The metrics of MUSE (Shi et al. 2024, arXiv 2407.06460): six ways to ask whether a corpus was forgotten.

* **VerbMem**: does the model continue a passage in the words of the original? ROUGE-L F1 (no stemming) between its
  greedy continuation of 128 tokens and the original cut to 128 tokens.
* **KnowMem**: does it answer questions about the corpus? ROUGE-L F1 of a greedy 32-token answer after a few solved
  examples, cut where the model starts a new paragraph or a new question; on forget, and on retain, which is utility.
* **PrivLeak**: does membership show? From the AUC of Min-40% between forget and holdout, relative to a retrained model.
* **Scalability** and **sustainability** are curves of these over growing forget sets and over requests in a row.

Two conventions of PrivLeak are in use, and both are here by name. MUSE takes the AUC in which the *holdout* is the
positive class and a likelier text scores higher, so that a model that memorised has AUC near 0. OpenUnlearning takes
the membership AUC, near 1 for such a model, and turns it round inside the formula.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxunlearn.evals.bootstrap import CONFIDENCE, RESAMPLES, Interval
from jaxunlearn.evals.privacy import auc_draws

VERBMEM_TOKENS = 128
KNOWMEM_TOKENS = 32
MIN_K = 0.4
_CUTS = ("\n\n", "\nQuestion", "Question:")


def rouge_l_f1(generated: Sequence[str], truth: Sequence[str]) -> Float[np.ndarray, " N"]:
    """ROUGE-L F1 without stemming (Lin 2004): `2PR / (P + R)`, P and R from the longest common subsequence of words.

    Example:
        >>> rouge_l_f1(["he was born"], ["he was"]).round(6).tolist()
        [0.8]
        >>> rouge_l_f1(["", "writers"], ["a", "writer"]).tolist()
        [0.0, 0.0]
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(generated, truth, strict=True)
    return np.array([scorer.score(target=t, prediction=g)["rougeL"].fmeasure for g, t in pairs], dtype=np.float64)


def knowmem_prompt(question: str, solved: Sequence[tuple[str, str]]) -> str:
    """The few-shot prompt: solved questions with a blank line after each, then the one to answer.

    Example:
        >>> knowmem_prompt("Who?", [("Where?", "Here.")])
        'Question: Where?\\nAnswer: Here.\\n\\nQuestion: Who?\\nAnswer: '
    """
    shots = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in solved)
    return f"{shots}Question: {question}\nAnswer: "


def cut_answer(text: str) -> str:
    """What stands before the first blank line or the next question.

    Example:
        >>> cut_answer("Ada.\\nQuestion: And who else?"), cut_answer("Ada.\\n\\nShe"), cut_answer("Ada.")
        ('Ada.', 'Ada.', 'Ada.')
    """
    return text[: min((at for at in map(text.find, _CUTS) if at >= 0), default=len(text))]


def privleak_muse(auc: float, auc_retrained: float) -> float:
    """`(AUC - AUC_retrained) / AUC_retrained * 100`, percent; 0 is the retrained model.

    Args:
        auc, auc_retrained: MUSE's AUC, holdout positive, by the mean of the lowest 40% token log-probs. Below 0: the
            forget set is still recognisable as known (under-unlearned); above 0: as pushed down (over-unlearned).

    Example:
        >>> privleak_muse(0.0, 0.5), privleak_muse(0.75, 0.5)
        (-100.0, 50.0)
    """
    return (auc - auc_retrained) / auc_retrained * 100.0 if auc_retrained else float("nan")


def privleak_open_unlearning(auc: float, auc_retrained: float) -> float:
    """`((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained) * 100`, percent; 0 is the retrained model.

    Args:
        auc, auc_retrained: membership AUC, where a higher score says member, as everywhere in `privacy`.

    Example:
        >>> privleak_open_unlearning(1.0, 0.5), privleak_open_unlearning(0.25, 0.5)
        (-100.0, 50.0)
    """
    return privleak_muse(1.0 - auc, 1.0 - auc_retrained)


def privleak_interval(
    scores: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " M"]],
    retrained: tuple[Float[np.ndarray, " N"], Float[np.ndarray, " M"]],
    *,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of PrivLeak, the same in both forms: texts are drawn, and asked of both models alike.

    Args:
        scores: of forget and of holdout texts under the model, higher ones saying member.
        retrained: the same under the retrained model.
        seed: of the draws.

    Returns:
        `(low, high)`, percent; not finite where too many draws have a retrained AUC of 1, relative to which nothing is.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> unseen = rng.normal(size=40), rng.normal(size=40)
        >>> privleak_interval(unseen, unseen)
        (0.0, 0.0)
        >>> low, high = privleak_interval((unseen[0] + 9, unseen[1]), unseen)
        >>> low == high == -100.0  # all of forget above all of holdout, in every draw
        True
    """
    ours, theirs = (auc_draws(*sides, RESAMPLES, np.random.default_rng(seed))[1] for sides in (scores, retrained))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = np.where(ours == theirs, 0.0, (theirs - ours) / (1.0 - theirs) * 100.0)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
