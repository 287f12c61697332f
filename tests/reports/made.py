"""All that a report can show, of a made-up model: 40 records to be forgotten, 30 unseen ones, eight steps."""

import numpy as np

from jaxunlearn.evals.result import by_index, measured, skipped
from jaxunlearn.reports import Answer, Evidence, Gap, Identity

RECORDS = 40
SECRET = "MARKER-TEXT-OF-SOMEBODY"


def result(loss, kept, *, kl=1.0, unseen=5.0, seed=0):
    """Of a model whose loss on the forget records scatters around `loss`."""
    draws = np.random.default_rng(seed)
    losses, others = loss + draws.exponential(0.5, RECORDS), unseen + draws.normal(0.0, 1.0, 30)
    auc = float(np.mean(losses[:, None] < others))
    attacked = {"aggregate": auc, "interval": [max(auc - 0.1, 0.0), min(auc + 0.1, 1.0)]}
    words = {str(i): f"{SECRET} {i}" for i in range(RECORDS)}
    return {
        "forget_kl": measured("forget_kl", np.full(RECORDS, kl)),
        "forget_nll": measured("forget_nll", losses),
        "forget_exact_memorisation": measured("forget_exact_memorisation", np.exp(-losses)),
        "forget_rouge_l": measured("forget_rouge_l", np.exp(-losses / 2), generated_by_index=words),
        "forget_loss_auc": measured("forget_loss_auc", -losses, **attacked, holdout_by_index=by_index(-others)),
        "retain_kl": measured("retain_kl", np.full(50, kl / 20)),
        "retain_exact_memorisation": measured("retain_exact_memorisation", np.full(50, kept)),
        "model_utility": skipped("model_utility", "no authors, world set given"),
    }


COLUMNS = {
    "before": result(0.1, 1.0, kl=4.0),
    "after": result(4.8, 0.995, kl=0.9, seed=1),
    "a_method_with_a_long_name": result(3.0, 0.9, kl=2.5, seed=2),
    "retrained": result(4.9, 1.0, kl=1e-9, seed=3),
}
VERDICTS = {str(i): "undecided" for i in range(RECORDS)}
AUDIT = {
    "forget_document_auc": measured(
        "forget_document_auc", np.full(RECORDS, 0.5), aggregate=0.5, interval=[0.4, 0.6], verdict_by_index=VERDICTS
    )
}
STEPS = [
    {"step": i, "forget_nll": 0.5 * i, "retain_nll": 0.1, "retain_kl": 1e-4, "residual": 0.5**i, "damping": 0.1,
     "update_norm": 1.0, "objective": 1.0, "products": 4, "status": 0, "applied": 1.0}
    for i in range(1, 9)
]  # fmt: skip
CERTIFICATE = {
    "forget_before": 3.9, "forget_after": 4.4, "forget_predicted": 0.45, "retain_before": 0.1, "retain_after": 0.11,
    "retain_predicted": 0.012, "kl_predicted": 1e-4, "kl_measured": 1.2e-4, "retain_grad_before": 0.3,
    "retain_grad_after": 0.4, "status": 0, "steps": 3, "relative_residual": 1e-3, "min_curvature": -0.01,
    "max_curvature": 20.0, "damping": 0.1, "span_share": 1.0, "residual_norms": [2.0, 1.0, 0.1, 0.002, 0.002],
    "alphas": [5.0, 3.0, -0.5, 0.0], "betas": [2.0, 1.0, 0.0, 0.0],
}  # fmt: skip
HASHES = [Identity(role, f"folder/{role}", 16 * "0123", "unchanged") for role in ("model", "forget", "evaluation")]
EVIDENCE = Evidence(
    title="Unlearning report on a model",
    lead="after",
    columns=COLUMNS,
    about=["Made from “before” by newton_removal: 8 steps in 3 s."],
    floor={"forget_kl": 1.0, "retain_kl": 0.04},
    costs={"steps": {"after": 8}},
    attacked={name: {"forget_zlib_auc": COLUMNS[name]["forget_loss_auc"]} | AUDIT for name in ("after", "retrained")},
    history={"after": STEPS},
    stop=4.0,
    certificate=CERTIFICATE,
    config={"method": "newton_removal", "text": {"max_length": None}},
    environment={"jax": "0.10.2"},
    identities=HASHES,
    requests=[
        {
            "Request": "1",
            "When": "2026-11-25 13:20:00 UTC",
            "Method": "counterfactual_matching",
            "Records": "40",
            "File": "a-folder/forget.jsonl",
            "KL to retrained now": "not measured",
            "Weights before": "1c5ddc918ad1",
            "Weights after": "276d33ac51d0",
        }
    ],
    gaps=[Gap("Whether a little training brings it back.", "jaxunlearn attack --model " + "folder/" * 30 + "gone")],
)
ANSWERS = [Answer(f"{SECRET}?", SECRET, SECRET, "Nobody.", "", part=part) for part in ("To be forgotten", "To be kept")]
TEXTS = [f"{SECRET} {i}" for i in range(RECORDS)]
RUNS = {
    name: [
        {
            "forget_nll": 4.5 * (1 - (0.55 + 0.05 * i) ** j),
            "retain_nll": 0.1 + 0.01 * i * j,
            "retain_kl": 1e-4 * (i + 1),
        }
        for j in range(6 + i)
    ]
    for i, name in enumerate(
        ["request 1", "request 2", "npo", "gauss_newton_ascent", "counterfactual_matching", "rmu", "simnpo-evaluation"]
    )
}
"""Seven runs beside that of the page."""
