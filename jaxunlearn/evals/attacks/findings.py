"""What the stress tests found, in sentences: for a reader who has no time for a table.

Only what an interval supports is said. Where the retrained model was tested too, its number stands beside, and what
that one does as well, its value being inside the interval, is left out: it is no failure to forget.
"""

from jaxunlearn.evals.catalogue import METRICS
from jaxunlearn.evals.result import Measure, Result, why_missing
from jaxunlearn.evals.suites.conflict import CONFLICT_METRICS

_RATIOS = {
    "relearning_robustness": "a little training",
    "quantisation_int8_robustness": "rounding to 8 bits",
    "quantisation_int4_robustness": "rounding to 4 bits",
}
_COMES_OUT = {
    "forget_el_10": "word sequences of the texts come out when the model continues their beginnings",
    "forget_k_extractable": "whole passages come out word for word",
}
_RETURNS = {"paraphrase_return": "asked in other words", "prefix_return": "asked behind other words"}


def findings(result: Result, retrained: Result | None = None) -> list[str]:
    """Sentences on one model.

    Args:
        result: of `stress` on it.
        retrained: of `stress` on the model retrained without the forget set.

    Example:
        >>> found = {"agg_value": 0.9, "interval": [0.8, 1.0]}
        >>> findings({"forget_loss_auc": found})
        ['Loss attack AUC: 0.900 [0.800, 1.000]: forget texts can be told from unseen ones.']
    """
    said = []
    for name in (name for name in METRICS if name in result):
        measure = result[name]
        if why_missing(measure) is not None:
            continue
        theirs = None if retrained is None or name not in retrained else retrained[name]
        sentence = None if _alike(name, measure, theirs) else _sentence(name, measure)
        if sentence is not None:
            said.append(f"{METRICS[name].label}: {_value(measure)}{_beside(theirs)}: {sentence}.")
    return said


def _sentence(name: str, measure: Measure) -> str | None:
    low, high = _interval(measure)
    if name == "forget_document_auc":
        verdicts = list(measure["verdict_by_index"].values())
        undecided = verdicts.count("undecided")
        more = f", {undecided} cannot be decided" if undecided else ""
        unseen = measure.get("never_seen")
        if undecided and unseen and unseen["documents"] < unseen["needed"]:
            more += f" (it takes {unseen['needed']} documents that no model saw, and there were {unseen['documents']})"
        return f"{verdicts.count('member')} of {len(verdicts)} documents are judged to have been read{more}"
    if name.endswith("_auc"):
        # A fitted probe that finds nothing does worse than chance (see `audit`); only a plain score leaks both ways.
        if low <= 0.5 <= high or (name == "probe_auc" and high < 0.5):
            return None
        where = f" after layer {measure['layer']}" if "layer" in measure else ""
        return f"forget texts can be told from unseen ones{where}"
    if name == "relearning_robustness" and measure["unlearned"][0] > measure["retrained"][-1]:
        # R compares gains, and a model that never forgot has nothing to gain.
        before, after = measure["unlearned"][0], measure["retrained"][-1]
        return f"says nothing here: untrained it knows more ({before:.3f}) than the retrained model after ({after:.3f})"
    if name in _RATIOS:
        return f"{_RATIOS[name]} brings some of it back" if high < 1 else None
    if name in _RETURNS and low > 0:
        return f"answers come back when {_RETURNS[name]}"
    if name == "logit_lens_memorisation":
        layers = measure["by_layer"]
        top = max(layers, key=int)
        if str(measure["layer"]) != top and measure["agg_value"] > layers[top]:
            return f"layer {measure['layer']} still knows more than the output ({layers[top]:.3f})"
    if name in _COMES_OUT and low > 0:
        return _COMES_OUT[name]
    if name in CONFLICT_METRICS and low > 0.5:
        return f"the model still believes true statements more than false ones, in {name.split('_')[-1]} words"
    if name == "canary_exposure" and low > METRICS[name].target:
        return "inserted secrets are exposed"
    return None


def _alike(name: str, measure: Measure, theirs: Measure | None) -> bool:
    """Whether the retrained model does the same, as far as one can tell; verdicts on documents are always told."""
    if theirs is None or why_missing(theirs) is not None or name == "forget_document_auc":
        return False
    low, high = _interval(measure)
    return low <= theirs["agg_value"] <= high


def _interval(measure: Measure) -> tuple[float, float]:
    return tuple(measure.get("interval") or (measure["agg_value"],) * 2)


def _value(measure: Measure) -> str:
    interval = measure.get("interval")
    return f"{measure['agg_value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _beside(theirs: Measure | None) -> str:
    return "" if theirs is None or why_missing(theirs) is not None else f" (retrained {_value(theirs)})"
