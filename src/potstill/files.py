"""Writing files so that a reader never sees half of one, and where what can be made again is kept."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from .errors import RunError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: The end of the name of a file that is being written aside.
ASIDE = ".potstill"
CACHE_REMEDY = "name a folder that can be written with POTSTILL_CACHE_DIR or --cache-dir"

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
        handle, temporary = _open_aside(path)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files for the owner alone
            if fcntl:  # still held, so that no `sweep` comes in between; elsewhere an open file cannot be renamed
                os.replace(temporary, path)
        if not fcntl:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder and the disk"
        raise RunError(f"cannot write {path}: {error.strerror or error}; {remedy} and run again") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def sweep(*folders: Path) -> None:
    """Remove what killed processes were writing aside in these folders; a file that a live one holds stays.

    Where files cannot be held (Windows, some network disks) nothing is removed.
    """
    for folder in folders:
        for path in folder.glob(f".*{ASIDE}"):
            with suppress(OSError), path.open("rb") as file:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def require_writable(cache: Path) -> None:
    """Make the folder of a cache, and try whether files can be written there, before anything long is begun.

    Raises:
        RunError: they cannot; names the remedy.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise RunError(f"{cache}: the cache cannot be written ({error.strerror or error}); {CACHE_REMEDY}") from error


def default_cache() -> Path:
    """`POTSTILL_CACHE_DIR`, else `potstill` in the user's cache folder (XDG).

    Raises:
        UsageError: neither is set and the user has no home.
    """
    if chosen := os.environ.get("POTSTILL_CACHE_DIR"):
        return expanded(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return expanded(caches) / "potstill"
    try:
        return Path.home() / ".cache" / "potstill"
    except RuntimeError:
        raise UsageError(f"no cache folder: this user has no home; {CACHE_REMEDY}") from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` as the user's home, which a shell leaves as it is behind a `=` and Python everywhere.

    Raises:
        UsageError: there is no such home, or it is no path at all: an empty one would be the current folder.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path).strip() or "\0" in str(path):
        raise UsageError(f"{path!r}: is no path; name a file or folder")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such home; give the whole path") from None


def _open_aside(path: Path) -> tuple[int, str]:
    """A new file beside `path`, open and held against `sweep`: its handle and name."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=ASIDE)
        if fcntl:
            with suppress(OSError):  # a network disk without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, name
        os.close(handle)  # swept before it was held


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
