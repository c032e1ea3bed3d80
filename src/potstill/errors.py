"""What can go wrong for a user, each with its exit code. Leaves printing to `cli`.

Every message names the value found, what would be valid and the remedy, in one line.
"""


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


def reason(error: Exception) -> str:
    """One line on what went wrong: our own message, or the kind and message of an error we did not foresee."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PotstillError) else f"{type(error).__name__}: {text}"


def printable(text: str) -> str:
    """`text` in one line, with escape codes and other control characters written out: names of files can hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
