"""What an attacker sees: the losses of texts that were to be forgotten beside those of texts no model saw, and the ROC.

A text that a model has learned has a low loss, so whoever may ask for losses can guess which texts it was trained on.
The guess is only as good as the two distributions are apart. The ROC curve says how good: for every threshold on the
loss, the share of forget texts found (true positive rate) against the share of unseen texts taken for them (false
positive rate). The area under it, AUC, is the chance that a forget text is ranked before an unseen one; one half, the
diagonal, is blind guessing, and an AUC well under one half gives the forget set away as much as one above it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.reports.canvas import INK, PALETTE, deliver, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 60
_LINES = (("red", (0, (1, 1))), ("violet", "-"), ("green", (0, (5, 2))), ("ochre", "-."))


class Losses(NamedTuple):
    """Loss of each text under one model, nats per token.

    Attributes:
        forget: of the texts that were to be forgotten.
        unseen: of comparable texts that no model saw.
    """

    forget: Float[np.ndarray, " N"]
    unseen: Float[np.ndarray, " M"]


def roc(losses: Losses) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"], float]:
    """False and true positive rates of "a low loss means member", by threshold, and the area under them.

    Example:
        >>> false, true, area = roc(Losses(np.array([0.1, 2.0]), np.array([1.0, 3.0])))
        >>> false.tolist(), true.tolist(), area
        ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0], 0.75)
    """
    from sklearn.metrics import auc, roc_curve

    members = np.repeat([1, 0], [losses.forget.size, losses.unseen.size])
    false, true, _ = roc_curve(members, -np.concatenate(losses), drop_intermediate=False)
    return false, true, float(auc(false, true))


def loss_distributions(
    losses: Mapping[str, Losses], path: str | Path | None = None, *, format: Literal["svg", "png"] = "svg"
) -> bytes:
    """A histogram for each model, on common axes, and the ROC curves of all in the last panel.

    Args:
        losses: model name to its losses, at most four.
        path: also write the picture there (a new file; its suffix decides the format).
        format: "svg" or "png".

    Errors:
        ValueError: no model, more than four, or one without finite losses on either side.

    Example:
        >>> picture = loss_distributions({"after": Losses(np.array([1.0, 2.0]), np.array([1.5, 2.5]))})
        >>> picture.lstrip().startswith(b"<?xml")
        True
    """
    if not 1 <= len(losses) <= len(_LINES):
        raise ValueError(f"{len(losses)} models: loss_distributions draws one to {len(_LINES)} beside each other")
    for name, (forget, unseen) in losses.items():
        if not (forget.size and unseen.size and np.isfinite([*forget, *unseen]).all()):
            raise ValueError(f"{name}: the ROC needs finite losses of forget and of unseen texts")
    panels = len(losses) + 1
    across = 2 if panels < 5 else 3
    figure, axes = sheet(-(-panels // across), across, (9.0, 3.0 * -(-panels // across)))
    everything = np.concatenate([side for pair in losses.values() for side in pair])
    bins = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-6), 25)
    for ax, (name, pair) in zip(axes, losses.items(), strict=False):
        _histogram(ax, pair, bins)
        ax.set_title(name, loc="left", fontsize=10, color=INK, parse_math=False)
    for ax in axes[1 : len(losses)]:
        ax.sharey(axes[0])
    axes[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    _roc_panel(axes[len(losses)], losses)
    for ax in axes[panels:]:
        ax.set_visible(False)
    figure.tight_layout()
    return deliver(figure, path, format)


def _histogram(ax: "Axes", losses: Losses, bins: np.ndarray) -> None:
    sides = ((losses.forget, "to be forgotten", "red", "-"), (losses.unseen, "never seen", "blue", (0, (4, 2))))
    for values, label, colour, style in sides:
        options = {"bins": bins, "weights": np.full(values.size, 1 / values.size), "color": PALETTE[colour]}
        ax.hist(values, histtype="stepfilled", alpha=0.18, **options)
        ax.hist(values, histtype="step", linewidth=1.6, linestyle=style, label=label, **options)
        if values.size <= _FEW:
            # With few texts the histogram hides how few: one tick each.
            at = 0.0 if colour == "red" else 0.05
            ax.plot(values, np.full(values.size, at), "|", color=PALETTE[colour], transform=ax.get_xaxis_transform())
    ax.set_xlabel("loss, nats per token", color=INK, fontsize=9)
    ax.set_ylabel("share of texts", color=INK, fontsize=9)


def _roc_panel(ax: "Axes", losses: Mapping[str, Losses]) -> None:
    ax.plot([0, 1], [0, 1], color=INK, alpha=0.45, linewidth=1)
    for (name, pair), (colour, style) in zip(losses.items(), _LINES, strict=False):
        false, true, area = roc(pair)
        ax.plot(false, true, color=PALETTE[colour], linestyle=style, linewidth=2, label=f"{name}: {area:.2f}")
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_title("ROC of the loss attack, area under it", loc="left", fontsize=10, color=INK)
    ax.set_xlabel("unseen texts taken for members", color=INK, fontsize=9)
    ax.set_ylabel("forget texts found", color=INK, fontsize=9)
    legend = ax.legend(frameon=False, fontsize=9, loc="lower right", labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
