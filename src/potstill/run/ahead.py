"""How long a study will still take: what was estimated of each part, at the pace that parts of its kind have shown.

A part is what one cell needs of one kind: its pool, its search, its set, its networks. Parts are done one after another
here, or as tasks by several workers, kind after kind. What was seen of parts, whole ones or shares, over what was
estimated of them is their pace: of those of one kind and method, before that of the kind, before that of all, and at
first that of the estimate.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

#: In the order of the rounds of `run/spread`.
KINDS = ("pools", "searches", "sets", "networks")
#: The pace of a task, a method or a kind counts so much of an average part as done at the pace that was supposed.
PRIOR = 0.25
#: That of all counts so much of the whole as done at that of the estimate: short parts say little of long ones.
PRIOR_OF_ALL = 0.1
#: What was seen counts half after this share of the time gone: what else a machine does comes and goes.
HALF = 0.25
#: What is left of a task that takes longer than expected, as a share of what was expected.
OVERDUE = 0.1


@dataclass
class Part:
    """Seconds by estimate; the share that is done, that which was seen being done, and what it took.

    Attributes:
        method: parts of one kind and method are estimated alike, and alike wrongly.
        group: parts that are done after one another here, before those of the next.
        pieces: tasks that it is made of.
        passes: times that its stage is gone through when it is done here: an evaluation for each of several sets.
        at: when the last of it was seen.
    """

    cell: str
    kind: str
    seconds: float
    method: str = ""
    group: int = 0
    pieces: int = 1
    passes: int = 1
    done: float = 0.0
    seen: float = 0.0
    took: float = 0.0
    passed: int = 0
    at: float = 0.0

    @property
    def left(self) -> float:
        return self.seconds * (1 - self.done)


@dataclass
class Running:
    """A task at work: since when, when it last told something, and from which share it told that it goes on."""

    part: Part
    began: float
    told: float
    first: float | None = None


class Ahead:
    """Parts in the order in which they are done."""

    def __init__(self, parts: Iterable[Part] = (), workers: int = 1, clock: Callable[[], float] | None = None):
        self.parts = [part for part in parts if part.seconds > 0]
        self.clock, self._workers = clock or time.perf_counter, workers
        self._said, self._said_at = "", -math.inf
        self._kind, self._blind = "", not self.parts
        self._tasks, self._running = dict[str, Part](), dict[str, Running]()
        self._stage: tuple[Part, Part, float, float] | None = None
        self._began = self._group_began = self.clock()

    # --- parts that are done here, one after another

    def enter(self, kind: str, done: float) -> None:
        """A stage of the current group begins, of which a share is done already."""
        group = next((part.group for part in self.parts if part.done < 1), None)
        part = next((p for p in self.parts if p.group == group and p.kind == kind), None)
        self._stage = part and (part, replace(part), self.clock(), done)
        if part:
            for before in self.parts[: self.parts.index(part)]:  # found done, or too short to tell of it
                before.done = 1.0
            part.passed += 1

    def advance(self, share: float) -> None:
        """So much of the stage is done."""
        if self._stage:
            part, before, began, first = self._stage
            part.done = min(1.0, (before.passed + share) / part.passes)
            part.seen = before.seen + max(0.0, share - first) / part.passes
            part.at = self.clock()
            part.took = before.took + part.at - began

    def tick(self, group: int) -> None:
        """Its parts have ended, well or not. Those that no stage told of share the time that the others leave."""
        parts, now = [part for part in self.parts if part.group == group], self.clock()
        unseen = [part for part in parts if not part.seen]
        spent = now - self._group_began - sum(part.took for part in parts)
        for part in unseen:
            part.took = max(0.0, spent) * part.seconds / sum(p.seconds for p in unseen)
            part.seen, part.at = 1.0, now
        for part in parts:
            part.done = 1.0
        self._group_began = now

    # --- parts that are done as tasks by workers

    def begin(self, kind: str, tasks: Mapping[str, str], workers: int) -> None:
        """A round of tasks in their order, by name with the cell that each is of; of other cells nothing is to do."""
        cells = list(tasks.values())
        counts = {cell: cells.count(cell) for cell in cells}
        known, methods = dict[str, float](), dict[str, str]()
        for part in self.parts:
            if part.kind == kind:
                known[part.cell] = known.get(part.cell, 0.0) + part.seconds
                methods[part.cell] = part.method
        told = [cell for cell in counts if cell in known]
        usual = sum(known[cell] for cell in told) / sum(counts[cell] for cell in told) if told else float(self._blind)
        for part in self.parts:
            if part.kind in KINDS[: KINDS.index(kind)]:
                part.done = 1.0
        others = [part for part in self.parts if part.kind != kind]
        self._tasks = {
            name: Part(cell, kind, known[cell] / counts[cell] if cell in known else usual, methods.get(cell, ""))
            for name, cell in tasks.items()
        }
        self.parts, self._kind, self._workers = [*others, *self._tasks.values()], kind, workers
        self._running = {}

    def hear(self, name: str, share: float | None) -> None:
        """A task of the round begins, perhaps again (None), or so much of it is done."""
        now, part = self.clock(), self._tasks[name]
        if share is None or name not in self._running:
            self._running[name] = Running(part, now, now)
            part.done = part.seen = part.took = 0.0
        if share is None:
            return
        task = self._running[name]
        if task.first is None:  # what was before is no work on it
            task.first, task.began = share, now
        task.told, part.done = now, share
        part.seen, part.took, part.at = share - task.first, now - task.began, now

    def end(self, name: str, seconds: float, *, failed: bool = False) -> None:
        """A task of the round ended, which took a worker so long; of one that failed that says nothing."""
        part, task = self._tasks[name], self._running.pop(name, None)
        part.done, part.took, part.at = 1.0, 0.0 if failed else seconds, self.clock()
        part.seen = 0.0 if failed else 1.0 - ((task and task.first) or 0.0)

    @property
    def at_work(self) -> list[tuple[str, float]]:
        """Names of the tasks that are at work, and what share of each is done."""
        return [(name, task.part.done) for name, task in list(self._running.items())]

    # --- what is left

    def left(self) -> float:
        """Seconds until all is done; until the end of the round where nothing was estimated."""
        known = [self._as_known(part) for part in self.parts]
        overall = self._pace(known, PRIOR_OF_ALL * sum(part.seconds for part in known), 1.0)
        total = 0.0
        for kind in [self._kind] if self._blind else KINDS:
            of_kind = [(part, seen) for part, seen in zip(self.parts, known, strict=True) if part.kind == kind]
            usual = self._pace([seen for _, seen in of_kind], self._prior([seen for _, seen in of_kind]), overall)
            paces = {
                method: self._pace(alike, self._prior(alike), usual)
                for method in {part.method for part, _ in of_kind}
                for alike in [[seen for part, seen in of_kind if part.method == method]]
            }
            total += makespan(self._pieces(kind, [part for part, _ in of_kind], paces), self._workers)
        return total

    def _pace(self, parts: Sequence[Part], weight: float, prior: float) -> float:
        """Seconds taken for one that was estimated, with `weight` of these taken at the pace `prior`.

        What was seen lately counts more of what was seen, and no more beside the prior.
        """
        now = self.clock()
        half = HALF * max(now - self._began, 1e-9)
        parts = [part for part in parts if part.seen]
        fresh = [0.5 ** ((now - part.at) / half) for part in parts]
        seen = sum(part.seconds * part.seen for part in parts)
        lately = sum(share * part.seconds * part.seen for share, part in zip(fresh, parts, strict=True))
        took = sum(share * part.took for share, part in zip(fresh, parts, strict=True))
        pace = took / lately if lately else 0.0
        return (pace * seen + prior * weight) / (seen + weight) if seen + weight else prior

    def _prior(self, parts: Sequence[Part]) -> float:
        """Seconds that a pace of these parts counts as if done at the pace that was supposed of them."""
        return 0.0 if self._blind or not parts else PRIOR * sum(part.seconds for part in parts) / len(parts)

    def _as_known(self, part: Part) -> Part:
        """A task that is at work for longer than was estimated, without a word, takes at least so long."""
        task = next((task for task in list(self._running.values()) if task.part is part), None)
        elapsed = self.clock() - task.began if task and not part.seen else 0.0
        return replace(part, seen=1.0, took=elapsed, at=self.clock()) if elapsed > part.seconds else part

    def _pieces(self, kind: str, parts: Sequence[Part], paces: Mapping[str, float]) -> list[float]:
        """Seconds that each task of a kind still takes, those at work first."""
        if kind != self._kind:
            return [paces[part.method] * part.left / part.pieces for part in parts for _ in range(part.pieces)]
        now, running = self.clock(), list(self._running.values())
        pieces = []
        for task in running:
            own = self._pace([task.part], self._prior([task.part]), paces[task.part.method])
            left = own * task.part.left
            pieces.append(max(left - (now - task.told), OVERDUE * left))
        at_work = {id(task.part) for task in running}
        return pieces + [paces[part.method] * part.left for part in parts if id(part) not in at_work]

    def words(self) -> str:
        """For the end of a line about something else; "" where nothing is known."""
        if self.parts and self.clock() - self._said_at >= 1:  # steps may take less than finding out
            self._said, self._said_at = self._words(), self.clock()
        return self._said

    def _words(self) -> str:
        if not self._blind:
            return f"; in all about {span(self.left())} left"
        running = [task.part.seen for task in list(self._running.values())]
        told = any(part.seen for part in self.parts) and all(running)
        return f"; about {span(self.left())} left of the {self._kind}" if told else ""


def makespan(seconds: Iterable[float], workers: int) -> float:
    """When the last task ends of those that are dealt, in their order, to whoever is free."""
    free = [0.0] * workers
    for task in seconds:
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def span(seconds: float) -> str:
    """A length of time: `40 s`, `12 min`, `3.4 h`, `2.5 days`."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} days"
