"""How long a study will still take: told at the pace that its parts have shown, here and by several workers."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterator

import pytest

from potstill.run.ahead import KINDS, Ahead, Part, makespan, span
from potstill.run.progress import Reporter


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_tasks_are_dealt_in_their_order_to_whoever_is_free() -> None:
    assert makespan([3, 1, 1, 4], 2) == 6 and makespan([4, 3, 1, 1], 2) == 5 and makespan([], 3) == 0


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (720, "12 min"), (12240, "3.4 h"), (216000, "2.5 days")])
def test_a_length_of_time_is_told_in_its_unit(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_stage_that_is_half_done_tells_the_pace_of_its_kind_and_first_guesses_of_others() -> None:
    watch = Watch()
    ahead = Ahead([Part("a", "sets", 100), Part("a", "networks", 50), Part("b", "sets", 100, group=1)], clock=watch)
    assert ahead.left() == 250
    ahead.enter("sets", 0.0)
    watch.now = 150.0
    ahead.advance(0.5)  # 50 s by the estimate took 150
    assert ahead.left() == pytest.approx(3 * 200, rel=0.35) and ahead.left() > 450
    watch.now = 300.0
    ahead.advance(1.0)
    ahead.enter("networks", 0.0)
    watch.now = 350.0
    ahead.advance(1.0)  # as estimated: that the sets are slow is no matter of the networks
    ahead.tick(0)
    assert ahead.left() == pytest.approx(300, rel=0.2)


def test_what_an_earlier_call_did_of_a_stage_is_no_sign_of_speed() -> None:
    watch = Watch()
    ahead = Ahead([Part("a", "sets", 100), Part("b", "sets", 100, group=1)], clock=watch)
    ahead.enter("sets", 0.9)
    watch.now = 10.0
    ahead.advance(1.0)
    assert ahead.left() == pytest.approx(100)


def test_an_evaluation_of_each_of_several_sets_is_a_share_of_its_part() -> None:
    watch = Watch()
    ahead = Ahead([Part("a", "networks", 30, passes=3)], clock=watch)
    for times in range(3):
        assert ahead.left() == pytest.approx(30 - 10 * times)
        ahead.enter("networks", 0.0)
        watch.now += 10
        ahead.advance(1.0)
    assert ahead.left() == pytest.approx(0)


def test_parts_that_no_stage_told_of_share_the_time_of_their_cell() -> None:
    watch = Watch()
    ahead = Ahead([Part(name, "sets", 10, group=i) for i, name in enumerate("ab")], clock=watch)
    watch.now = 40.0
    ahead.tick(0)
    assert 30 < ahead.left() <= 40


def test_a_task_that_takes_longer_than_estimated_tells_it_of_those_that_wait() -> None:
    watch = Watch()
    ahead = Ahead([Part("a", "sets", 10), Part("b", "sets", 10)], clock=watch)
    ahead.begin("sets", ["a", "b"], 1)
    watch.now = 60.0
    assert ahead.left() > 40


def test_the_time_left_is_told_while_tasks_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potstill.run.progress.PLAIN_EVERY", 0.01)
    reporter = Reporter()
    reporter.ahead = Ahead([Part("a", "sets", 600)])
    with reporter.stage("sets", 2) as stage, reporter.beating(stage):
        time.sleep(0.1)
    assert "sets 0/2  in all about 10 min left" in capsys.readouterr().err


def test_nothing_estimated_is_nothing_told() -> None:
    ahead = Ahead()
    ahead.begin("sets", ["a"], 2)
    ahead.end("sets", "a", 3.0)
    ahead.enter("sets", 0.0)
    ahead.advance(0.5)
    assert ahead.words() == "" or "0 s" in ahead.words()


def study_of(draws: random.Random, workers: int) -> Iterator[tuple[float, float]]:
    """A study by several workers, each kind of which takes another multiple of its estimate: (when, said) at ends."""
    watch, slow = Watch(), {kind: draws.uniform(0.5, 2.5) for kind in KINDS}
    cells = {f"cell{i}": draws.uniform(20, 80) for i in range(6)}
    counts = {"pools": 2, "searches": 0, "sets": 1, "networks": 3}
    parts = [Part(c, k, s * counts[k], pieces=counts[k]) for c, s in cells.items() for k in KINDS if counts[k]]
    ahead = Ahead(parts, workers, watch)
    for kind in KINDS:
        tasks = [cell for cell in cells for _ in range(counts[kind])]
        ahead.begin(kind, tasks, workers)
        waiting, running = list(tasks), list[tuple[float, float, str]]()
        while waiting or running:
            while waiting and len(running) < workers:
                took = cells[waiting[0]] * slow[kind] * draws.uniform(0.9, 1.1)
                heapq.heappush(running, (watch.now + took, took, waiting.pop(0)))
            watch.now, took, cell = heapq.heappop(running)
            ahead.end(kind, cell, took)
            yield watch.now, ahead.left()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_study_by_workers_ends_about_when_it_was_said_to(workers: int, seed: int) -> None:
    """What nobody has seen yet may take 2.5 times as long as estimated; after the last kind's first ends we know."""
    told = list(study_of(random.Random(seed), workers))
    end = told[-1][0]
    late = [said / (end - now) for now, said in told[-16:] if now < 0.9 * end]
    assert late and all(1 / 1.5 <= ratio <= 1.5 for ratio in late), late
