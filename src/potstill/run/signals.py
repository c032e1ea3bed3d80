"""SIGINT and SIGTERM: a step is finished first, or the block ends at once; either way as `Interrupted`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import Interrupted


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Collect SIGINT and SIGTERM; the block asks whether one came, and finishes its step first."""
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        if asked:  # a second one does not wait
            raise Interrupted("interrupted twice: stopped at once, the last snapshot stays")
        asked.append(number)

    with _handlers(ask):
        yield lambda: bool(asked)


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """SIGINT and SIGTERM end the block at once as `Interrupted`; files are written atomically: what is finished stays.

    Args:
        kept: what the block makes piece by piece, for the message.
    """

    def stop(_number: int, _frame: Any) -> None:
        raise Interrupted(f"interrupted; what is finished of {kept} is kept, run the same command to go on")

    with _handlers(stop):
        yield


@contextmanager
def _handlers(handler: Callable[[int, Any], None]) -> Iterator[None]:
    try:
        old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: leave signals alone
        yield
        return
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
