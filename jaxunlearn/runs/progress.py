"""Progress that a person can watch, a pipe can log and a program can read.

On a terminal: one live bar a stage, and under it the numbers of the last step. In a pipe: a plain line now and then.
Where a folder is given, always: one JSON object a line in `history.jsonl`, flushed as it happens, so that a killed run
leaves its record; and the same numbers for TensorBoard or Weights & Biases, if asked for (`trackers`). Of several
processes only the first shows and writes anything.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxunlearn.runs.facts import duration, in_words, peak_memory
from jaxunlearn.runs.trackers import SHOWN_BY, JsonLines, Tracker, open_trackers

SECONDS_BETWEEN_LINES = 10.0
WIDTH_IN_A_PIPE = 170


class Stage:
    """One piece of work with a known number of steps; `advance` as it goes."""

    def __init__(self, reporter: "Reporter", name: str, total: int, tokens: int, bar: Any, task: Any):
        self._reporter, self._name, self._total, self._tokens = reporter, name, total, tokens
        self._bar, self._task = bar, task
        self._done, self._spoke = 0, time.monotonic()
        # Speed is counted from the end of the first step, which compiles, or of those a checkpoint stands for.
        self._first: tuple[int, float] | None = None

    def advance(self, steps: int = 1, **facts: float) -> None:
        """`steps` more are done; `facts` are numbers worth seeing."""
        self._done += steps
        now = time.monotonic()
        self._first = self._first or (self._done, now)
        if facts:
            facts = facts | self._speed(now)
            self._reporter.track(self._name, self._done, facts)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, **({"facts": facts} if facts else {}))
        elif not self._reporter.console.quiet and now - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = now
            parts = [f"{label} {value}" for label, value in in_words(facts)]
            left = self._left(now)
            parts += [] if left is None else [f"left {duration(round(left))}"]
            print(f"{self._name}: {self._done}/{self._total}  {'  '.join(parts)}".rstrip(), flush=True)

    def _speed(self, now: float) -> dict[str, float]:
        """What the clock and the devices add to the facts of a step."""
        first, since = self._first or (self._done, now)
        found: dict[str, float] = {}
        if self._tokens and self._done > first:
            found["tokens_per_second"] = self._tokens * (self._done - first) / max(now - since, 1e-9)
        memory = peak_memory()
        return found if memory is None else found | {"peak_memory": float(memory)}

    def _left(self, now: float) -> float | None:
        first, since = self._first or (self._done, now)
        return None if self._done <= first else (self._total - self._done) * (now - since) / (self._done - first)


class Reporter:
    """Shows stages and keeps their history; only process 0 of a multi-host run speaks and writes.

    Args:
        folder: where `history.jsonl` and trackers write; None keeps no history.
        quiet: show nothing (the history is still written).
        track: trackers to write to as well, "tensorboard" or "wandb".
        options: of the run, for the trackers that show them.

    Raises:
        ValueError: a tracker that is unknown, or whose package is not installed.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        quiet: bool = False,
        track: tuple[str, ...] = (),
        options: Mapping[str, Any] | None = None,
    ):
        import jax
        from rich.console import Console

        self._speaks = jax.process_index() == 0
        self.console = Console(quiet=quiet or not self._speaks)
        if not self.console.is_terminal:
            self.console.width = WIDTH_IN_A_PIPE
        self._lines: JsonLines | None = None
        self._trackers: list[Tracker] = []
        if folder is not None and self._speaks:
            self._trackers = open_trackers(track, folder, folder.stem, options)
            self._lines = JsonLines(folder)

    @classmethod
    def of(cls, settings: Any) -> "Reporter":
        """The reporter that the settings of a run ask for, by their groups `tracking` and the output `out`."""
        from jaxunlearn.runs.work import plain_options

        tracking, folder = settings.tracking, settings.tracking.folder(settings.out)
        found = cls(folder, track=tracking.track, options=plain_options(settings))
        if folder is not None:
            shown = "".join(f"; {SHOWN_BY[one].format(folder=folder)}" for one in dict.fromkeys(tracking.track))
            found.say(f"the numbers of every step -> {folder}{shown}")
        return found

    def record(self, **facts: Any) -> None:
        """Append facts to the history."""
        if self._lines is not None:
            self._lines.write(**facts)

    def track(self, stage: str, step: int, facts: Mapping[str, float]) -> None:
        """The numbers of a step, to the history and all trackers."""
        for tracker in [*([] if self._lines is None else [self._lines]), *self._trackers]:
            tracker.log(stage, step, facts)

    def say(self, text: str) -> None:
        """A line for the person watching, without markup: a folder may be named `run[bold]`."""
        self._line(text)

    def warn(self, text: str) -> None:
        """A line of something that is perhaps not as the person wanted it."""
        self._line(("warning:", "yellow"), f" {text}")

    def _line(self, *parts: str | tuple[str, str]) -> None:
        """A line of plain parts and parts with a style. In a pipe it stays one line, however long."""
        from rich.text import Text

        self.console.print(Text.assemble(*parts), soft_wrap=not self.console.is_terminal)

    @contextmanager
    def stage(self, name: str, total: int, *, tokens: int = 0) -> Iterator[Stage]:
        """A stage of `total` steps of so many tokens each; its bar goes when it ends and a line with its time stays."""
        start = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            from jaxunlearn.runs.board import board

            with board(self.console) as bar:
                yield Stage(self, name, total, tokens, bar, bar.add_task(name, total=total, facts={}))
        else:
            yield Stage(self, name, total, tokens, None, None)
        seconds = time.monotonic() - start
        self.record(stage=name, seconds=round(seconds, 2))
        self._line(("✓", "green"), f" {name} ", (f"{seconds:.1f} s", "dim"))

    def close(self) -> None:
        for tracker in [*([] if self._lines is None else [self._lines]), *self._trackers]:
            tracker.close()
        self._lines, self._trackers = None, []

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
