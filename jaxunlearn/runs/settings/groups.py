"""Groups of options that several commands share.

Settings import nothing of the library at the top, so that `--help` need not wait for JAX.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxunlearn.runs.flags import of_flag

if TYPE_CHECKING:
    from jaxunlearn.data import Fields, Template

# Says where and how often a command is started, not what it does: no part of the options that a run leaves behind.
OF_ONE_START = {"recorded": False}
# Is written, like `out`, so a second run needs another name for it.
OUTPUT = {"output": True}


@dataclass(frozen=True)
class Devices:
    """How devices are laid out, and which processes share them. With one device nothing is sharded. TPU pods, srun and
    mpirun need none of the three options on processes: start the same command on every machine."""

    mesh: str = "fsdp=-1"
    """Sizes of the mesh axes: data (copies of the parameters, each with a part of the batch), fsdp (parameters and
    batch split) and tensor (heads, hidden units and vocabulary split), as in data=2,fsdp=4; -1 takes the rest."""
    mesh_axes: Literal["auto", "explicit"] = "auto"
    """Whether the compiler lays out what is computed, or shardings are part of types."""
    coordinator: str | None = field(default=None, metadata=OF_ONE_START)
    """HOST:PORT of process 0, by which several processes find each other: give it with the next two to each of them."""
    num_processes: int | None = field(default=None, metadata=OF_ONE_START)
    """How many processes there are."""
    process_id: int | None = field(default=None, metadata=OF_ONE_START)
    """Which of them this is, from 0."""

    def start(self) -> None:
        """Join the other processes, if there are any (`sharding.hosts`); before JAX is used."""
        from jaxunlearn.sharding import hosts

        hosts.start(self.coordinator, self.num_processes, self.process_id)

    def make_mesh(self, alone: bool = False):
        """The mesh over the devices of all processes; on one device None, or a mesh of it if `alone`."""
        import jax

        from jaxunlearn.sharding import make_mesh, mesh_sizes

        with of_flag("--mesh"):
            sizes = mesh_sizes(self.mesh, jax.device_count())
        if jax.device_count() == 1 and not alone:
            return None
        return make_mesh(**sizes, explicit=self.mesh_axes == "explicit")


@dataclass(frozen=True)
class Columns:
    """Which fields of a record hold what."""

    prompt_field: str | None = None
    """Field that holds the prompt, if not question, prompt or text."""
    completion_field: str | None = None
    """Field that holds the completion, if not answer, completion or labels."""
    text_field: str | None = None
    """Field that holds a whole text to learn or forget."""
    messages_field: str | None = None
    """Field that holds a chat."""
    entity_field: str | None = None
    """Field with the name(s) of whom or what a record is about; default `entity`."""

    @property
    def fields(self) -> Fields:
        from jaxunlearn.data import Fields

        return Fields(self.prompt_field, self.completion_field, self.text_field, self.messages_field, self.entity_field)


@dataclass(frozen=True)
class Text(Columns):
    """How records become text."""

    max_length: int | None = None
    """Longest sequence, tokens; default the model's context."""
    truncate: bool = False
    """Cut longer records instead of refusing them."""
    question_template: str = "Question: {prompt}\nAnswer: {completion}"
    """How a question and its answer are written."""

    @property
    def template(self) -> Template:
        from jaxunlearn.data import Template

        with of_flag("--question-template"):
            return Template(self.question_template)


@dataclass(frozen=True)
class Trainable:
    """What is changed; the rest stays as it is, to the bit, and costs nothing."""

    train_last: int | None = None
    """Only the last so many layers."""
    lora_rank: int = 0
    """Low-rank adapters of this rank instead of the weights, merged into them at the end; 0 for none."""
    lora_alpha: float = 16.0
    """Adapters are scaled by this over their rank."""
    lora_targets: tuple[str, ...] = ()
    """Projection that gets an adapter, such as q_proj; repeat the flag for several. Default all of them."""
    lora_init: Literal["zero", "fila", "vila"] = "zero"
    """How adapters begin: changing nothing, or cut out of the weights that matter most to forget (fila, vila)."""
    freeze_bits: int | None = None
    """With --lora-rank, keep the weights beside the adapters in 8 or 4 bits. What is learnt is added to the original
    weights at the end, so the result has the form of the model it came from."""


@dataclass(frozen=True)
class Private:
    """Differentially private fine-tuning (DP-SGD), where --private-epsilon or --noise-multiplier is given."""

    private_epsilon: float | None = None
    """Epsilon to spend on one record; the noise follows from it."""
    noise_multiplier: float | None = None
    """Noise in units of the clipping norm; the epsilon follows from it."""
    private_delta: float | None = None
    """Delta, well below one over the number of records."""
    clip_norm: float | None = None
    """Norm that the gradient of each record is clipped to; default 1."""
    private_rows: int | None = None
    """Records whose gradients are in memory at once, each as large as the model in f32; default 8."""


@dataclass(frozen=True)
class Watching:
    """Evaluation inside the run, and rules that end it; the best checkpoint is kept. A rule is METRIC<=BOUND or
    METRIC>=BOUND, several joined by commas, the bound a number, `before`, `unseen` (--holdout) or `retrained`
    (--reference-result)."""

    evaluate_every: int = 0
    """Steps between evaluations; 0 evaluates after every step if there is a rule, else never."""
    stop_when: tuple[str, ...] = ()
    """Rule that ends the run when it is reached: jang, muse, or one of your own; repeat the flag for alternatives."""
    keep_while: tuple[str, ...] = ()
    """Rule that ends the run when it no longer holds, such as "retain_perplexity<=12"; repeat the flag for several."""
    evaluate_limit: int = 100
    """Records of each set that are looked at."""
    evaluate_data: tuple[str, ...] = ()
    """Folder with a benchmark's published files, for rules on its metrics; repeat the flag for several."""
    reference_result: Path | None = None
    """Result file of `jaxunlearn evaluate --out` that holds the retrained model."""


@dataclass(frozen=True)
class WatchingTraining(Watching):
    """Evaluation inside the run, and rules that end it; the best checkpoint is kept. A rule is METRIC<=BOUND or
    METRIC>=BOUND, several joined by commas, the bound a number, `before`, `unseen` (--holdout) or `retrained`
    (--reference-result). A private run may be ended by records that it is not trained on."""

    forget: str | None = None
    """Records that metrics called forget_... are measured on. Nothing is forgotten, and only --data is trained on."""
    retain: str | None = None
    """Records that metrics called retain_... are measured on, such as ones to validate by; default those of --data."""
    holdout: str | None = None
    """Comparable records the model never saw, for rules with the bound `unseen` and for membership attacks."""
