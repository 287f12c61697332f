"""What each metric is called, measured in, and which way it should go.

A table of facts, so that reports, command lines and result files say the same. Whoever measures something owns its
rows: `CORE` holds those of `evaluate`, each suite and the attacks hold theirs, and `METRICS` is the look-up of all,
in the order of every table. `higher_is` is "better", "worse" or "neither"; a `target` says where the value should end
up instead. A metric that can be taken of several sources at once (`by_source`) has one name more for each:
`choice_accuracy_wmdp` beside `choice_accuracy_mmlu`.

A forget metric that "should fall" should fall to the retrained model's value and no further: 0 is not forgetting but
suppression. Tables therefore show the retrained model beside it.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One metric.

    Attributes:
        label: for a table.
        group: "forget", "retain", "utility" or "privacy".
        unit: "nats/token", "%", or empty for a pure number.
        higher_is: whether larger values are wanted.
        meaning: one sentence for a reader outside the field.
        target: the wanted value, where that is neither extreme.
        by_source: whether several sources are measured apart, each under the metric's name with its own behind it.
    """

    label: str
    group: str
    unit: str
    higher_is: Literal["better", "worse", "neither"]
    meaning: str
    target: float | None = None
    by_source: bool = False


_NATS = "nats/token"
_PROBABILITY = "How likely the model finds the true answer, per token."
_EXACT = "Share of the answer's tokens the model would write itself, given those before."
_RECALL = "Share of the true answer's words, in order, in what the model writes."
_KL = "Distance of the answers' distribution from that of the model retrained without the forget set."
_ATTACK = "Chance that an attacker ranks a forget text above one never seen; one half is blind guessing."
_TUG = "1 when the model behaves like the retrained one on what was to be forgotten and on what was to be kept."

CORE: dict[str, Metric] = {
    "forget_kl": Metric("KL to retrained, forget", "forget", _NATS, "worse", _KL),
    "forget_total_variation": Metric("Total variation to retrained, forget", "forget", "", "worse", _KL),
    "forget_quality": Metric(
        "Forget Quality, KS p",
        "forget",
        "",
        "better",
        "Probability of truth ratios this different if the model had been retrained without the forget set.",
    ),
    "forget_probability": Metric("Probability, forget", "forget", "", "worse", _PROBABILITY),
    "forget_nll": Metric("NLL, forget", "forget", _NATS, "better", "Surprise at the true answer, per token."),
    "forget_exact_memorisation": Metric("Exact memorisation, forget", "forget", "", "worse", _EXACT),
    "forget_extraction_strength": Metric(
        "Extraction strength, forget",
        "forget",
        "",
        "worse",
        "Share of the answer that comes out word for word once its beginning is given.",
    ),
    "forget_truth_ratio": Metric(
        "Truth ratio, forget", "forget", "", "better", "1: right and wrong answers look equally likely to the model."
    ),
    "forget_rouge_l": Metric("ROUGE-L recall, forget", "forget", "", "worse", _RECALL),
    "forget_loss_auc": Metric("Loss attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_min_k_auc": Metric("Min-K% attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_min_k_plus_plus_auc": Metric("Min-K%++ attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_zlib_auc": Metric("ZLib attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "retain_kl": Metric("KL to retrained, retain", "retain", _NATS, "worse", _KL),
    "retain_total_variation": Metric("Total variation to retrained, retain", "retain", "", "worse", _KL),
    "retain_probability": Metric("Probability, retain", "retain", "", "better", _PROBABILITY),
    "retain_nll": Metric("NLL, retain", "retain", _NATS, "worse", "Surprise at the true answer, per token."),
    "retain_exact_memorisation": Metric("Exact memorisation, retain", "retain", "", "better", _EXACT),
    "retain_truth_ratio": Metric(
        "Truth ratio, retain", "retain", "", "better", "Near 1: the right answer is far likelier than wrong ones."
    ),
    "retain_rouge_l": Metric("ROUGE-L recall, retain", "retain", "", "better", _RECALL),
    **{
        f"{part}_{name}": Metric(f"{label}, {title}", "utility", "", "better", meaning)
        for part, title in (("authors", "real authors"), ("world", "world facts"))
        for name, label, meaning in (
            ("probability", "Probability", "Share of probability on the true answer among the wrong ones listed."),
            ("truth_ratio", "Truth ratio", "Near 1: the right answer is far likelier than wrong ones."),
            ("rouge_l", "ROUGE-L recall", _RECALL),
        )
    },
    "model_utility": Metric(
        "Model utility", "utility", "", "better", "Harmonic mean of nine numbers on what was to be kept."
    ),
    "tug_of_war_kl": Metric("Tug of war, KL", "utility", "", "better", _TUG),
    "tug_of_war_total_variation": Metric("Tug of war, total variation", "utility", "", "better", _TUG),
}

METRICS: dict[str, Metric] = dict(CORE)


def family(name: str) -> str | None:
    """The name in `METRICS` under which a metric stands: its own, or without the source; None for no metric.

    Example:
        >>> family("forget_nll"), family("choice_accuracy_mmlu"), family("forget_nll_mmlu")
        ('forget_nll', 'choice_accuracy', None)
    """
    if name in METRICS:
        return name
    # What stands before the source, which is not empty.
    return next((own for own, row in METRICS.items() if row.by_source and name[:-1].startswith(f"{own}_")), None)


def about(name: str) -> Metric:
    """The row of a metric; of one that is measured on one of several sources, with the source in its label.

    Errors:
        KeyError: no metric is called so.

    Example:
        >>> about("choice_accuracy_mmlu").label
        'Multiple choice, accuracy: mmlu'
    """
    own = family(name)
    if own is None:
        raise KeyError(name)
    row = METRICS[own]
    return row if own == name else row._replace(label=f"{row.label}: {name.removeprefix(f'{own}_')}")


def ordered(names: Iterable[str]) -> list[str]:
    """Those of the names that are metrics, once each and in the order of every table.

    Example:
        >>> ordered(["retain_nll", "choice_accuracy_wmdp", "forget_nll", "choice_accuracy_mmlu", "seconds"])
        ['forget_nll', 'retain_nll', 'choice_accuracy_wmdp', 'choice_accuracy_mmlu']
    """
    order = {name: place for place, name in enumerate(METRICS)}
    known = [(order[own], name) for name in dict.fromkeys(names) if (own := family(name)) is not None]
    return [name for _, name in sorted(known, key=lambda pair: pair[0])]


def register(rows: Mapping[str, Metric]) -> None:
    """Adds a family's rows to `METRICS`, so that results and reports know its metrics.

    `jaxunlearn.evals` does so for its own families; another package calls it once for its own.

    Errors:
        ValueError: a name that stands for another metric already.

    Example:
        >>> register({"forget_kl": CORE["forget_kl"]})  # the same row again changes nothing
        >>> register({"forget_kl": CORE["retain_kl"]})
        Traceback (most recent call last):
        ...
        ValueError: a metric called 'forget_kl' exists already (KL to retrained, forget); choose another name
    """
    for name, row in rows.items():
        if METRICS.get(name, row) != row:
            raise ValueError(f"a metric called {name!r} exists already ({METRICS[name].label}); choose another name")
    METRICS.update(rows)
