"""An engine by its name."""

from __future__ import annotations

from ...errors import UsageError
from .base import Engine

ENGINES = ("serial", "processes", "ray")


def find_engine(name: str, workers: int | None = None) -> Engine:
    """The engine of that name, a context: workers end with its block.

    Args:
        workers: tasks at once on this machine; None for what it has cores or GPUs for.
    Raises:
        UsageError: an unknown name, or workers of the serial one.
        MissingExtra, RunError: see `engine.ray.Ray`.
    """
    if name not in ENGINES:
        raise UsageError(f"engine={name!r}: use one of {', '.join(ENGINES)}")
    if name == "serial":
        if workers not in (None, 1):
            raise UsageError(f"workers={workers}: the serial engine has one; use --engine processes or ray")
        from .serial import Serial

        return Serial()
    if name == "processes":
        from .workers import Workers

        return Workers(workers)
    from .ray import Ray

    return Ray(workers)
