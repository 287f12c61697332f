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


def require_room(target: str | Path, size: int = 0) -> None:
    """Raise before anything starts when a file or folder cannot be written: found out by writing one byte.

    Args:
        target: what will be written, file or folder; its parents need not exist.
        size: bytes it will take.

    Raises:
        ValueError: the place cannot be written to, or has less room than `size`.

    Example:
        >>> with tempfile.TemporaryDirectory() as home:
        ...     require_room(f"{home}/new/out", 1000)
        ...     require_room(f"{home}/new/out", 10**18)
        Traceback (most recent call last):
        ValueError: .../new/out needs about 1,000,000,000,000 MB and ... MB are free in ...; make room or choose ...
    """
    home = Path(target).absolute().parent
    while not home.exists():
        home = home.parent
    try:
        with tempfile.NamedTemporaryFile(prefix=".jaxunlearn.", dir=home) as probe:
            probe.write(b"0")
            probe.flush()
            free = shutil.disk_usage(home).free
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{target} cannot be written: {home}: {reason}; choose another place") from None
    if free < size:
        raise ValueError(
            f"{target} needs about {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free in {home}; make room or "
            "choose another place"
        )


def refuse_folder(folder: str | Path) -> None:
    """Raises ValueError if `folder` is anything but absent or empty: nothing that exists is overwritten."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and is not an empty folder; choose another output folder")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path | None]:
    """A temporary folder that becomes `folder` at the end of the block; on any error it is removed.

    Of several processes all enter the block, and the first one writes; the others get None, and wait at its end until
    the folder is there.

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
    # A process that is late must not find what the first one has written since, and take it for somebody else's.
    _all_here(f"begin {folder.name}")
    if jax.process_index() != 0:
        yield None
        _all_here(f"end {folder.name}")
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
    _all_here(f"end {folder.name}")


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
    """Write a file that does not exist yet. Of several processes all may call it, and the first one writes.

    Raises:
        ValueError: when it does.
    """
    import jax

    if jax.process_index() == 0:
        with new_file(path) as temporary:
            temporary.write_bytes(content)
    return Path(path)


def _all_here(where: str) -> None:
    """No process goes on before all have come here."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(where)


def _flush(path: Path) -> None:
    """A rename must not reach the disk before the bytes do."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
