"""Checkpoints of a run that is under way: all that the next step depends on, for another process to take it.

The arrays (parameters that are trained, state of the optimiser or solver, random key) go through Orbax
(https://orbax.readthedocs.io): every process writes the shards of its own devices and reads back those that its
devices need, on whatever mesh there is then, so no parameter is ever gathered. Beside them stand small facts as JSON:
the place in the data, the history. The devices wait for the copy to the host; the disk is written in the background
while they go on.

A checkpoint is a folder named after its step. Orbax writes it under another name and renames it, and the last `keep`
ones stay: a process killed at any moment leaves a whole one. A disk that lies about what it has written is found out by
a digest of every bit, taken on the devices before and compared after; `restore` then goes back to the one before.

Saves happen every so many steps, every so many minutes, and when the process is asked to end (`preemption`). A save
that fails, on a full disk say, is reported and tried again when the next is due: it must not end the run that it
protects.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from jaxunlearn.files import require_room
from jaxunlearn.runs.preemption import Interrupted, Requests
from jaxunlearn.runs.saved_arrays import digest_of, named, shapes_of, unnamed
from jaxunlearn.sharding import largest, of_first, together

Facts = dict[str, Any]
Snapshot = Callable[[], tuple[PyTree, Facts]]
LAST = 2**31 - 1


class Restored(NamedTuple):
    """A checkpoint that was read: steps done, the arrays laid out as asked for, the facts."""

    step: int
    state: PyTree
    facts: Facts


class UnreadableError(ValueError):
    """There are checkpoints and none of them can be read."""


class Checkpoints:
    """The checkpoints of one loop. Enter it around the loop: SIGTERM and Ctrl-C are then requests to save and end.

    Args:
        folder: where they stand; made with the first one.
        every: steps between two; 0 for none by steps.
        minutes: minutes between two; 0 for none by the clock.
        keep: how many stay.
        say: for warnings.
        resume_with: how to go on, for the message of an interrupted run.
        begin: called before each save; may make what the checkpoints stand in.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> folder = tempfile.TemporaryDirectory()
        >>> def count(to):
        ...     with Checkpoints(folder.name, every=2) as checkpoints:
        ...         found = checkpoints.restore(lambda facts: jnp.float32(0))
        ...         total, start = (found.state, found.step) if found else (jnp.float32(0), 0)
        ...         for step in range(start + 1, to + 1):
        ...             total = total + step
        ...             checkpoints.after(step, lambda: (total, {}))
        ...     return start, float(total)
        >>> count(3), count(4)
        ((0, 6.0), (2, 10.0))
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 0,
        minutes: float = 0.0,
        keep: int = 2,
        say: Callable[[str], object] = print,
        resume_with: str = "resume=True",
        begin: Callable[[], object] = lambda: None,
    ):
        self.folder = Path(folder).absolute()
        self._every, self._seconds, self._keep = every, 60.0 * minutes, keep
        self._say, self._resume_with, self._begin = say, resume_with, begin
        self._requests = Requests()
        self._last = time.monotonic()
        self._pending: tuple[int, Any] | None = None

    def __enter__(self) -> "Checkpoints":
        self._requests.__enter__()
        logging.getLogger("absl").addFilter(_once)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._finish()
        finally:
            logging.getLogger("absl").removeFilter(_once)
            self._requests.__exit__(kind, error, trace)

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, in order."""
        from orbax.checkpoint import v1 as ocp

        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdigit() and ocp.is_orbax_checkpoint(path))

    def restore(self, like: Callable[[Facts], PyTree]) -> Restored | None:
        """The last checkpoint that can be read; None if there is none at all.

        Args:
            like: from the facts to a tree of the arrays that were saved, or of their shapes: each is laid out as there,
                or on all devices of the mesh where a shape says nothing. Arrays are given up: they make room.

        Raises:
            UnreadableError: when there are checkpoints and none of them can be read.
        """
        problems, step = [], LAST
        while (step := of_first(max((one for one in self.steps if one < step), default=-1))) >= 0:
            try:
                state, facts = self._read(step, like)
            # Whatever is wrong with it, the one before may be whole.
            except Exception as error:
                problems.append(f"{self.folder / str(step)}: {_first_line(error)}")
                self._say(f"warning: checkpoint {step} cannot be read ({_first_line(error)})")
                continue
            self._last = time.monotonic()
            return Restored(step, state, facts)
        if problems:
            raise UnreadableError(
                f"no checkpoint can be read: {'; '.join(problems)}; delete {self.folder} to start anew, or give the "
                "versions and the method that wrote them"
            )
        return None

    def after(self, step: int, snapshot: Snapshot) -> None:
        """After each step: saves if it is time to.

        Args:
            step: steps done.
            snapshot: gives the arrays and the facts; called only if they are saved. The caller may donate the arrays
                to the next step.

        Raises:
            Interrupted: the process was asked to end, and all is saved.
        """
        due = bool(self._seconds) and time.monotonic() - self._last >= self._seconds
        # A signal to one process is one to all, and so is one clock. In one exchange: the number, then the clock's bit.
        asked, late = divmod(largest(2 * (self._requests.received or 0) + due), 2)
        if asked or late or (self._every and step % self._every == 0):
            self._save(step, snapshot)
        if asked:
            self._finish()
            raise Interrupted(self._how_to_resume(step), asked)

    def _save(self, step: int, snapshot: Snapshot) -> None:
        from orbax.checkpoint import v1 as ocp

        self._finish()
        self._last = time.monotonic()
        state, facts = snapshot()
        arrays = named(state)
        # Written in the background, while the caller's lists grow.
        facts = json.loads(json.dumps({"facts": facts, "digest": digest_of(arrays)}))
        try:
            together(partial(self._make_room, sum(leaf.nbytes for leaf in arrays.values())))
            saving = ocp.save_async(self.folder / str(step), arrays, overwrite=True, custom_metadata=facts)
        except Exception as error:
            self._failed(step, error)
        else:
            self._pending = (step, saving)

    def _make_room(self, size: int) -> None:
        require_room(self.folder, size)
        self._begin()
        self.folder.mkdir(parents=True, exist_ok=True)

    def _finish(self) -> None:
        """Wait for the save in the background, then remove what it replaces."""
        if self._pending is None:
            return
        (step, saving), self._pending = self._pending, None
        try:
            saving.result()
        except Exception as error:
            self._failed(step, error)
            return
        if jax.process_index() == 0:
            for path in self.folder.iterdir():
                number = path.name.partition(".")[0]
                if number.isdigit() and path.name not in map(str, self.steps[-self._keep :]):
                    shutil.rmtree(path, ignore_errors=True)

    def _failed(self, step: int, error: Exception) -> None:
        if jax.process_index() == 0:
            for path in self.folder.glob(f"{step}.*"):
                shutil.rmtree(path, ignore_errors=True)
        steps = self.steps
        last = f"the last is that of step {steps[-1]}" if steps else "there is none yet"
        self._say(f"warning: no checkpoint after step {step}: {_first_line(error)}; the run goes on, {last}")

    def _how_to_resume(self, step: int) -> str:
        steps = self.steps
        if not steps:
            return f"interrupted after step {step}; nothing could be saved"
        return f"interrupted after step {step}, saved up to step {steps[-1]}; to go on: {self._resume_with}"

    def _read(self, step: int, like: Callable[[Facts], PyTree]) -> tuple[PyTree, Facts]:
        from orbax.checkpoint import v1 as ocp

        path = self.folder / str(step)
        stored = together(lambda: ocp.metadata(path).custom_metadata)
        target = like(stored["facts"])
        shapes = shapes_of(target)
        for leaf in jax.tree.leaves(target):
            if isinstance(leaf, jax.Array) and not leaf.is_deleted():
                leaf.delete()
        arrays = together(lambda: ocp.load(path, shapes) if shapes else {})
        if digest_of(arrays) != stored["digest"]:
            raise ValueError("its contents are not those that were saved")
        return unnamed(target, arrays), stored["facts"]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else type(error).__name__


def _once(record: logging.LogRecord) -> bool:
    """Orbax logs what its threads raise, once a thread, before it raises it here, where it is reported."""
    return "_SignalingThread.run() raised" not in record.getMessage()
