"""Commands that measure one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxunlearn.runs.settings.durability import Resuming
from jaxunlearn.runs.settings.groups import OF_ONE_START, OUTPUT, Columns, Devices, Text


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
    """Folder with a benchmark's published files (or its hub name); repeat the flag for several. Several sources of
    multiple choice, such as WMDP and MMLU, get numbers of their own."""
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """Which of TOFU's forget sets."""
    fold: Literal["scal/1", "scal/2", "scal/3", "scal/4", "sust/1", "sust/2", "sust/3", "sust/4"] | None = None
    """Which of MUSE's growing (scal) or successive (sust) forget sets; default that of its membership attack."""
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
    memory_budget: str | None = None
    """Bytes a device that scoring and writing may take, such as 14GiB: how many records are scored, and how many
    answers written at once is then chosen, at most --batch-size."""
    seed: int = 0
    """Bootstrap intervals."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)
    checkpoints: Resuming = field(default_factory=Resuming)


@dataclass(frozen=True)
class Compare:
    """Compare a result file with that of a reference, usually the model retrained without the forget set. Reads what
    `jaxunlearn evaluate --out` writes, TOFU's own logs, and OpenUnlearning's result files. With --faithfulness, rank
    metrics by how surely they tell models that know a text from models that never saw it."""

    run: Path
    """Result of the model in question."""
    reference: Path
    """Result of the reference."""
    out: Path | None = None
    """New JSON file for all numbers."""
    column: str = "after"
    """Which model of RUN, where it holds several; with --faithfulness a pattern, such as "*", for some of them."""
    reference_column: str = "retrained"
    """Which model of REFERENCE, where it holds several; with --faithfulness a pattern."""
    faithfulness: bool = False
    """Rank metrics instead: how surely does each tell the models of RUN, which know the text that is to be forgotten,
    from those of REFERENCE, which never saw it?"""
    more_run: tuple[Path, ...] = ()
    """With --faithfulness, result of further models that know; repeat the flag for several."""
    more_reference: tuple[Path, ...] = ()
    """With --faithfulness, result of further models that never knew; repeat the flag for several."""
    limit: int | None = None
    """Only the first so many questions of each set: TOFU scores 300, OpenUnlearning all 400."""
    open_unlearning: Path | None = field(default=None, metadata=OUTPUT)
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
    """Run only membership, document, canaries, extraction, conflict, paraphrase, prefix, lens, probe, quantisation or
    relearning; repeat the flag for several."""
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
    """How the document audit relates a token's probability to the token's frequency, or to --general-model."""
    features: Literal["aggregate", "histogram"] = "aggregate"
    """What the document audit sees of a document: mean, extremes, spread and percentiles of its tokens' values, or
    their histogram in 1000 bins."""
    general_model: Path | None = None
    """Checkpoint folder of a model with the same tokenizer that read none of the records, for --normalisation."""
    gradients_at_once: int = 1
    """Gradients in memory at once, each as large as the model in f32."""
    batch_size: int = 32
    """Records scored at once."""
    seed: int = 0
    """Bootstrap intervals and all that is drawn."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    text: Text = field(default_factory=Text)
    devices: Devices = field(default_factory=Devices)
    checkpoints: Resuming = field(default_factory=Resuming)


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
    key: Path = field(metadata=OUTPUT)
    """New JSONL file that says which canaries were inserted; it can be given to `unlearn --forget`."""
    count: int = 1
    """Canaries for each template and each number of copies."""
    copies: tuple[int, ...] = ()
    """How often a canary is inserted; repeat the flag for several. Default 1, 4 and 16."""
    seed: int = 0
    """Draws canaries and their places."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done; write nothing."""
    columns: Columns = field(default_factory=Columns)


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
    ranks: Literal["exact", "sampled", "skew_normal"] | None = None
    """How they are found; default exact where possible, else a skew-normal fit."""
    max_length: int | None = None
    """Longest sequence, tokens; default the model's context."""
    batch_size: int = 32
    """Texts scored at once."""
    seed: int = 0
    """Draws candidates; intervals."""
    dry_run: bool = field(default=False, metadata=OF_ONE_START)
    """Check everything, and say what would be done, with memory and time; read no weights and write nothing."""
    devices: Devices = field(default_factory=Devices)
