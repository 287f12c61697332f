"""Where the numbers of a run go besides the screen: a file of JSON lines, TensorBoard, Weights & Biases.

A tracker is anything with `log` and `close`; three are here, and a program may hand a `Reporter` one of its own. Each
is made by process 0 alone, when the run starts, so that a missing package is an error before any work is done.

Nothing leaves the machine by itself: Weights & Biases is started in offline mode, which writes a folder that
`wandb sync` uploads whenever one likes, unless the environment variable WANDB_MODE says otherwise. What is written are
numbers and the options of the run, never data.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

HISTORY = "history.jsonl"


class Tracker(Protocol):
    """Takes the numbers of a run as they come."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps of a stage, steps counted from 1."""

    def close(self) -> None:
        """No more will come."""


class JsonLines:
    """One JSON object a line in `folder/history.jsonl`, appended and flushed as it happens.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     lines = JsonLines(Path(home))
        ...     lines.log("tuning", 1, {"loss": 0.5})
        ...     lines.close()
        ...     sorted(json.loads((Path(home) / HISTORY).read_text()))
        ['loss', 'stage', 'step', 'time']
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / HISTORY).open("a", encoding="utf-8")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self.write(stage=stage, step=step, **values)

    def write(self, **facts: Any) -> None:
        """A line of any facts."""
        self._file.write(json.dumps({"time": round(time.time(), 3), **facts}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """An event file in `folder/tensorboard`, one scalar a number: `tensorboard --logdir FOLDER` shows it."""

    def __init__(self, folder: Path, name: str, options: Mapping[str, Any]):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(
            value=[summary_pb2.Summary.Value(tag=f"{stage}/{key}", simple_value=value) for key, value in values.items()]
        )
        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `jaxunlearn` in `folder/wandb`, offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, name: str, options: Mapping[str, Any]):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jaxunlearn"),
            name=name,
            dir=str(folder),
            config=dict(options),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            # What is printed, the machine's counters and the code are the user's, and no numbers of the run.
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False
            ),
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{stage}/step": step, **{f"{stage}/{key}": value for key, value in values.items()}})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
SHOWN_BY = {
    "tensorboard": "tensorboard --logdir {folder} shows them",
    "wandb": "wandb sync {folder}/wandb/offline-run-* uploads them, if they were kept offline",
}
"""What to do with them, by tracker."""


def open_trackers(
    names: tuple[str, ...], folder: Path, name: str, options: Mapping[str, Any] | None = None
) -> list[Tracker]:
    """The trackers `--track` asks for.

    Args:
        names: keys of `TRACKERS`, each once.
        folder: they write below it.
        name: of the run.
        options: of the run, to be shown with it.

    Raises:
        ValueError: an unknown name, or a package that is not installed, before any tracker is made.
    """
    names = tuple(dict.fromkeys(names))
    for one in names:
        if one not in TRACKERS:
            raise ValueError(f"--track {one}: choose one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(one) is None:
            raise ValueError(
                f'--track {one} needs the package {one}, which is not here: pip install "jaxunlearn[track]"'
            )
    return [TRACKERS[one](folder, name, options or {}) for one in names]
