"""SIGINT and SIGTERM: a step is finished first, or the block ends at once; either way as `Interrupted`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ..errors import Interrupted

#: What a step may take to end after a signal; it is then given up, for nothing is lost but its own work.
SECONDS_TO_END = 10


class GivenUp(BaseException):
    """A step did not end in time. Not an `Exception`: what a step calls must not take it for an error of its own."""


class Stopped(BaseException):
    """A block ends at once; `Interrupted` from its end on. Not an `Exception` before: a compiler, a decoder of pictures
    or the user's own network would be told to have failed."""


@contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Collect SIGINT and SIGTERM; the block asks whether one came, and finishes its step first if that does not last.

    Args:
        say: told at once that the signal was heard.
    Raises:
        GivenUp: see `giving_up`.
        Interrupted: by a second signal.
    """
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        if asked:  # a second one does not wait
            raise Stopped
        asked.append(number)
        alarms.enter_context(_handlers(give_up, _ALARMS))  # until now an alarm is the caller's own
        say("interrupted: one moment, the step is finished or given up; once more to stop at once")
        _alarm_in(SECONDS_TO_END)

    def give_up(_number: int, _frame: Any) -> None:
        raise GivenUp

    def stopping() -> bool:
        if asked:
            _alarm_in(0)
        return bool(asked)

    with ExitStack() as alarms, _handlers(ask):
        try:
            yield stopping
        except Stopped:
            raise Interrupted("interrupted twice: stopped at once, the last snapshot stays") from None
        finally:
            if asked:
                _alarm_in(0)


@contextmanager
def giving_up() -> Iterator[None]:
    """The block ends without an error where its step is given up after a signal."""
    with suppress(GivenUp):
        yield


#: None on systems without alarms, where steps are waited for.
_ALARMS = (signal.SIGALRM,) if hasattr(signal, "SIGALRM") else ()


def _alarm_in(seconds: float) -> None:
    """Call for the alarm; 0 calls it off."""
    if _ALARMS:
        signal.setitimer(signal.ITIMER_REAL, seconds)


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """SIGINT and SIGTERM end the block at once as `Interrupted`; files are written atomically: what is finished stays.

    Args:
        kept: what the block makes piece by piece, for the message.
    """

    def stop(_number: int, _frame: Any) -> None:
        raise Stopped

    with _handlers(stop):
        try:
            yield
        except Stopped:
            raise Interrupted(
                f"interrupted; what is finished of {kept} is kept, run the same command to go on"
            ) from None


@contextmanager
def held_back() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is over; processes started in it never see them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handlers(
    handler: Callable[[int, Any], None], numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    try:
        old = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not the main thread: leave signals alone
        yield
        return
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
