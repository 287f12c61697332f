"""What an unlearning run says about itself in its output folder: numbers for the record, and a model card."""

from pathlib import Path
from typing import Any

from jaxunlearn.methods import Method
from jaxunlearn.runs import record as records
from jaxunlearn.runs.forget import Forgotten
from jaxunlearn.runs.references import Stored
from jaxunlearn.runs.settings import Unlearn
from jaxunlearn.sharding import on_host
from jaxunlearn.unlearn import StepInfo

STOPPED_BY = {
    "steps": "--steps",
    "streamed": "--stream-retain, which takes one",
    "unseen": "the forget loss reaching that of unseen text",
    "goal": "--stop-when",
    "limit": "--keep-while",
}


def facts(method: Method, done: Forgotten, stored: Stored, stop: float | None, seconds: float) -> dict[str, Any]:
    """Numbers for the record: where the run began and ended, what it cost, its certificate, every step."""
    return {
        "method": method.name,
        "steps": len(done.history),
        "stopped": done.stopped,
        "stop_at_nll": stop,
        "counterfactual_coverage": None if stored.covered is None else float(stored.covered.mean()),
        "counterfactual_nll": stored.unseen_nll,
        "corrupted": stored.corrupted,
        "generic_alpha": stored.alpha,
        "products": done.products,
        "seconds": round(seconds, 1),
        "certificate": certificate_facts(done.info),
        "history": done.history,
    }


def certificate_facts(info: StepInfo) -> dict[str, Any]:
    """The certificate of a step with what its solves reported, flat; what the step did not have is left out."""
    info = on_host(info)
    found = {} if info.certificate is None else {k: v for k, v in info.certificate._asdict().items() if v is not None}
    if info.curvature is not None:
        found |= info.curvature.solve._asdict()
        found |= {"damping": info.curvature.used_damping, "span_share": info.curvature.span_share}
    if info.noise is not None:
        found |= {"noise_status": info.noise.solve.status, "noise_residual": info.noise.solve.relative_residual}
    return found


def card(settings: Unlearn, forgotten: int, kept: int, certificate: str, done: Forgotten) -> str:
    """The README.md of the output folder."""
    lines = "\n".join(f"- {line}" for line in certificate.splitlines())
    few = settings.forget_coreset_size
    taken = f" Steps were taken on {few} of the former, chosen by {settings.forget_coreset}." if few else ""
    return (
        f"# Unlearned model\n\nMade by jaxunlearn with `{settings.method}` (seed {settings.seed}, {len(done.history)} "
        f"steps) from `{Path(settings.model).name}`: {forgotten} records forgotten, {kept} retain records given.{taken}"
        "\n\n"
        f"Certificate of the last step:\n\n{lines}\n\nSettings, input hashes and the history of every step are in "
        f"`{records.FILE}`. What unlearning does not promise: it is no proof that the text cannot be recovered by "
        "fine-tuning or other attacks.\n"
    )
