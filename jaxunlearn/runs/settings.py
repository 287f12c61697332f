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
    max_shard_size: str = "5GB"
    """Largest weight file of the result, such as 500MB or 2GiB."""
    seed: int = 0
    """Order of the records; a private run draws randomness of its own, which it does not record."""
    private: Private = field(default_factory=Private)
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


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
    batch: int = 64
    """Examples in all, of forget and of retain each."""
    length: int = 2048
    """Tokens of an example, all of them with loss."""
    cg_steps: int = 10
    """Steps of the solve, and how often a loop is counted whose end is not known beforehand."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the parameters."""
    attention: Literal["auto", "xla", "blockwise"] = "auto"
    """Form of attention; auto is blockwise above 512 tokens."""
    remat: Literal["dots", "full", "none"] = "full"
    """What a block keeps for its backward pass: outputs of projections, nothing but its input, or everything."""
    smallest: bool = False
    """Also look for the smallest grid of the same chips on which the last program fits."""
    out: Path | None = None
    """New Markdown file for the table."""


@dataclass(frozen=True)
class StoreCurvature:
    """Take the curvature of what is to be kept once and store it, so that later requests need no retain set."""

    model: Path
    """Checkpoint folder or hub id."""
    data: tuple[str, ...]
    """Records to take it on, best all that the model was trained on; repeat the flag for several files."""
    out: Path
    """New folder for the result."""
    kind: Literal["ekfac", "kfac", "gradients"] = "ekfac"
    """Kronecker factors with exact second moments (two passes over the data), without them (one pass), or the
    gradients of some records, for fisher_removal."""
    samples: int = 64
    """Records whose gradients are kept, each as large as the model in f32."""
    draws: int = 1
    """Label draws a token for the factors."""
    only: tuple[str, ...] = ()
    """Pattern of the parameters that get factors, such as "layers/*"; repeat the flag for several. Default all."""
    batch_size: int = 16
    """Records at a time."""
    seed: int = 0
    """Label draws, and which records are sampled."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


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
class Unlearn:
    """Make a model forget, and say with which certificate."""

    model: Path
    """Checkpoint folder or hub id of the model that must forget."""
    forget: str
    """Records to forget."""
    out: Path
    """New folder for the result."""
    retain: str | None = None
    """A sample of what must be kept. Methods that read stored curvature, or have no retain term, can do without."""
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
    retain_coreset: Literal["random", "entropy", "least_confidence", "k_means", "gradient_match"] | None = None
    """How to choose a few of many retain records; needs --retain-coreset-size. Default: all are used."""
    retain_coreset_size: int | None = None
    """Retain records to choose."""
    max_shard_size: str = "5GB"
    """Largest weight file of the result, such as 500MB or 2GiB."""
    seed: int = 0
    """Batches, substitutes and noise."""
    watching: Watching = field(default_factory=Watching)
    trainable: Trainable = field(default_factory=Trainable)
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


@dataclass(frozen=True)
class Evaluate:
    """Compare a model with the one before unlearning and with one retrained without the forget set."""

    model: Path
    """Checkpoint folder of the unlearned model."""
    forget: str | None = None
    """Records that were to be forgotten; needed without --data."""
    retain: str | None = None
    """Records that were to be kept."""
    out: Path | None = None
    """New JSON file for all numbers, per record and in sum."""
    reference_model: Path | None = None
    """Checkpoint folder of the retrained model."""
    before_model: Path | None = None
    """Checkpoint folder before unlearning; default the one the model's own record names."""
    more_model: tuple[Path, ...] = ()
    """Further checkpoint folder, a column under its own name; repeat the flag for several: growing forget sets
    (scalability) or requests in a row (sustainability) give a curve of every metric."""
    holdout: str | None = None
    """Comparable records no model saw, for the membership attack."""
    suite: Literal["tofu", "muse", "knowundo", "memorisation", "privacy", "choice", "all"] | None = None
    """A published benchmark or a family of metrics; all takes every one that the data allow. Default: what can be
    measured on --forget and --retain."""
    data: tuple[str, ...] = ()
    """Folder with a benchmark's published files (or its hub name); repeat the flag for several."""
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """Which of TOFU's forget sets."""
    limit: int | None = None
    """Only the first so many records of each set of a suite; TOFU's own scripts score 300."""
    choice_style: Literal["answers", "letters"] = "answers"
    """Multiple choice by the likelihood of the answers, or of the letters before them."""
    generate: bool = False
    """Also write answers and compare their words (ROUGE-L); slower. Suites always do."""
    new_tokens: int = 64
    """Length of written answers, tokens."""
    batch_size: int = 32
    """Records scored at once."""
    seed: int = 0
    """Bootstrap intervals."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


@dataclass(frozen=True)
class Compare:
    """Compare a result file with that of a reference, usually the model retrained without the forget set. Reads what
    `jaxunlearn evaluate --out` writes, TOFU's own logs, and OpenUnlearning's result files."""

    run: Path
    """Result of the model in question."""
    reference: Path
    """Result of the reference."""
    out: Path | None = None
    """New JSON file for all numbers."""
    column: str = "after"
    """Which model of RUN, where it holds several."""
    reference_column: str = "retrained"
    """Which model of REFERENCE, where it holds several."""
    examples: int | None = None
    """Only the first so many questions of each set: TOFU scores 300, OpenUnlearning all 400."""
    open_unlearning: Path | None = None
    """New JSON file: RUN, if ours, in OpenUnlearning's form and under its names."""
    seed: int = 0
    """Bootstrap intervals."""


@dataclass(frozen=True)
class Attack:
    """Stress tests of forgetting: what an attacker, rounding or a little training brings back."""

    model: Path
    """Checkpoint folder of the unlearned model."""
    forget: str
    """Records that were to be forgotten."""
    retain: str | None = None
    """Records that were kept; what the document audit learns from."""
    holdout: str | None = None
    """Comparable records no model saw; what membership attacks, audit and probe compare with."""
    reference_model: Path | None = None
    """Checkpoint folder of the retrained model; relearning and the reference attack need it."""
    before_model: Path | None = None
    """Checkpoint folder before unlearning, to be attacked as well; default the one the model's own record names."""
    canaries: Path | None = None
    """Key that `jaxunlearn canary insert` wrote, for their exposure."""
    only: tuple[str, ...] = ()
    """Run only membership, document, canaries, paraphrase, prefix, lens, probe, quantisation or relearning; repeat the
    flag for several."""
    out: Path | None = None
    """New JSON file for all numbers, per record and in sum."""
    relearn_share: float = 0.5
    """Share of the forget records that relearning trains on; the others are measured."""
    relearn_epochs: int = 1
    """Passes over that share."""
    relearn_rate: float | None = None
    """Rate of AdamW; default 0.04 / hidden size, which is 2e-5 at 1B parameters."""
    group: int | None = None
    """Inputs that share a scale when rounding to 4 bits, such as 64; default all inputs of an output."""
    candidates: int = 4096
    """Most candidates a canary is ranked among."""
    classifier: Literal["random_forest", "logistic", "mlp"] = "random_forest"
    """Of the document audit."""
    normalisation: Literal["none", "ratio", "max"] = "ratio"
    """How the document audit relates a token's probability to the token's frequency."""
    gradients_at_once: int = 1
    """Gradients in memory at once, each as large as the model in f32."""
    batch_size: int = 32
    """Records scored at once."""
    seed: int = 0
    """Bootstrap intervals and all that is drawn."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


@dataclass(frozen=True)
class CanaryInsert:
    """Insert made-up secrets into training records, and keep the key."""

    data: tuple[str, ...]
    """JSONL, JSON array, Parquet or hub data set; repeat the flag for several."""
    template: tuple[str, ...]
    """Text with places to fill in, such as "My code is {digits:6}" (also letters, hex, alphanumeric and
    {choice:red|green}); repeat the flag for several."""
    out: Path
    """New JSONL file with the records and the canaries among them."""
    key: Path
    """New JSONL file that says which canaries were inserted; it can be given to `unlearn --forget`."""
    count: int = 1
    """Canaries for each template and each number of copies."""
    copies: tuple[int, ...] = ()
    """How often a canary is inserted; repeat the flag for several. Default 1, 4 and 16."""
    seed: int = 0
    """Draws canaries and their places."""
    text: Text = field(default_factory=Text)


@dataclass(frozen=True)
class CanaryScore:
    """Exposure of inserted canaries: how many bits of each secret a model gives away."""

    model: Path
    """Checkpoint folder of the model."""
    key: Path
    """Key that `jaxunlearn canary insert` wrote."""
    out: Path | None = None
    """New JSON file for all numbers."""
    candidates: int = 4096
    """Most candidates a canary is ranked among: if there are no more, ranks are exact."""
    method: Literal["exact", "sampled", "skew_normal"] | None = None
    """How ranks are found; default exact where possible, else a skew-normal fit."""
    batch_size: int = 32
    """Texts scored at once."""
    seed: int = 0
    """Draws candidates; intervals."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)
