"""How long a study will still take: told at the pace that its parts have shown, here and by several workers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

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
    ahead.begin("sets", {"1": "a", "2": "b"}, 1)
    ahead.hear("1", None)
    watch.now = 60.0
    assert ahead.left() > 40


def test_a_task_at_work_tells_the_pace_of_those_that_wait() -> None:
    """Of what an earlier attempt left it begins at 40 %, a worker's start is no work on it, and 10 % take 20 s."""
    watch = Watch()
    ahead = Ahead([Part("a", "sets", 100), Part("b", "sets", 100)], clock=watch)
    ahead.begin("sets", {"1": "a", "2": "b"}, 1)
    watch.now = 30.0
    assert ahead.left() == 200
    ahead.hear("1", None)
    watch.now = 60.0
    ahead.hear("1", 0.4)
    watch.now = 80.0
    ahead.hear("1", 0.5)
    assert ahead.at_work == [("1", 0.5)]
    assert ahead.left() == pytest.approx(2 * 50 + 2 * 100, rel=0.25) and ahead.left() > 200
    ahead.hear("1", None)  # its worker was lost
    assert ahead.at_work == [("1", 0.0)]


def test_methods_of_one_kind_have_paces_of_their_own() -> None:
    ahead = Ahead([Part(name, "sets", 100, method) for name, method in (("a", "dm"), ("b", "dm"), ("c", "dc"))])
    ahead.begin("sets", {"1": "a", "2": "b", "3": "c"}, 1)
    ahead.hear("1", None)
    ahead.end("1", 300.0)
    dm = ahead.left()
    assert 300 < dm < 600
    other = Ahead([Part(name, "sets", 100, "dm") for name in "abc"])
    other.begin("sets", {"1": "a", "2": "b", "3": "c"}, 1)
    other.hear("1", None)
    other.end("1", 300.0)
    assert other.left() > dm


def test_a_task_that_failed_says_nothing_of_the_others() -> None:
    ahead = Ahead([Part(name, "sets", 100) for name in "ab"])
    ahead.begin("sets", {"1": "a", "2": "b"}, 1)
    ahead.hear("1", None)
    ahead.end("1", 0.1, failed=True)
    assert ahead.left() == pytest.approx(100)


def test_a_failed_search_that_nothing_was_estimated_of_takes_no_part_of_the_time() -> None:
    ahead = Ahead([Part("a", "sets", 100)])
    ahead.begin("searches", {"1": "a"}, 1)
    ahead.end("1", 9.0, failed=True)
    ahead.begin("sets", {}, 1)
    ahead.tick(0)
    assert ahead.left() == 0


def test_where_nothing_was_estimated_the_rounds_own_shares_tell_its_end() -> None:
    watch = Watch()
    ahead = Ahead(clock=watch)
    ahead.begin("sets", {"1": "a", "2": "b", "3": "c"}, 2)
    ahead.hear("1", None)
    ahead.hear("1", 0.0)
    ahead.hear("2", None)
    ahead.hear("2", 0.0)
    watch.now = 30.0
    ahead.hear("1", 0.5)
    assert ahead.words() == ""  # of the other nothing is known
    watch.now = 60.0
    ahead.hear("2", 0.25)
    ahead.hear("1", 1.0)
    assert ahead.words() == "; about 3 min left of the sets"


def test_the_time_left_is_told_while_tasks_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potstill.run.progress.PLAIN_EVERY", 0.01)
    reporter = Reporter()
    ahead = reporter.ahead = Ahead([Part("a", "sets", 600)])
    with reporter.stage("sets", 2) as stage, reporter.beating(stage, lambda: f"at work: a 3%{ahead.words()}"):
        time.sleep(0.1)
    assert "sets 0/2  at work: a 3%; in all about 10 min left" in capsys.readouterr().err


def test_nothing_estimated_is_nothing_told() -> None:
    ahead = Ahead()
    ahead.enter("sets", 0.0)
    ahead.advance(0.5)
    assert ahead.words() == ""


def study_of(
    draws: random.Random,
    workers: int,
    slow: Mapping[str, float],
    *,
    spread: float,
    tells: bool,
    load: Callable[[float], float] = lambda share: 1.0,
) -> tuple[list[tuple[float, float]], float]:
    """A study by workers, whose kinds take multiples of their estimates: (when, said) at 400 moments, and its end.

    Args:
        spread: of tasks about the multiple of their kind.
        tells: whether tasks tell on their way how far they are.
        load: how many times as long work takes, by the share of all work that is done.
    """
    watch, said = Watch(), list[tuple[float, float]]()
    cells = {f"cell{i}": draws.uniform(20, 80) for i in range(6)}
    counts = {"pools": 2, "searches": 0, "sets": 1, "networks": 3}
    parts = [Part(c, k, s * counts[k], pieces=counts[k]) for c, s in cells.items() for k in counts if counts[k]]
    work = sum(slow[part.kind] * part.seconds for part in parts) / workers
    tick, worked = work / 400, 0.0  # clock and work differ by the load
    ahead = Ahead(parts, workers, watch)
    for kind in counts:
        tasks = {f"{cell} {i}": cell for cell in cells for i in range(counts[kind])}
        ahead.begin(kind, tasks, workers)
        waiting = {name: cells[tasks[name]] * slow[kind] * draws.uniform(1 - spread, 1 + spread) for name in tasks}
        running = dict[str, tuple[float, float, float]]()  # by the work and the clock when it began, the work it takes
        while waiting or running:
            while waiting and len(running) < workers:
                name = next(iter(waiting))
                running[name] = worked, watch.now, waiting.pop(name)
                ahead.hear(name, None)
                if tells:
                    ahead.hear(name, 0.0)
            said.append((watch.now, ahead.left()))
            watch.now += tick * load(worked / work)
            worked += tick
            for name, (began, at, takes) in list(running.items()):
                if worked >= began + takes:
                    del running[name]
                    ahead.end(name, watch.now - at)
                elif tells:
                    ahead.hear(name, (worked - began) / takes)
    return said, watch.now


def ratios(told: list[tuple[float, float]], end: float, first: float, last: float = 0.95) -> list[float]:
    """What was said to be left over what was, between two shares of the time: at the very end a task is all."""
    return [said / (end - now) for now, said in told if first * end <= now <= last * end]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
def test_from_a_tenth_of_the_time_on_the_end_is_told_within_a_factor_of_1_5(
    wrong: float, workers: int, seed: int
) -> None:
    """All estimates are wrong by one factor, as on a machine that others share, and tasks differ by 20 % besides."""
    told, end = study_of(random.Random(seed), workers, dict.fromkeys(KINDS, wrong), spread=0.2, tells=True)
    found = ratios(told, end, 0.1)
    assert len(found) > 300 and min(found) >= 1 / 1.5 and max(found) <= 1.5


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_kinds_that_are_wrong_each_by_a_factor_of_its_own_are_told_once_they_are_seen(
    workers: int, seed: int, tells: bool
) -> None:
    """What nobody has seen yet may take 2.5 times as long as estimated; in the second half of the last kind we know."""
    draws = random.Random(seed)
    slow = {kind: draws.uniform(0.5, 2.5) for kind in KINDS}
    told, end = study_of(draws, workers, slow, spread=0.1, tells=tells)
    found = ratios(told, end, 0.8, 0.92)
    assert found and all(1 / 1.5 <= ratio <= 1.5 for ratio in found), found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workers", [1, 2])
def test_a_machine_that_becomes_slower_on_the_way_is_followed(workers: int, seed: int) -> None:
    """Three times as slow from a quarter of the work on, which nobody can know before: told when it has been seen."""
    told, end = study_of(
        random.Random(seed),
        workers,
        dict.fromkeys(KINDS, 1.0),
        spread=0.2,
        tells=True,
        load=lambda share: 1.0 if share < 0.25 else 3.0,
    )
    found = ratios(told, end, 0.4)
    assert found and all(1 / 1.5 <= ratio <= 1.5 for ratio in found), (min(found), max(found))
