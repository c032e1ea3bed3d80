"""The folder of compiled code: what a killed run left half written there is found before a compiler trips over it.

torch writes its code and its records aside and renames them, but lets the linker write libraries in place, and takes
every file that it finds for a whole one. A backward graph's library is loaded far from where its function was called.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("potstill")

#: Folders of pickled records, by names that torch gives.
RECORDS = ("fxgraph", "aotautograd")
#: Names of code: a hash of it in base 32.
CODE_NAME = re.compile("c[a-z2-7]{51}")
#: Seconds after which a file written aside is no longer being written: that takes milliseconds.
WRITTEN_WITHIN = 60


def mend(folder: Path) -> None:
    """Remove torn files below `folder`, for torch to make them anew; what another process is making stays."""
    torn = 0
    with suppress(OSError):  # a folder that is only read, or that another process mends too
        for path in _files(folder):
            if path.suffix == ".tmp":
                if time.time() - path.stat().st_mtime > WRITTEN_WITHIN:
                    path.unlink()
            elif is_torn(path):
                torn += _removed(path, folder)
    if torn:
        log.warning("%s: %d files left half written by a run that was stopped; compiling them again", folder, torn)


def is_torn(path: Path) -> bool:
    """Whether a file of compiled code is certainly not as it was written."""
    if path.suffix == ".so":
        return not _is_whole_library(path)
    if path.suffix == ".py" and CODE_NAME.fullmatch(path.stem):
        from torch._inductor.codecache import code_hash  # not above: the compiler takes seconds to import

        return code_hash(path.read_bytes().strip()) != path.stem  # code is named by its hash
    is_record = not path.suffix and any(parent.name in RECORDS for parent in path.parents)
    return is_record and not path.read_bytes().endswith(b".")  # what a whole pickle ends with


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")


def _removed(path: Path, folder: Path) -> bool:
    """Remove a torn file, unless it is being written: torch holds a lock of this name while the linker works."""
    lock = folder / "locks" / f"{path.name.split('.')[0]}.lock"
    try:
        lock.parent.mkdir(exist_ok=True)
        with FileLock(lock, timeout=0):
            if not is_torn(path):
                return False
            for half in (path, path.with_suffix(".cpp")):  # its source may have been cut with it
                half.unlink(missing_ok=True)
            return True
    except Timeout:
        return False


def _is_whole_library(path: Path) -> bool:
    """Whether an ELF file reaches to the end of its section table, which lies last; elsewhere than on Linux, any."""
    size = path.stat().st_size
    if not sys.platform.startswith("linux"):
        return size > 0
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    order = "little" if header[5] == 1 else "big"
    table, entry, count = (int.from_bytes(header[a:b], order) for a, b in ((40, 48), (58, 60), (60, 62)))
    return table >= 64 and table + entry * count <= size
