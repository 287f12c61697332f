"""The record a run leaves inside its output folder: what was done, to what, with what result. Never any data text."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from jaxunlearn.files import require_room, write_new
from jaxunlearn.version import __version__

FILE = "jaxunlearn.json"
CONFIG = "jaxunlearn.yaml"


def refuse_existing(out: Path) -> None:
    """Raise before anything starts when the output folder already holds something, or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"--out {out} exists already and is not an empty folder: nothing of yours is overwritten; "
            "choose another name"
        )
    require_room(out)


def refuse_files(**outputs: Path | None) -> None:
    """Raise before anything starts when an output file exists or cannot be made.

    Each is named by its flag: `refuse_files(out=settings.out)`.
    """
    for name, path in outputs.items():
        if path is not None and path.exists():
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} {path} exists already: nothing of yours is overwritten; choose another name")
        if path is not None:
            require_room(path)


def refuse_result(out: Path | None, flag: str = "--out") -> None:
    """The same for a result file beside which `write_options` will leave the options of the run."""
    refuse_files(**{flag.removeprefix("--").replace("-", "_"): out})
    if out is not None and beside(out).exists():
        raise ValueError(
            f"{flag} {out}: the options of the run would be written to {beside(out)}, which exists already; choose "
            "another name"
        )


def environment() -> dict[str, str]:
    """Versions and devices."""
    from importlib.metadata import version

    import jax

    device = jax.devices()[0]
    return {
        "jaxunlearn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("jax", "flax", "optax", "transformers", "safetensors")},
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    }


def digest(path: str | Path) -> str | None:
    """SHA-256 of a file; of a checkpoint folder, over its weight files in order; None for anything else."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        return None
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def weight_bytes(folder: Path) -> int:
    """What the weight files of a checkpoint folder take on the disk: what a model made of it will take."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def record(
    command: str,
    settings: Any,
    inputs: dict[str, str | Path | None],
    *,
    digests: dict[str, str | None] | None = None,
    **facts: Any,
) -> str:
    """The record as JSON text; `digests` are those of inputs that were taken already, for large ones."""
    known = digests or {}
    content = {
        "command": command,
        "arguments": sys.argv[1:] if _is_ours(Path(sys.argv[0])) else None,
        "settings": asdict(settings) if is_dataclass(settings) else settings,
        "inputs": _named(inputs, known),
        "environment": environment(),
        **facts,
    }
    return json.dumps(content, indent=2, default=_plain) + "\n"


def _is_ours(program: Path) -> bool:
    """Whether this program is the command line, as `jaxunlearn` or as `python -m jaxunlearn`."""
    return program.name.startswith("jaxunlearn") or program.parts[-2:] == ("jaxunlearn", "__main__.py")


def provenance(
    models: Mapping[str, Path], sources: Mapping[str, str | None], *, weights: Mapping[str, str | None] | None = None
) -> dict[str, Any]:
    """What a result file says of its origin, so that a reader can tell which weights and records it is about.

    Args:
        models: column name to checkpoint folder.
        sources: set name to its file, None where there is none.
        weights: hashes by column, where they were taken already.
    """
    return {
        "models": {name: str(folder) for name, folder in models.items()},
        "weights": {name: digest(folder) for name, folder in models.items()} if weights is None else dict(weights),
        "inputs": _named(sources, {}),
    }


def _named(
    inputs: Mapping[str, str | Path | None], known: Mapping[str, str | None]
) -> dict[str, dict[str, str | None]]:
    return {
        name: {"path": str(path), "sha256": known[name] if name in known else digest(path)}
        for name, path in inputs.items()
        if path
    }


def json_lines(entries: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(entry, default=_plain) + "\n" for entry in entries)


def beside(out: Path) -> Path:
    """Where the options of a run stand whose output is a file.

    Example:
        >>> beside(Path("here/result.json")).name, beside(Path("notes.yaml")).name
        ('result.yaml', 'notes.options.yaml')
    """
    return out.with_suffix(".yaml" if out.suffix != ".yaml" else ".options.yaml")


def write_options(out: Path, command: str, settings: Any) -> None:
    """Writes the options of a run beside its output file, for `--config`."""
    write_new(beside(out), configuration(command, settings, beside(out).name, "NEW-FILE").encode())


def configuration(command: str, settings: Any, file: str = CONFIG, out: str = "NEW-FOLDER") -> str:
    """All options of a run as YAML, by the names of their flags: what `--config` reads again.

    Nothing is overwritten, so the first line says which outputs need another name: `--out`, and all fields that the
    settings mark as one.
    """
    import yaml

    marked = [one.name for one in fields(settings) if one.metadata.get("output") and getattr(settings, one.name)]
    others = "".join(f" --{name.replace('_', '-')} NEW-FILE" for name in marked)

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(part) for part in value]
        return str(value) if isinstance(value, Path) else value

    lists = {name: plain(value) for name, value in _options(settings)}
    text = yaml.safe_dump(lists, sort_keys=False, allow_unicode=True, width=120)
    return f"# jaxunlearn {command} --config {file} --out {out}{others} runs this again.\n{text}"


def _options(settings: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of every option that is set, those of groups among them."""
    for field in fields(settings):
        if not field.metadata.get("recorded", True):
            continue
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _options(value)
        elif value is not None and value != ():
            yield field.name, value


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The record in a checkpoint folder, or None."""
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a run's record")
