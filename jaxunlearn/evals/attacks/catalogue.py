"""What each attack's number is called, measured in, and which way it should go: rows of `evals.catalogue`."""

from jaxunlearn.evals.catalogue import Metric

_ATTACK = "Chance that an attacker ranks a forget text above one never seen; one half is blind guessing."
_ROBUST = "1: nothing came back; 0: all of it did."
_RETURN = "How much more of the answer the model knows when asked in the best of other ways than as it was taught."

ATTACK_METRICS: dict[str, Metric] = {
    "forget_gradient_norm_auc": Metric("Gradient norm attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_reference_auc": Metric("Reference attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_neighbourhood_auc": Metric("Neighbourhood attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_recall_auc": Metric("ReCaLL attack AUC", "privacy", "", "neither", _ATTACK, 0.5),
    "forget_document_auc": Metric(
        "Document audit AUC",
        "privacy",
        "",
        "neither",
        "Chance that an auditor who knows how learned documents look ranks a forget document above one never seen.",
        0.5,
    ),
    "probe_auc": Metric(
        "Linear probe AUC, best layer",
        "privacy",
        "",
        "worse",
        "Chance that a straight cut through the hidden states of some layer tells a forget text from one never seen.",
    ),
    "canary_exposure": Metric(
        "Exposure of canaries",
        "privacy",
        "bits",
        "neither",
        "Bits of an inserted secret that the model gives away; 1.44 on average for one it never saw.",
        1.44,
    ),
    "logit_lens_memorisation": Metric(
        "Exact memorisation, best layer",
        "forget",
        "",
        "worse",
        "Share of the answer's tokens that come first when the head reads the best layer instead of the last.",
    ),
    "paraphrase_return": Metric("Return under paraphrase", "forget", "", "worse", _RETURN),
    "prefix_return": Metric("Return behind prefixes", "forget", "", "worse", _RETURN),
    "relearning_robustness": Metric("Robustness to relearning", "forget", "", "better", _ROBUST),
    "quantisation_int8_robustness": Metric("Robustness to int8", "forget", "", "better", _ROBUST),
    "quantisation_int4_robustness": Metric("Robustness to int4", "forget", "", "better", _ROBUST),
}
