"""Settings of the runs: plain dataclasses that the command line, YAML and Python fill alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxunlearn.data import Fields, Template


@dataclass(frozen=True)
class Devices:
    """How devices are laid out; with one device nothing is sharded."""

    mesh_data: int = 1
    """Batch-parallel replicas."""
    mesh_fsdp: int = 0
    """Shards of parameters and batch; 0 takes all devices the other axes leave."""
    mesh_tensor: int = 1
    """Shards of heads, MLP and vocabulary."""

    def mesh(self):
        """The mesh, or None on one device."""
        import jax

        from jaxunlearn.sharding import make_mesh

        for name in ("mesh_data", "mesh_fsdp", "mesh_tensor"):
            least = 0 if name == "mesh_fsdp" else 1
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least {least}")
        total = jax.device_count()
        rest = self.mesh_data * self.mesh_tensor
        fsdp = self.mesh_fsdp or max(total // rest, 1)
        if total == 1 and fsdp * rest == 1:
            return None
        return make_mesh(data=self.mesh_data, fsdp=fsdp, tensor=self.mesh_tensor)


@dataclass(frozen=True)
class Text:
    """How records become text."""

    max_length: int | None = None
    """Longest sequence, tokens; default the model's context."""
    truncate: bool = False
    """Cut longer records instead of refusing them."""
    question_template: str = Template().question
    """How a question and its answer are written."""
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
        return Fields(self.prompt_field, self.completion_field, self.text_field, self.messages_field, self.entity_field)

    @property
    def template(self) -> Template:
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
class Finetune:
    """Fine-tune a model on answers until it knows them."""

    model: Path
    """Checkpoint folder (Hugging Face layout, safetensors) or hub id."""
    data: tuple[str, ...]
    """JSONL, JSON array, Parquet or hub data set; repeat the flag for several."""
    out: Path
    """New folder for the result."""
    epochs: int = 50
    """Most passes over the data; the learning rate falls to zero over them."""
    stop_at_loss: float | None = None
    """Stop after an epoch whose mean loss is at or under this, nats per loss token; default 0.02, never in a private
    run."""
    batch_size: int = 8
    """Records a step; in a private run, on average."""
    learning_rate: float | None = None
    """Peak rate of AdamW; default 0.2 / hidden size, at most 3e-3."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    seed: int = 0
    """Order of the records; a private run draws randomness of its own, which it does not record."""
    private: Private = field(default_factory=Private)
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


@dataclass(frozen=True)
class Unlearn:
    """Make a model forget, and say with which certificate."""

    model: Path
    """Checkpoint folder or hub id of the model that must forget."""
    forget: str
    """Records to forget."""
    retain: str
    """A sample of what must be kept."""
    out: Path
    """New folder for the result."""
    method: str = "counterfactual_matching"
    """One of `jaxunlearn methods`."""
    option: tuple[str, ...] = ()
    """Hyperparameter of the method as name=value; repeat the flag for several. `jaxunlearn methods NAME` lists them,
    as does --help beside --method NAME."""
    steps: int | None = None
    """Most steps; default the method's."""
    batch_size: int | None = None
    """Forget records a step; default the method's."""
    retain_size: int | None = None
    """Retain records a step; default the method's."""
    stop_at_nll: float | None = None
    """Stop once the forget loss (nats per token) has reached this. Default for methods that ascend: the loss the
    model has on the same answers about people that do not exist."""
    holdout: str | None = None
    """Comparable records the model never saw; their loss replaces the estimate above as the place to stop."""
    request: int | None = None
    """Number of this request, to be checked against the ledger of a model that has answered others before."""
    replay: bool = False
    """Forget the records of all earlier requests once more, from the files that the ledger names."""
    substitutes: int = 32
    """Unseen names that replace each entity in counterfactual prompts."""
    top_k: int = 64
    """Likeliest tokens kept of each stored distribution."""
    seed: int = 0
    """Batches, substitutes and noise."""
    trainable: Trainable = field(default_factory=Trainable)
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


@dataclass(frozen=True)
class Evaluate:
    """Compare a model with the one before unlearning and with one retrained without the forget set."""

    model: Path
    """Checkpoint folder of the unlearned model."""
    forget: str
    """Records that were to be forgotten."""
    retain: str | None = None
    """Records that were to be kept."""
    out: Path | None = None
    """New JSON file for all numbers, per record and in sum."""
    reference_model: Path | None = None
    """Checkpoint folder of the retrained model."""
    before_model: Path | None = None
    """Checkpoint folder before unlearning; default the one the model's own record names."""
    holdout: str | None = None
    """Comparable records no model saw, for the membership attack."""
    generate: bool = False
    """Also write answers and compare their words (ROUGE-L); slower."""
    batch_size: int = 32
    """Records scored at once."""
    seed: int = 0
    """Bootstrap intervals."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)
