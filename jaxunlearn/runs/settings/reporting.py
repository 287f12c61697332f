"""The command that shows."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about an unlearned model: a verdict in plain words, then the evidence. No
    weights are loaded, and no text of any record is on the page unless --show-text is given."""

    run: Path
    """Folder that `jaxunlearn unlearn` or the demo wrote."""
    out: Path | None = None
    """New HTML file; default report.html in RUN."""
    evaluation: tuple[Path, ...] = ()
    """Result file of `jaxunlearn evaluate`; repeat the flag for several. Default: all in RUN and beside it that are
    about these weights."""
    attack: Path | None = None
    """Result file of `jaxunlearn attack`. Default: the newest in RUN and beside it that is about these weights."""
    seed_floor: Path | None = None
    """Result file of an evaluation of a second retrained model (another seed) with the same --reference-model: the
    distance between two retrained models, without which forgetting cannot be judged."""
    seed_floor_column: str = "after"
    """Which model of that file is the second retrained one."""
    compare: tuple[Path, ...] = ()
    """Result file of another unlearned model, or its folder: a further point in the plane, column of the table and line
    in the curves; repeat the flag for several. It must be about the same forget set and retrained model. Of a folder
    that nobody has evaluated only the curves are shown."""
    reference_model: Path | None = None
    """Checkpoint folder of the retrained model, to be checked against the evaluation."""
    show_text: bool = False
    """Show records and what the models wrote. Default: numbers only."""
