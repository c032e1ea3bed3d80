"""Writing files so that a reader never sees half of one, and where what can be made again is kept."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import RunError

#: Of every JSON document that potstill writes.
SCHEMA_VERSION = 1


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write aside in the same folder, flush to disk, then rename over `path`: the old content or the new, never a part.

    Raises:
        RunError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder and the disk"
        raise RunError(f"cannot write {path}: {error.strerror or error}; {remedy} and run again") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def default_cache() -> Path:
    """`POTSTILL_CACHE_DIR`, else `potstill` in the user's cache folder (XDG)."""
    if chosen := os.environ.get("POTSTILL_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "potstill"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the system allows it."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
