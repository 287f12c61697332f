"""Progress that a person can watch, a pipe can log and a program can read.

On a terminal: one live bar a stage. In a pipe: a plain line now and then. Always, when a folder is given: one JSON
object a line in `history.jsonl`, flushed as it happens, so that a killed run leaves its record.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
WIDTH_IN_A_PIPE = 170


class Stage:
    """One piece of work with a known number of steps; `advance` as it goes."""

    def __init__(self, reporter: "Reporter", name: str, total: int, bar: Any, task: Any):
        self._reporter, self._name, self._total, self._bar, self._task = reporter, name, total, bar, task
        self._done, self._spoke = 0, time.monotonic()

    def advance(self, steps: int = 1, **facts: float) -> None:
        """`steps` more are done; `facts` are numbers worth seeing."""
        self._done += steps
        if facts:
            self._reporter.record(stage=self._name, step=self._done, **facts)
        text = "  ".join(f"{key} {value:.4g}" for key, value in facts.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, facts=text)
        elif not self._reporter.console.quiet and time.monotonic() - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = time.monotonic()
            print(f"{self._name}: {self._done}/{self._total}  {text}".rstrip(), flush=True)


class Reporter:
    """Shows stages and keeps their history; only process 0 of a multi-host run speaks.

    Args:
        folder: where `history.jsonl` is kept; None keeps none.
        quiet: show nothing (the history is still written).
    """

    def __init__(self, folder: Path | None = None, *, quiet: bool = False):
        import jax
        from rich.console import Console

        self._speaks = jax.process_index() == 0
        self.console = Console(quiet=quiet or not self._speaks)
        if not self.console.is_terminal:
            self.console.width = WIDTH_IN_A_PIPE
        self._quiet = quiet
        self._file = None
        if folder is not None and self._speaks:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "history.jsonl").open("a", encoding="utf-8")

    def record(self, **facts: Any) -> None:
        """Append facts to the history."""
        if self._file is not None:
            self._file.write(json.dumps({"time": round(time.time(), 3), **facts}) + "\n")
            self._file.flush()

    def say(self, text: str) -> None:
        """A line for the person watching."""
        self.console.print(text, highlight=False)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage of `total` steps; its bar goes when it ends and a line with its time stays."""
        start = time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}", style="dim"),
            )
            with Progress(*columns, console=self.console, transient=True) as bar:
                yield Stage(self, name, total, bar, bar.add_task(name, total=total, facts=""))
        else:
            yield Stage(self, name, total, None, None)
        seconds = time.monotonic() - start
        self.record(stage=name, seconds=round(seconds, 2))
        self.say(f"[green]✓[/green] {name} [dim]{seconds:.1f} s[/dim]")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
