"""Commands that look at a model's curvature and change nothing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxunlearn.runs.settings.groups import OF_ONE_START, Devices, Text


@dataclass(frozen=True)
class Spectrum:
    """Draw the curvature's spectrum on retain and on forget, and what a Newton step does under every damping."""

    model: Path
    """Checkpoint folder or hub id."""
    forget: str
    """Records to forget."""
    retain: str
    """A sample of what must be kept."""
    out: Path
    """New folder for spectrum.json and the pictures spectrum and damping, each as svg and png."""
    curvature: Literal["gauss-newton", "hessian"] = "gauss-newton"
    """Of the mean loss. The step is that of gauss_newton_ascent or of newton_removal."""
    option: tuple[str, ...] = ()
    """Hyperparameter of that method as name=value, as unlearn takes it: damping, max_kl, cg_steps, rtol, microbatch."""
    lanczos_steps: int = 40
    """Lanczos products a probe, and of the damping path; take more than the spectrum has outliers. The vectors of one
    run take four bytes a parameter each."""
    probes: int = 4
    """Random vectors for each density, at least 2; errors of counts fall with their root."""
    batch_size: int | None = None
    """Forget records; default the method's. They are those of the first step of unlearn with the same seed."""
    retain_size: int | None = None
    """Retain records; default the method's."""
    tries: int = 9
    """Dampings at which the step is not only predicted but tried; 0 for none."""
    seed: int = 0
    """Records of the batch, and probes."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


@dataclass(frozen=True)
class Bench:
    """Measure curvature products a second here, against a gradient and against what the device can do at best."""

    model: Path | None = None
    """Checkpoint folder or hub id; default a decoder of random weights, see --size."""
    size: Literal["1M", "7M", "28M", "100M", "1B"] = "7M"
    """Parameters of the decoder of random weights; without --model."""
    curvature: tuple[Literal["hessian", "gauss-newton", "fisher", "kfac"], ...] = ()
    """Curvature to measure; repeat the flag for several. Default all."""
    batch_size: int = 4
    """Examples."""
    length: int = 256
    """Tokens of an example, all but the first with loss."""
    rounds: int = 5
    """Recorded calls of each product; medians are shown."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters."""
    attention: Literal["auto", "xla", "blockwise"] = "auto"
    """Form of attention; auto is blockwise above 512 tokens."""
    remat: Literal["dots", "full", "none"] = "dots"
    """What a block keeps for its backward pass: outputs of projections, nothing but its input, or everything."""
    out: Path | None = None
    """New JSON file for all numbers, every round included."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    devices: Devices = field(default_factory=Devices)
