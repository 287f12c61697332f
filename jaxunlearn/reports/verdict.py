"""From numbers to a sentence a lawyer can read, by a rule stated here and nowhere else.

*Forgotten*: the model is no further from the retrained one, in KL on the forget set, than another retraining would be
(the seed floor). *Kept*: of the answers to be kept it would write at most `tolerance` fewer tokens than before. A
model that is too far away may err on either side, so the sentence says which: it still knows, or it was pushed past
the retrained model, which an outsider can notice as well. *Recognised*: the interval of the loss attack's AUC leaves
out the retrained model's, or a stress test found traces; to answer like the retrained model on average is then no full
success. Whatever number is missing leaves its question open, and so do numbers that belong to another model or to other
records (`unjudged`); no headline is given for free.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxunlearn.evals.result import Result, why_missing
from jaxunlearn.reports.layout import number

FEW = 30


class Verdict(NamedTuple):
    """What the page is about, in words that need no background.

    Attributes:
        headline: one sentence.
        sentences: what was found and what it does not show.
        good: True for a success, False for a failure, None where there is nothing to judge.
    """

    headline: str
    sentences: tuple[str, ...] = ()
    good: bool | None = None


def judge(
    before: Result,
    after: Result,
    retrained: Result | None = None,
    *,
    floor: Mapping[str, float] | None = None,
    tolerance: float = 0.01,
    traces: Sequence[str] = (),
) -> Verdict:
    """The verdict on one unlearned model.

    Args:
        before: result of the model before unlearning.
        after: result of the unlearned model.
        retrained: result of the retrained model, to tell too little forgetting from too much.
        floor: KL between two retrained seeds; `floor["forget_kl"]` is needed to judge forgetting.
        tolerance: share of retain tokens that may be lost.
        traces: what stress tests found (`evals.attacks.findings`), one sentence a test.

    Example:
        >>> before, after = {"retain_exact_memorisation": {"agg_value": 1.0}}, {
        ...     "retain_exact_memorisation": {"agg_value": 0.995}, "forget_kl": {"agg_value": 2.06}}
        >>> verdict = judge(before, after, floor={"forget_kl": 2.6})
        >>> verdict.good, verdict.headline
        (True, 'The model answers like one that never saw what was to be forgotten, and kept the rest.')
    """
    forgotten, on_forget = _forgotten(after, retrained, (floor or {}).get("forget_kl"))
    kept, on_retain = _kept(before, after, tolerance)
    recognised, on_attack = _recognised(after, retrained or {})
    headlines = {
        (True, True): "The model answers like one that never saw what was to be forgotten, and kept the rest.",
        (True, False): "The model answers like one that never saw what was to be forgotten, but lost some of the rest.",
        (False, True): "The model does not answer like one that never saw what was to be forgotten; it kept the rest.",
        (False, False): "The model neither answers like one that never saw what was to be forgotten nor kept the rest.",
        (True, None): "The model answers like one that never saw what was to be forgotten.",
        (False, None): "The model does not answer like one that never saw what was to be forgotten.",
        (None, True): "Whether the model has forgotten is open; it kept the rest.",
        (None, False): "Whether the model has forgotten is open; it lost some of the rest.",
        (None, None): "Neither forgetting nor keeping could be judged.",
    }
    headline = headlines[forgotten, kept]
    good = False if False in (forgotten, kept) else True if (forgotten, kept) == (True, True) else None
    if recognised and forgotten:
        headline = headline.removesuffix(".") + "; but an attack on its loss still recognises the forgotten texts."
        good = None if good else good
    elif traces and forgotten:
        headline = headline.removesuffix(".") + "; but stress tests still find traces of it."
        good = None if good else good
    if traces:
        found = f"{len(traces)} stress tests found" if len(traces) > 1 else "One stress test found"
        on_attack = [*on_attack, f"{found} traces of what was to be forgotten; they are listed below."]
    return Verdict(headline, (*on_forget, *on_attack, *on_retain, *_few(after)), good)


def unjudged(doubts: Sequence[str]) -> Verdict:
    """The verdict where numbers are at hand that may not be about this model or this request: none.

    Example:
        >>> unjudged(["They were measured on other weights."]).headline
        'Whether this model has forgotten is not judged: the numbers at hand may not be about it.'
    """
    headline = "Whether this model has forgotten is not judged: the numbers at hand may not be about it."
    return Verdict(headline, (*doubts, "The numbers are shown below all the same."))


def unmeasured(known: Sequence[str] = ()) -> Verdict:
    """The verdict on a model nobody has measured: none; `known` are facts that a reader might take for one."""
    return Verdict("Whether this model has forgotten has not been measured.", tuple(known))


def _few(after: Result) -> list[str]:
    """A warning where the sample is small; nothing where its size is not known."""
    sizes = {
        word: after.get(f"{part}_nll", {}).get("n") for part, word in (("forget", "forgotten"), ("retain", "kept"))
    }
    said = [f"{size} to be {word}" for word, size in sizes.items() if size and size < FEW]
    return [f"Of records, only {' and '.join(said)} were measured: numbers on so few are rough."] if said else []


def _forgotten(after: Result, retrained: Result | None, floor: float | None) -> tuple[bool | None, list[str]]:
    distance = _value(after, "forget_kl")
    if distance is None or floor is None:
        lacking = _reason(after, "forget_kl") if distance is None else "the distance between two retrainings is unknown"
        return None, [f"Forgetting was not judged: {lacking}."]
    versus = f"({number(distance)} against {number(floor)} nats per token)"
    if distance <= floor:
        found = "On what was to be forgotten it is no further from a retrained model than another retraining is"
        return True, [f"{found} {versus}."]
    found = f"On what was to be forgotten it is further from a retrained model than another retraining is {versus}."
    mine, theirs = _value(after, "forget_nll"), _value(retrained or {}, "forget_nll")
    if mine is None or theirs is None:
        return False, [found]
    if mine < theirs:
        return False, [found, "It still finds the forgotten answers likelier than a model that never saw them."]
    return False, [found, "It avoids the forgotten answers more than a model that never saw them, which shows too."]


def _recognised(after: Result, retrained: Result) -> tuple[bool, list[str]]:
    key = "forget_loss_auc"
    mine, theirs = _value(after, key), _value(retrained, key)
    interval = after.get(key, {}).get("interval")
    if mine is None or theirs is None or interval is None or interval[0] <= theirs <= interval[1]:
        return False, []
    share = f"{100 * mine:.0f}% of the time, against {100 * theirs:.0f}% on the retrained model"
    return True, [f"An attacker who sees the loss ranks a forgotten text above one never seen {share}."]


def _kept(before: Result, after: Result, tolerance: float) -> tuple[bool | None, list[str]]:
    key = "retain_exact_memorisation"
    old, new = _value(before, key), _value(after, key)
    if old is None or new is None:
        return None, [f"Keeping was not judged: {_reason(before if old is None else after, key)}."]
    shares = f"{100 * new:.1f}% of the answers' tokens are right, {100 * old:.1f}% before"
    return old - new <= tolerance + 1e-9, [f"On what was to be kept {shares}."]


def _value(result: Result, key: str) -> float | None:
    return result.get(key, {}).get("agg_value")


def _reason(result: Result, key: str) -> str:
    return why_missing(result.get(key, {})) or "no value"
