"""Options of runs that survive their machine."""

from dataclasses import dataclass, field

from jaxunlearn.runs.settings.groups import OF_ONE_START


@dataclass(frozen=True)
class Resuming:
    """Surviving interruption. What is finished is kept in OUT.partial, which goes when OUT is there. Ctrl-C (exit code
    130) leaves it, and says how to go on. If OUT.partial is there, a run without --resume refuses to start."""

    resume: bool = field(default=False, metadata=OF_ONE_START)
    """Go on from OUT.partial; start anew if there is none, so that a job can give it every time. All other options and
    input files must be as before, devices excepted."""


@dataclass(frozen=True)
class Checkpoints(Resuming):
    """Surviving interruption. What an unfinished run needs to go on stands in OUT.partial, which goes when OUT is
    there. Ctrl-C (exit code 130) and SIGTERM (75) finish the step at hand and save first; a second one does not wait.
    If OUT.partial is there, a run without --resume refuses to start."""

    resume: bool = field(default=False, metadata=OF_ONE_START)
    """Go on from OUT.partial; start anew if there is none, so that a job can give it every time. All other options and
    input files must be as before, devices and those below excepted."""
    checkpoint_every: int = 0
    """Steps between checkpoints, with --stream-retain products; 0 leaves it to the clock."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints; 0 leaves it to the steps."""

    def __post_init__(self):
        for name in ("checkpoint_every", "checkpoint_minutes"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give a positive number, or 0 for none")
