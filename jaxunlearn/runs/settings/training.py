"""Commands that make a model: fine-tune, unlearn, and the curvature that unlearning reads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxunlearn.runs.settings.durability import Checkpoints
from jaxunlearn.runs.settings.groups import OF_ONE_START, Devices, Private, Text, Trainable, Watching, WatchingTraining
from jaxunlearn.runs.settings.tracking import Tracking


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
    """Records a step; in a private run, on average; with --pack, rows."""
    pack: int | None = None
    """Put several records into one row of at most this many tokens, so that none are spent on padding. Records of a row
    do not see each other. Not in a private run, which counts records."""
    learning_rate: float | None = None
    """Peak rate of AdamW; default 0.2 / hidden size, at most 3e-3."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    memory_budget: str | None = None
    """Bytes a device that a step may take, such as 14GiB. What a block keeps, how many records go at a time and how
    many rows of logits there are at once are then chosen, the fastest form that fits. Not in a private run, which has
    --private-rows."""
    max_shard_size: str = "5GB"
    """Largest weight file of the result, such as 500MB or 2GiB."""
    seed: int = 0
    """Order of the records; a private run draws randomness of its own, which it does not record."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    watching: WatchingTraining = field(default_factory=WatchingTraining)
    private: Private = field(default_factory=Private)
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    tracking: Tracking = field(default_factory=Tracking)


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
    temperature: float = 1.0
    """By which logits are divided before labels are drawn for the factors: above 1 (3 suits anchored_matching), a
    model that is sure of what it has memorised still has curvature there."""
    only: tuple[str, ...] = ()
    """Pattern of the parameters that get factors, such as "layers/*"; repeat the flag for several. Default all."""
    batch_size: int = 16
    """Records at a time."""
    seed: int = 0
    """Label draws, and which records are sampled."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)


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
    """Comparable records the model never saw. Their loss replaces the estimate above as the place to stop, and methods
    that match counterfactual answers make the forgotten ones at least as surprising (--corrupt, --generic-alpha)."""
    request: int | None = None
    """Number of this request, to be checked against the ledger of a model that has answered others before."""
    replay: bool = False
    """Forget the records of all earlier requests once more, from the files that the ledger names."""
    substitutes: int = 32
    """Unseen names that replace each entity in counterfactual prompts."""
    top_k: int = 64
    """Likeliest tokens kept of each stored distribution."""
    corrupt: float = 0.2
    """Share of the other tokens of counterfactual prompts that are replaced too, where the forget records give
    themselves away whoever is named: where their loss under other names is less than that of --holdout."""
    generic_alpha: float | None = None
    """How far counterfactual answers are pushed away from what the model says of the entity itself. Default: as far as
    the loss of --holdout asks, else 0."""
    anchor: Path | None = None
    """With anchored_matching: the checkpoint that the anchor holds to, that of which --option factors was taken, where
    requests before this one have moved --model away from it. Default: --model."""
    stream_retain: bool = False
    """Take one step whose curvature is that of all retain records, --retain-size of them at a time, instead of a batch
    of them. Every product is a pass over the set; --resume goes on between two. With newton_removal or
    gauss_newton_ascent."""
    forget_coreset: Literal["random", "entropy", "least_confidence", "k_means", "gradient_match"] | None = None
    """How to choose a few of many forget records to take steps on; needs --forget-coreset-size. Default: all are used.
    That the others go with them is a hope: evaluate on all of them."""
    forget_coreset_size: int | None = None
    """Forget records to choose."""
    retain_coreset: Literal["random", "entropy", "least_confidence", "k_means", "gradient_match"] | None = None
    """How to choose a few of many retain records; needs --retain-coreset-size. Default: all are used."""
    retain_coreset_size: int | None = None
    """Retain records to choose."""
    memory_budget: str | None = None
    """Bytes a device that a step may take, such as 14GiB. What a block keeps, how many examples go at a time and how
    many rows of logits there are at once are then chosen, the fastest form that fits, by compiling a few."""
    max_shard_size: str = "5GB"
    """Largest weight file of the result, such as 500MB or 2GiB."""
    seed: int = 0
    """Batches, substitutes and noise."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    watching: Watching = field(default_factory=Watching)
    trainable: Trainable = field(default_factory=Trainable)
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    tracking: Tracking = field(default_factory=Tracking)
