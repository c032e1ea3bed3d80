"""Content to the disk, whole or not at all. Knows no format."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ...errors import RunError, UsageError
from ...files import write_atomically
from .base import Content


def publish(destination: Path, content: Content, *, overwrite: bool = False) -> None:
    """Write a file or a folder aside, then rename it: whoever looks sees the old content or the new, never a part.

    Args:
        overwrite: replace a file; or a folder whose entries are those of `content`, so that no folder of another
            kind can be lost.
    Raises:
        UsageError: the destination exists and is not to be replaced.
        RunError: it cannot be written; what was there is untouched.
    """
    _check_free(destination, content, overwrite)
    if isinstance(content, bytes):
        write_atomically(destination, content)
    else:
        _write_folder(destination, content)


def _check_free(destination: Path, content: Content, overwrite: bool) -> None:
    if not os.path.lexists(destination):
        return
    if isinstance(content, bytes):
        if destination.is_dir():
            raise UsageError(f"{destination}: is a folder, and this export is one file: name the file to write")
    elif not destination.is_dir():
        raise UsageError(f"{destination}: is a file, and this export is a folder: name another destination")
    if not overwrite:
        raise UsageError(f"{destination}: exists already: name another destination, or replace it with --overwrite")
    if isinstance(content, dict):
        found = {path.name for path in destination.iterdir()}
        expected = {name.split("/")[0] for name in content}
        if found and found != expected:
            raise UsageError(
                f"{destination}: holds {_list(found)}; only an earlier export in this form is replaced "
                f"({_list(expected)}): name another destination, or clear the folder yourself"
            )


def _list(names: set[str], most: int = 6) -> str:
    return ", ".join(sorted(names)[:most]) + (" and more" if len(names) > most else "")


def _write_folder(destination: Path, content: dict[str, bytes]) -> None:
    aside = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
        fresh = aside / "fresh"
        fresh.mkdir()
        for name, data in content.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        _exchange(fresh, destination, aside / "replaced")
    except OSError as error:
        raise RunError(
            f"cannot write {destination}: {error.strerror or error}; check the folder and the free space, and try again"
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(fresh: Path, destination: Path, replaced: Path) -> None:
    """Rename `fresh` to `destination`; what was there goes to `replaced`, or back where the second rename fails."""
    try:
        if os.path.lexists(destination):
            os.replace(destination, replaced)
        os.replace(fresh, destination)
    except BaseException:
        if os.path.lexists(replaced) and not os.path.lexists(destination):
            os.replace(replaced, destination)
        raise
