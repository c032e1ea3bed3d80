"""What can go wrong for a user, each with its exit code. Leaves printing to `cli`.

Every message names the value found, what would be valid and the remedy, in one line.
"""

from __future__ import annotations

import re
from pathlib import Path


class PotstillError(Exception):
    """Base of all errors meant for the user; `exit_code` is what the command line returns."""

    exit_code = 1


class RunError(PotstillError):
    """The run itself failed: a loss that is not finite, a full disk, a locked folder."""

    exit_code = 1


class UsageError(PotstillError, ValueError):
    """A wrong argument, an unknown name or a recipe that cannot be resolved."""

    exit_code = 2


class DataError(PotstillError, ValueError):
    """Data that is missing, damaged or does not fit."""

    exit_code = 3


class MissingExtra(PotstillError, ImportError):
    """An optional dependency is not installed; the message names the extra."""

    exit_code = 4

    def __init__(self, purpose: str, extra: str):
        super().__init__(f"{purpose} needs an optional dependency: pip install 'potstill[{extra}]'")
        self.purpose, self.extra = purpose, extra

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # errors travel between processes
        return type(self), (self.purpose, self.extra)


class Interrupted(PotstillError):
    """SIGINT or SIGTERM arrived; a snapshot has been written and the run can be resumed."""

    exit_code = 130


#: How Python, numpy, torch's allocators and the system say that memory ran out, and what was asked for.
_NO_MEMORY = re.compile(r"(out of|not enough) memory|(can't|cannot|unable to) allocate", re.IGNORECASE)
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def out_of_memory(error: Exception) -> RunError | None:
    """What to tell the user where `error` means that memory ran out, None where it means something else."""
    if (shortage := _shortage(error)) is None:
        return None
    return RunError(
        f"{shortage}: ask for less (a smaller --ipc, --method.real_batch, data set or network, --at-once 1), or free "
        "some memory, and try again"
    )


def refuse_out_of_memory(error: Exception, what: str) -> None:
    """For a broad `except`, which would call it damage.

    Raises:
        RunError: `error` means that memory ran out on `what`.
    """
    if shortage := _shortage(error):
        raise RunError(
            f"{what}: {shortage}; free some memory, or take another copy where it cannot need that much"
        ) from error


def unreadable(path: object, error: OSError) -> DataError:
    """For a file that is there and may be whole, but that this user, or this disk, does not give out."""
    return DataError(f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions")


def refuse_pipes(path: Path) -> None:
    """Raises DataError for what is there but neither a file nor a folder: reading it would wait for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: is a pipe or a device, expected a file: remove it or give another")


def _shortage(error: Exception) -> str | None:
    text = str(error)
    said = isinstance(error, (RuntimeError, OSError)) and _NO_MEMORY.search(text)
    if not said and not isinstance(error, MemoryError):
        return None
    asked = _ASKED.search(text)
    return f"out of memory{f' when {asked[1]} more were asked for' if asked else ''}"


def reason(error: Exception) -> str:
    """One line on what went wrong: our own message, or the kind and message of an error we did not foresee."""
    known = error if isinstance(error, PotstillError) else out_of_memory(error)
    text = " ".join(str(known or error).split())
    return text if known else f"{type(error).__name__}: {text}"


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `1,500 epochs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """`text` in one line, with escape codes and other control characters written out: names of files can hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
