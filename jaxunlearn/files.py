"""Outputs that appear whole or not at all.

Everything is written under a temporary name beside its target, flushed to the disk and renamed, so that whatever
moment a process is killed at, a target is either complete or as it was before.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def refuse_folder(folder: str | Path) -> None:
    """Raises ValueError if `folder` is anything but absent or empty: nothing that exists is overwritten."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not an empty folder; choose another output folder")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path | None]:
    """A temporary folder that becomes `folder` at the end of the block; on any error it is removed.

    Of several processes all enter the block, and the first one writes; the others get None.

    Raises:
        ValueError: on entry, when the folder holds something already.

    Example:
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with new_folder(f"{home}/out") as out:
        ...         _ = (out / "a.txt").write_text("whole")
        ...     (Path(home) / "out" / "a.txt").read_text()
        'whole'
    """
    import jax

    folder = Path(folder)
    refuse_folder(folder)
    if jax.process_index() != 0:
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        os.chmod(temporary, 0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def new_file(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary path whose file becomes `path` at the end of the block; on any error it is removed.

    Args:
        path: the target; its folder is made if need be.
        replace: take the place of a file that exists.

    Raises:
        ValueError: on entry, when the file exists and may not be replaced.
    """
    path = Path(path)
    if not replace and path.exists():
        raise ValueError(f"{path} exists and is not overwritten; choose another name or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: str | Path, content: bytes) -> Path:
    """Write a file that does not exist yet.

    Raises:
        ValueError: when it does.
    """
    with new_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _flush(path: Path) -> None:
    """A rename must not reach the disk before the bytes do."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
