"""The work folder of an unfinished run, `OUT.partial` beside its output: what `--resume` goes on from.

    run.json            command, resolved options, hashes of the input files, versions: what the run is
    jaxunlearn.yaml     the options once more, for `--config`
    kept/               results of stages that are over (`kept`)
    checkpoints/        of the loop that is under way (`checkpoint`)

It is made when there is something to put into it, and removed when the output is there: the output itself appears
whole or not at all (`files`). A run goes on only as what it was. One that went on with another learning rate or another
forget set would end in weights that no record describes, so whatever differs is an error that names it. Devices may
differ (weights then agree to rounding), and so may what does not enter the weights.
"""

import json
import shlex
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from jaxunlearn.files import new_file
from jaxunlearn.runs import kept
from jaxunlearn.runs import record as records
from jaxunlearn.runs.checkpoint import Checkpoints, UnreadableError
from jaxunlearn.runs.preemption import Interrupted
from jaxunlearn.runs.progress import Reporter
from jaxunlearn.sharding import largest, of_first, together

Value = TypeVar("Value")
FORMAT = "jaxunlearn unfinished run"
_DATA = (".json", ".jsonl", ".parquet", ".csv", ".txt")
_FREE = ("out", "dry_run", "devices", "checkpoints", "tracking", "max_shard_size")


class Work:
    """What a run leaves behind while it lasts. Enter it around the run: SIGTERM ends it at once, as Ctrl-C does, where
    no loop takes either as a request to finish its step first (`checkpoints`).

    At the end the folder is removed, as it is after a ValueError that came before the first checkpoint: another try
    with better options shall not be told to delete anything.

    Args:
        command: "finetune", "unlearn", ...
        settings: its dataclass, with `out` and a group `checkpoints`.
        digests: hashes that were taken already, by option, and those of inputs that no option names.

    Raises:
        ValueError: an unfinished run is there and is not asked for, or is another one; it says what to do.
    """

    def __init__(self, command: str, settings: Any, *, digests: dict[str, str | None] | None = None):
        self.folder = _beside(settings.out)
        self._command, self._settings, self._options = command, settings, settings.checkpoints
        self._about = _about(command, settings, digests or {})
        self._asked, self._before = signal.SIGINT, []
        # Of several processes none begins before the first has looked.
        self.resumed = bool(of_first(int((self.folder / "run.json").is_file())))
        if not self.resumed:
            _refuse_foreign(self.folder)
            return
        if not self._options.resume:
            raise ValueError(
                f"{self.folder} holds an unfinished run of this output; go on with --resume, or delete it to start anew"
            )
        _refuse_another(self.folder, self._about)
        _remove_unfinished(settings.out)

    def __enter__(self) -> "Work":
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(signal.SIGTERM, self._terminate)]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handler in self._before:
            # None: what another library had installed, which Python cannot put back.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)
        if kind is KeyboardInterrupt:
            if (self.folder / "run.json").is_file():
                raise Interrupted(f"interrupted; to go on: {self.how_to_resume()}", self._asked) from None
            raise Interrupted("interrupted; nothing was written", self._asked) from None
        mistaken = isinstance(error, ValueError) and not isinstance(error, UnreadableError)
        if error is None or (mistaken and not (self.folder / "checkpoints").is_dir()):
            self.remove()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        raise KeyboardInterrupt

    def keep(self, name: str, make: Callable[[], Value]) -> Value:
        """`make()`, a value that `kept.write` takes; taken from the disk where it stands there already."""
        import jax

        path = self.folder / "kept" / f"{name}.safetensors"
        found = self._kept(path)
        # All processes make it, or none: one that has the file would leave the others waiting for its part.
        if not largest(int(found is None)):
            return found[0]
        value = make()

        def write() -> None:
            self._begin()
            if jax.process_index() == 0:
                kept.write(path, value)

        together(write)
        return value

    def checkpoints(self, say: Callable[[str], object]) -> Checkpoints:
        """Those of the run's loop, as the options say."""
        return Checkpoints(
            self.folder / "checkpoints",
            every=self._options.checkpoint_every,
            minutes=self._options.checkpoint_minutes,
            say=say,
            resume_with=self.how_to_resume(),
            begin=self._begin,
        )

    def how_to_resume(self) -> str:
        """The command that goes on."""
        return f"jaxunlearn {self._command} --config {shlex.quote(str(self.folder / records.CONFIG))} --resume"

    def told(self) -> str | None:
        """A line on what is resumed, with what differs and may; None for a new run."""
        if not self.resumed:
            return None
        then, now = (about["environment"] for about in (_read(self.folder), self._about))
        changed = [f"{name} was {then.get(name)} and is {now[name]}" for name in now if then.get(name) != now[name]]
        differs = f"; {', '.join(changed)}: results agree to rounding, not to the bit" if changed else ""
        return f"going on from {self.folder}{differs}"

    def remove(self) -> None:
        """The run is over."""
        import jax

        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _kept(path: Path) -> tuple[Any] | None:
        """The value in a file, in a tuple because it may be None; None for a file that is absent or damaged."""
        with suppress(ValueError):
            return (kept.read(path),) if path.is_file() else None
        return None

    def _begin(self) -> None:
        import jax

        if jax.process_index() != 0 or (self.folder / "run.json").is_file():
            return
        with new_file(self.folder / records.CONFIG, replace=True) as temporary:
            temporary.write_text(records.configuration(self._command, self._settings), encoding="utf-8")
        # Last: a folder without it is one of a run that had not begun.
        with new_file(self.folder / "run.json", replace=True) as temporary:
            temporary.write_text(json.dumps(self._about, indent=1) + "\n", encoding="utf-8")


def finished(command: str, settings: Any) -> bool:
    """Whether `--resume` asks for a run that is over: its output is there, and says the same command and options."""
    if settings.out is None or not settings.checkpoints.resume:
        return False
    found = _said(settings.out)
    over = found.get("command") == command and _flat(found.get("settings", {})) == plain_options(settings)
    if not of_first(int(over)):
        return False
    shutil.rmtree(_beside(settings.out), ignore_errors=True)
    Reporter().say(f"{settings.out} is complete already")
    return True


def _said(out: Path) -> dict[str, Any]:
    """What an output says of its run: the record in a folder, or a result file itself."""
    if not out.is_file():
        return records.read_record(out) or {}
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remove_unfinished(out: Path) -> None:
    """What a killed process was writing beside its output is of no use to anybody."""
    import jax

    for left in out.parent.glob(f".{out.name}.*") if jax.process_index() == 0 else ():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _beside(out: Path) -> Path:
    named = out if out.name else out.absolute()
    return named.with_name(f"{named.name}.partial")


def _about(command: str, settings: Any, digests: dict[str, str | None]) -> dict[str, Any]:
    options = plain_options(settings)
    return {
        "format": FORMAT,
        "command": command,
        "options": options,
        "inputs": {name: found for name, found in _inputs(options, digests).items() if found is not None},
        "environment": records.environment(),
    }


def plain_options(settings: Any) -> dict[str, Any]:
    """The options that make a run what it is, by flag, as JSON has them."""
    return json.loads(json.dumps(_flat(asdict(settings)), default=str))


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Options by flag, those of groups among them, without those that may change."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in _FREE:
            found |= _flat(value) if isinstance(value, dict) else {name: value}
    return found


def _inputs(options: dict[str, Any], known: dict[str, str | None]) -> dict[str, str | None]:
    """Hashes of all files and folders that options name, `--option factors=FOLDER` among them."""
    found = {name: value for name, value in known.items() if name not in options}
    for name, value in options.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str):
                place = part.partition("=")[2] if name == "option" else part
                found[f"{name} {place}"] = known[name] if name in known else _digest(place)
    return found


def _digest(place: str) -> str | None:
    """Of a file or a checkpoint folder as in records; of another folder, over the data files in it."""
    found = records.digest(place) if place else None
    if found is not None or not place or not Path(place).is_dir():
        return found
    files = sorted(path for path in Path(place).rglob("*") if path.suffix in _DATA)
    return " ".join(filter(None, map(records.digest, files))) or None


def _refuse_foreign(folder: Path) -> None:
    """A folder that a run was about to begin is begun again; anything else in its place is somebody's."""
    mine = (records.CONFIG, f".{records.CONFIG}.", ".run.json.")
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith(mine):
            raise ValueError(
                f"{folder} is where this run would keep its checkpoints, and it holds {path.name}, which is not of a "
                "run; move it away, or choose another --out"
            )


def _read(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        about = {}
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder} is no work folder of an unfinished run; delete it to start anew")
    return about


def _refuse_another(folder: Path, now: dict[str, Any]) -> None:
    then = _read(folder)
    differences = []
    if then["command"] != now["command"]:
        differences.append(f"the command was {then['command']} and is {now['command']}")
    for name in dict.fromkeys([*then["options"], *now["options"]]):
        before, after = then["options"].get(name), now["options"].get(name)
        if before != after:
            differences.append(f"--{name.replace('_', '-')} was {before} and is {after}")
    for name, before in then["inputs"].items():
        option, _, place = name.partition(" ")
        if before != now["inputs"].get(name) and then["options"].get(option) == now["options"].get(option):
            differences.append(f"the contents of {place or name} have changed")
    if differences:
        raise ValueError(
            f"{folder} holds an unfinished run that is another one: {'; '.join(differences)}. Give it as it was, or "
            "delete the folder to start anew"
        )
