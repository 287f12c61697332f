"""Commands that need no weights of yours."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxunlearn.runs.settings.groups import OF_ONE_START


@dataclass(frozen=True)
class Demo:
    """Forget six fictitious people five ways, beside the retrained model, and write a report."""

    out: Path = Path("demo-run")
    """Folder for the report, the numbers, the data and the checkpoints; a free name is taken if it exists."""
    seed: int = 0
    """Corpus, training and batches. The methods' settings were chosen on seed 1."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; write nothing."""


@dataclass(frozen=True)
class Doctor:
    """Report versions, devices and settings, and check that products come out right here."""

    check: bool = True
    """Whether to compute a product and hold it against a finite difference."""


@dataclass(frozen=True)
class Plan:
    """Compile a step for devices you do not have: does it fit, what is sent, what bounds its time."""

    model: str
    """Checkpoint folder, config.json, or a preset: llama-3.2-1b, llama-2-7b, llama-3-8b, llama-3-70b."""
    topology: str = "v5e:16x16"
    """Chips to compile for: v5e:16x16, v5p:4x4x8, v6e:8x8 (all need the extra `tpu`, none a TPU), or cpu:8."""
    mesh: str = "fsdp=-1"
    """Sizes of the mesh axes data, fsdp and tensor, as in fsdp=64,tensor=4; -1 takes the rest."""
    program: tuple[Literal["gradient", "hessian", "gauss-newton", "cg", "factors", "step"], ...] = ()
    """Program to compile; repeat the flag for several. Default all: a gradient, a product of either kind, a solve, a
    pass for Kronecker factors, a step of the method."""
    method: str = "gauss_newton_ascent"
    """Method of the step."""
    option: tuple[str, ...] = ()
    """Hyperparameter of the method as name=value; repeat the flag for several."""
    batch_size: int = 64
    """Examples in all, of forget and of retain each."""
    length: int = 2048
    """Tokens of an example, all of them with loss."""
    cg_steps: int = 10
    """Steps of the solve, and how often a loop is counted whose end is not known beforehand."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the parameters."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of the weights; 0 for none."""
    freeze_bits: int | None = None
    """With --lora-rank, keep the weights beside the adapters in 8 or 4 bits."""
    attention: Literal["auto", "xla", "blockwise"] = "auto"
    """Form of attention; auto is blockwise above 512 tokens."""
    remat: Literal["dots", "full", "none"] = "full"
    """What a block keeps for its backward pass: outputs of projections, nothing but its input, or everything."""
    smallest: bool = False
    """Also look for the smallest grid of the same chips on which the last program fits."""
    out: Path | None = None
    """New Markdown file for the table."""
