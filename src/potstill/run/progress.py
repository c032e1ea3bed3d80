"""Progress: a bar with ETA and loss terms on a terminal, a plain line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from ..errors import printable
from .ahead import Ahead

#: Seconds between plain lines.
PLAIN_EVERY = 30.0
#: Stages of a cell, and the kinds of parts that they are among those of a study.
KIND_OF = {"pretrain": "pools", "distill": "sets", "evaluate": "networks", "full data": "networks"}


#: Told how many steps are done, and a word on the last one.
Show = Callable[[int, str], None]


class Reporter:
    """Says how far a stage is, and where `ahead` is given, how long all will take. `quiet` says nothing."""

    def __init__(self, *, quiet: bool = False):
        self.quiet = quiet
        self.ahead: Ahead | None = None
        self.console = Console(stderr=True, highlight=False)
        self.bars = not quiet and self.console.is_terminal and not os.environ.get("CI")

    def say(self, text: str) -> None:
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        """A stage of `total` steps of which `done` are done; the block calls `advance` on what it is given."""
        if self.bars:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                console=self.console,
                expand=True,
            ) as progress:
                task = progress.add_task(name, total=total, completed=done, note="")
                show = self._watched(name, total, done, lambda n, note: progress.update(task, completed=n, note=note))
                yield Stage(name, total, done, show)
        else:
            yield Stage(name, total, done, self._watched(name, total, done, self._plain_lines(name, total, done)))

    def _watched(self, name: str, total: int, first: int, show: Show) -> Show:
        """`show`, and the study's progress beside that of the stage."""
        ahead, kind = self.ahead, KIND_OF.get(name)
        if ahead is None or kind is None:
            return show
        ahead.enter(kind, first / max(1, total))

        def watched(done: int, note: str) -> None:
            ahead.advance(done / total)
            show(done, note + ahead.words())

        return watched

    @contextmanager
    def beating(self, stage: Stage, note: Callable[[], str]) -> Iterator[None]:
        """While the block waits, tell now and then what is known."""
        if self.quiet:
            yield
            return
        ended = Event()

        def beat() -> None:
            while not ended.wait(1.0 if self.bars else PLAIN_EVERY / 6):
                stage.tell(note())

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def counter(self, name: str) -> Callable[[int, int], None]:
        """Called with (done, total) within another stage, it says so in plain lines now and then."""
        show = None

        def count(done: int, total: int) -> None:
            nonlocal show
            show = show or self._plain_lines(name, total, done - 1)
            show(done, "")

        return count

    def _plain_lines(self, name: str, total: int, first: int) -> Show:
        started = last = time.monotonic()

        def show(done: int, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_EVERY or done == total:
                last = now
                left = (now - started) / max(1, done - first) * (total - done)
                told = f", {left:.0f} s left" if done > first and " left" not in note else ""
                self.say(f"{name} {done}/{total}{told}  {note}".rstrip())

        return show


class Telling(Reporter):
    """Says nothing, and tells what share is done of the one stage that a task is known by."""

    def __init__(self, stage: str, tell: Callable[[float], None]):
        super().__init__(quiet=True)
        self._stage, self._tell = stage, tell

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        tell = self._tell if name == self._stage else lambda _: None
        tell(done / max(1, total))
        yield Stage(name, total, done, lambda n, _: tell(n / max(1, total)))


class Stage:
    """Counts the steps of a stage and shows them."""

    def __init__(self, name: str, total: int, done: int, show: Show):
        self.name, self.total, self.done, self._show = name, total, done, show

    def advance(self, note: str = "") -> None:
        self.done += 1
        self._show(self.done, note)

    def tell(self, note: str) -> None:
        """The same step still, and a word."""
        self._show(self.done, note)
