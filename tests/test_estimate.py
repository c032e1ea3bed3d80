"""What is left to do, from a few timed steps: by the samples that pass a network, not by the number of steps alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.cli.main import main
from potstill.errors import DataError
from potstill.methods import Method, Metrics, Problem, State
from potstill.recipe import resolve
from potstill.run import timing
from potstill.run.distil import passes_of
from potstill.run.estimate import Estimate, ahead_of, core_seconds, estimate
from potstill.run.progress import Reporter
from potstill.run.study import study_of
from potstill.spec import LabelledDataset


@dataclass(frozen=True)
class UnevenConfig:
    steps: int = 1000
    every: int = 2
    known: bool = True


class Uneven(Method[State]):
    """Its first step takes 60 seconds more, for compiling; a network that trains after most steps takes 9, a step 1."""

    Config = UnevenConfig
    now = 0.0

    def init(self, problem: Problem) -> State:
        return State(0, torch.zeros(1))

    def step(self, problem: Problem, state: State) -> tuple[State, Metrics]:
        trains = (state.step + 1) % self.config.every > 0
        Uneven.now += 1 + 9 * trains + 60 * (state.step == 0)
        return state.advanced(), Metrics(0.0)

    def passes(self, problem: Problem) -> int:
        steps, every = self.config.steps, self.config.every
        return 100 * (steps + 9 * (steps - steps // every)) if self.config.known else 0


@pytest.mark.parametrize("every", [2, 4, 10, 1000])
def test_uneven_steps_are_counted_by_their_passes(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=every))
    passes = method.passes(None)
    state, pace = timing.time_steps(method, None, passes)  # type: ignore[arg-type]
    assert state.step == 1 + timing.STEPS
    assert pace.of(passes) == pytest.approx(60 + 1000 + 9 * (1000 - 1000 // every))


def test_more_steps_are_timed_where_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=1, steps=50))
    for least, steps in ((30.0, 1 + 30), (1e9, 50)):
        assert timing.time_steps(method, None, 100, least=least)[0].step == steps  # type: ignore[arg-type]


def test_work_of_a_cpu_is_counted_and_waiting_for_it_is_not() -> None:
    works, waits = timing.Stopwatch(threads=1), timing.Stopwatch()
    time.sleep(0.2)
    assert works.lap() < 0.1 and waits.lap() >= 0.2
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0.1 <= works.lap() < 0.2


def test_steps_of_unknown_passes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=1, known=False))
    assert timing.time_steps(method, None, 0)[1].of(1000) == 60 + 1000  # type: ignore[arg-type]
    only: Any = Uneven(UnevenConfig(steps=1, every=1))
    assert timing.time_steps(only, None, 100)[1].of(100) == 60 + 1  # type: ignore[arg-type]


def test_a_bank_that_is_full_takes_no_more_time(toy_dataset: LabelledDataset) -> None:
    """Real batches are computed at the first steps alone: 3 networks x 4 draws of 16 images, of 1000 steps."""
    keys = {"method": {"name": "dsdm_plus", "real_batch": 16, "draws": 4, "steps": 1000}, "ipc": 1, "factor": [2, 2]}
    recipe = resolve(keys)
    assert passes_of(recipe, recipe.build_method(), toy_dataset) == 3 * (1000 * 4 * 2 + 12 * 16)
    short = resolve(keys, {"method.steps": 5})
    assert passes_of(short, short.build_method(), toy_dataset) == 3 * (5 * 4 * 2 + 5 * 16)


@pytest.mark.parametrize(("name", "times"), [("herding", 40 / 10), ("random", 1.0)])
def test_a_choice_takes_as_long_as_the_images_it_looks_at(
    name: str, times: float, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0])  # around `init`
    monkeypatch.setattr(timing, "PER_CLASS", 10)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    recipe = resolve({"method": name, "ipc": 1, "factor": [1, 1]})
    timings = timing.Timings(Reporter(quiet=True))
    assert timings.set_of(recipe, toy_dataset)[0] == pytest.approx(2.0 * times)
    more, held = timings.set_of(replace(recipe, ipc=20, seed=1), toy_dataset)  # of the same kind
    assert more == pytest.approx(2.0 * times) and held.stored == 4 * 3 * 20 * 64
    with pytest.raises(DataError, match="500 needed"):
        timings.set_of(replace(recipe, ipc=500), toy_dataset)


def test_a_choice_by_a_late_member_of_the_pool_can_be_timed(toy_dataset: LabelledDataset) -> None:
    keys = {"method": {"name": "herding", "member": 3}, "ipc": 1, "pool": {"members": 5, "network": "mlp:width=8"}}
    assert timing.Timings(Reporter(quiet=True)).set_of(resolve(keys), toy_dataset)[0] > 0


#: Tiny networks, eager and on one thread.
QUICK: dict[str, Any] = {
    "factor": [1, 1],
    "pool": {"network": "mlp:width=8", "members": 1, "epochs": 1},
    "runtime": {"compile": False, "precision": "fp32", "threads": 1},
    "evaluation": {"network": "mlp:width=8", "nets": 2, "epochs": 2},
}


def test_a_kind_of_task_is_timed_once_whatever_the_ipc_the_length_and_the_weights(
    toy_dataset: LabelledDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sets by dsdm: with and without its covariance; networks on few and on more samples; pools of one network."""
    keys = {"steps": 300, "real_batch": 8, "covariance_weight": 5.0}
    alike = [keys, {**keys, "steps": 3000}, {**keys, "covariance_weight": 9.0}]
    other = {**keys, "covariance_weight": 0.0}
    studies = [
        study_of([QUICK, {"methods": {"dsdm": method}}], methods=["dsdm"], ipcs=[1, 2, 10], seeds=[0, 1])
        for method in [*alike, other]
    ]
    timings = timing.Timings(Reporter())
    found = [estimate(s, lambda _: toy_dataset, out=None, reporter=Reporter(), timings=timings) for s in studies]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(" ")[0] for line in said].count("sets") == 2
    assert sum("pools of mlp" in line for line in said) == 1 and len(said) <= 2 + 1 + 3
    whole, longer, heavier, without = ([e.distill_seconds for e in cells] for cells in found)
    assert whole == heavier and without != whole and whole[0] == whole[1]
    assert whole[0] < whole[2] < whole[4]  # IPC 1, 2 and 10
    assert longer[4] == pytest.approx(10 * whole[4], rel=0.2)
    assert found[0][0].disk_mb < found[0][4].disk_mb  # each its own


def test_what_cannot_be_made_of_the_data_fails_beside_its_kind(toy_dataset: LabelledDataset) -> None:
    methods = {"methods": {"dm": {"steps": 3, "real_batch": 8}}, "init": {"kind": "real"}}
    cells = study_of([QUICK, methods], methods=["dm"], ipcs=[1, 500], seeds=[0])
    fine, none = estimate(cells, lambda _: toy_dataset, out=None, reporter=Reporter(quiet=True))
    assert fine.stands == "new" and none.stands.startswith("fails: class") and "500 needed" in none.stands


def test_a_tests_time_is_no_part_of_an_epoch(toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sample in training 2 s, in the test 3 s, and 100 s once."""
    asked = list[int]()

    def evaluate_once(train: Any, spec: Any, test: Any, *, epochs: int, **_: Any) -> None:
        asked.append(epochs)
        Uneven.now += 2 * len(train) * epochs + 3 * len(test) + 100 * (len(asked) == 1)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: Uneven.now)
    monkeypatch.setattr(timing, "evaluate_once", evaluate_once)
    recipe = resolve(QUICK, {"evaluation": {"nets": 5, "epochs": 50}})
    timings = timing.Timings(Reporter(quiet=True))
    tests = 3 * len(toy_dataset.test)
    assert timings.scores_of(recipe, 60, toy_dataset)[0] == pytest.approx(100 + 5 * (50 * 60 * 2 + tests))
    assert timings.scores_of(recipe, 40, toy_dataset)[0] == pytest.approx(5 * (50 * 40 * 2 + tests))
    assert asked == [3, 1, 3]


def test_workers_share_what_one_core_would_do() -> None:
    """Two sets in two shards each, then their networks; what is finished or cannot be run takes nothing."""
    sets: dict[str, Any] = {"distill_seconds": 100.0, "evaluate_seconds": 30.0, "nets": 3, "shards": 2, "threads": 2}
    found = [Estimate(name, "new", **sets) for name in "ab"]
    found += [Estimate("c", "finished"), Estimate("d", "fails: no", distill_seconds=9.0)]
    assert ahead_of(found, 1).left() == 260 and core_seconds(found) == 2 * 260
    assert ahead_of(found, 2).left() == 100 + 30 and ahead_of(found, 4).left() == 50 + 20
    whole = [Estimate(name, "new", **{**sets, "shards": 1}) for name in "ab"]
    assert ahead_of(whole, 4).left() == 100 + 20


def test_a_dry_run_tells_the_time_by_the_engine_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--dataset", "digits", "--methods", "random", "--ipc", "2", "--nets", "4", "--epochs", "40"]
    words += ["--network", "mlp:width=8", "--compile", "false", "--precision", "fp32", "--device", "cpu"]
    words += ["--full-data", "1", "--out", str(tmp_path / "out"), "--dry-run", "--threads", "1"]
    assert main([*words, "--json", "-q", "--engine", "processes", "--workers", "1"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [cell["cell"] for cell in alone["cells"]] == ["random-ipc2-seed0", "full_data"] and alone["workers"] == 1
    assert alone["seconds"] == pytest.approx(alone["core_seconds"]) and alone["memory_mb"] > 0
    assert main([*words, "--json", "-q", "--engine", "processes", "--workers", "2"]) == 0
    shared = json.loads(capsys.readouterr().out)
    assert shared["workers"] == 2 and shared["seconds"] < 0.9 * shared["core_seconds"]
    assert main([*words, "--engine", "processes", "--workers", "2"]) == 0
    assert " by 2 workers (" in capsys.readouterr().out and not (tmp_path / "out").exists()
