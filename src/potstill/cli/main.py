"""`potstill VERB ...`: find the verb, run it, and turn whatever goes wrong into one line and an exit code.

Results go to stdout, progress and logs to stderr. Torch is imported only once a verb runs, so that help and usage
errors answer at once.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from .. import _version
from ..errors import Interrupted, PotstillError, RunError, UsageError, out_of_memory, printable
from ..run.signals import held_back, interruptible
from . import compare, distill, evaluate, export, list, pretrain, report, reproduce
from .options import EXIT_CODES

VERBS = (distill, evaluate, compare, pretrain, export, report, reproduce, list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 has no sign for a missing value
    options, rest = build_parser().parse_known_args(argv)
    _log_to_stderr(logging.WARNING if options.quiet else logging.INFO)
    try:
        with interruptible("the work"):
            if rest and not options.takes_keys:
                raise UsageError(f"unexpected argument {rest[0]!r}: see potstill {options.verb} --help")
            options.keys = rest
            _require_current_folder()
            with held_back():  # in the midst of its import torch answers a signal by ending the process
                import torch  # noqa: F401
            options.run(options)
            sys.stdout.flush()  # here, where a full disk or a reader that left can still be answered
    except PotstillError as error:
        return _failed(printable(str(error)), error.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted", Interrupted.exit_code)
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        if not (known := out_of_memory(error) or _disk_failure(error)):
            raise
        _drop_stdout()
        return _failed(printable(str(known)), known.exit_code)
    return 0


def _open_closed_streams() -> None:
    """What a shell closes (`>&-`) goes nowhere; else the next file opened would take its number, and its output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _require_current_folder() -> None:
    """Raises UsageError where it was deleted: libraries of torch end the process then."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the current folder cannot be used ({error.strerror}): change to one that is there"
        ) from error


def _disk_failure(error: Exception) -> RunError | None:
    if not isinstance(error, OSError):
        return None
    place = f"{error.filename}: " if error.filename else ""
    return RunError(f"{place}{error.strerror or error}; check the disk and its permissions")


def _failed(message: str, exit_code: int) -> int:
    with suppress(OSError):
        print(f"potstill: {message}", file=sys.stderr)
    return exit_code


def _drop_stdout() -> None:
    """Let what is left to be written go nowhere: the interpreter would fail on it once more as it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log_to_stderr(level: int) -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_one_line)
    logging.getLogger("potstill").setLevel(level)


def _one_line(record: logging.LogRecord) -> bool:
    """Names of files reach a terminal without their line breaks and escape codes."""
    if record.name == "potstill":
        record.msg, record.args = printable(record.getMessage()), ()
    return True


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake, in place of all options and the message below them."""
        self.exit(UsageError.exit_code, f"potstill: {printable(message)}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="potstill",
        description="Distil a labelled data set into a tiny synthetic one that trains networks almost as well.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"potstill {_version.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser
