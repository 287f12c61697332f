"""The certificate of a run as rows for a reader: what the last step was predicted to do, and what it did.

No number here is inferred from the method; all were measured on the last batch, before and after the step. The method's
own promise about a step is worth what its predictions were: where predicted and measured disagree, the local model that
the step was taken from did not hold.
"""

from collections.abc import Mapping
from typing import Any

from jaxunlearn.solvers import Status


def certificate_rows(certificate: Mapping[str, Any]) -> dict[str, str]:
    """Name to value, in words; empty without a certificate.

    Args:
        certificate: the fields of `certificate.Certificate`, and those of the solve where there was one.

    Example:
        >>> certificate_rows({"forget_before": 1.0, "forget_after": 1.5, "forget_predicted": 0.4})
        {'Loss on forget, nats per token': '1.0000 before, 1.5000 after; change +5.00e-01, predicted +4.00e-01'}
    """
    c, rows = certificate, {}
    for name in ("forget", "retain"):
        before, after = c.get(f"{name}_before"), c.get(f"{name}_after")
        if before is not None and after is not None:
            predicted = c.get(f"{name}_predicted")
            foreseen = "" if predicted is None else f", predicted {predicted:+.2e}"
            change = f"{before:.4f} before, {after:.4f} after; change {after - before:+.2e}{foreseen}"
            rows[f"Loss on {name}, nats per token"] = change
    if c.get("kl_measured") is not None:
        rows["Cost on retain, KL in nats per token"] = f"{c['kl_measured']:.2e}, predicted {c['kl_predicted']:.2e}"
    if c.get("retain_grad_before") is not None:
        rows["Gradient norm on retain"] = f"{c['retain_grad_before']:.2e} before, {c['retain_grad_after']:.2e} after"
    rows |= _solve(c)
    if c.get("noise_status") is not None:
        status = Status(int(c["noise_status"]))
        rows["Noise"] = f"relative error {c['noise_residual']:.2e}; {status.message}"
    return rows


def _solve(c: Mapping[str, Any]) -> dict[str, str]:
    """Rows on the linear solve."""
    if c.get("status") is None:
        return {}
    status = Status(int(c["status"]))
    rows = {"Solve": f"{int(c['steps'])} products; {status.message}"}
    for key, label in (
        ("relative_residual", "Relative residual of the solve"),
        ("damping", "Damping"),
        ("min_curvature", "Lowest curvature met"),
        ("max_curvature", "Highest curvature met"),
        ("span_share", "Share of the step in the sampled span"),
    ):
        if isinstance(c.get(key), int | float):
            rows[label] = f"{c[key]:.3g}"
    return rows
