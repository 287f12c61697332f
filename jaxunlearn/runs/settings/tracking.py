"""Options about where the numbers of a run go while it lasts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxunlearn.runs.settings.groups import OF_ONE_START


@dataclass(frozen=True)
class Tracking:
    """The numbers of every step, for other programs to read while the run lasts; at the end the output has them too."""

    track: tuple[Literal["tensorboard", "wandb"], ...] = field(default=(), metadata=OF_ONE_START)
    """Write them for TensorBoard or Weights & Biases; repeat the flag for both. The latter stays offline unless
    WANDB_MODE says otherwise. Needs pip install "jaxunlearn[track]"."""
    log: Path | None = field(default=None, metadata=OF_ONE_START)
    """Folder for these, and for history.jsonl, which is then always written; runs append. Default OUT.log with
    --track, else none."""

    def folder(self, out: Path) -> Path | None:
        """Where to write; None for nowhere."""
        return self.log or (out.with_name(f"{out.name}.log") if self.track else None)
