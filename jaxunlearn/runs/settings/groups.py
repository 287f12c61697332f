"""Groups of options that several commands share."""

from dataclasses import dataclass
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
