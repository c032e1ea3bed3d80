"""What is left to do, from a few timed steps: by the samples that pass a network, not by the number of steps alone."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from potstill.cli.main import main
from potstill.errors import DataError, UsageError
from potstill.machine import work
from potstill.machine.work import Stopwatch
from potstill.methods import Method, Metrics, Problem, State
from potstill.recipe import resolve
from potstill.run import kept, pace, timing
from potstill.run.distil import passes_of
from potstill.run.estimate import Estimate, ahead_of, core_seconds, estimate, estimate_whole
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
    monkeypatch.setattr(time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=every))
    passes = method.passes(None)
    count, found = pace.time_steps(method, None, passes, Stopwatch())  # type: ignore[arg-type]
    assert count == 1 + pace.STEPS
    assert found.of(passes) == pytest.approx(60 + 1000 + 9 * (1000 - 1000 // every))


def test_more_steps_are_timed_where_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=1, steps=50))
    for least, steps in ((30.0, 1 + 30), (1e9, 50)):
        assert pace.time_steps(method, None, 100, Stopwatch(), least)[0] == steps  # type: ignore[arg-type]


def test_graphs_that_later_steps_compile_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `dm`, whose batches are augmented by one operation each: the second, third and fifth are new ones."""
    now, graphs = [0.0], [0]

    def step(self: Any, problem: Problem, state: State) -> tuple[State, Metrics]:
        compiles = state.step in (0, 1, 2, 4)
        graphs[0] += compiles
        now[0] += 1 + 30 * compiles
        return state.advanced(), Metrics(0.0)

    monkeypatch.setattr(Uneven, "step", step)
    monkeypatch.setattr(pace, "count_graphs", lambda: graphs[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    uneven: Any = Uneven(UnevenConfig(every=1))
    count, found = pace.time_steps(uneven, None, 100_000, Stopwatch())  # type: ignore[arg-type]
    assert count == 4 + pace.STEPS
    assert found.of(100_000) == 4 * 30 + 1000


def test_work_of_a_cpu_is_counted_and_waiting_for_it_is_not() -> None:
    works, waits = Stopwatch(threads=1), Stopwatch()
    time.sleep(0.2)
    assert works.lap() < 0.1 and waits.lap() >= 0.2
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0.1 <= works.lap() < 0.2


def test_steps_of_unknown_passes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=1, known=False))
    assert pace.time_steps(method, None, 1000, Stopwatch())[1].of(1000) == 60 + 1000  # type: ignore[arg-type]
    only: Any = Uneven(UnevenConfig(steps=1, every=1))
    assert pace.time_steps(only, None, 100, Stopwatch())[1].of(100) == 60 + 1  # type: ignore[arg-type]


def test_a_bank_that_is_full_takes_no_more_time(toy_dataset: LabelledDataset) -> None:
    """Real batches are computed at the first steps alone: 3 networks x 4 draws of 16 images, of 1000 steps."""
    keys = {"method": {"name": "dsdm_plus", "real_batch": 16, "draws": 4, "steps": 1000}, "ipc": 1, "factor": [2, 2]}
    recipe = resolve(keys)
    assert passes_of(recipe, recipe.build_method(), toy_dataset) == 3 * (1000 * 4 * 2 + 12 * 16)
    short = resolve(keys, {"method.steps": 5})
    assert passes_of(short, short.build_method(), toy_dataset) == 3 * (5 * 4 * 2 + 5 * 16)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is timed, by name: a pass takes 1 ms and a step 10 ms more; compiled, half of it, and 30 s once."""
    found: list[str] = []

    def passes(network: str, data: LabelledDataset, runtime: Any) -> timing.Timed:
        found.append(f"{network} {data.spec.shape}")
        return timing.Timed(each=0.001, step=0.010, memory=10**8)

    def compiled(network: str, *_: Any) -> tuple[float, float]:
        found.append(f"compiled {network}")
        return 30.0, (0.010 + 0.001 * timing.TIMED * max(timing.SIZES)) / 2

    monkeypatch.setattr(timing, "time_passes", passes)
    monkeypatch.setattr(timing, "time_compiled", compiled)
    monkeypatch.setattr(timing, "slowness", lambda: 1.0)
    return found


def test_a_choice_takes_as_long_as_the_images_it_looks_at(toy_dataset: LabelledDataset, timed: list[str]) -> None:
    timings = timing.Timings(Reporter(quiet=True))
    recipe = resolve({"method": "herding", "ipc": 1, "factor": [1, 1], "runtime": QUICK["runtime"]})
    assert timings.set_of(recipe, toy_dataset)[0] == pytest.approx(3 * 40 * 0.001)
    seconds, held = timings.set_of(replace(recipe, ipc=20), toy_dataset)
    assert seconds == pytest.approx(3 * 40 * 0.001) and held.stored == 4 * 3 * 20 * 64
    with pytest.raises(DataError, match="500 needed"):
        timings.set_of(replace(recipe, ipc=500), toy_dataset)
    assert timings.set_of(resolve({"method": "random", "ipc": 1}), toy_dataset)[0] == 0


#: Tiny networks, eager and on one thread.
QUICK: dict[str, Any] = {
    "factor": [1, 1],
    "pool": {"network": "mlp:width=8", "members": 1, "epochs": 1},
    "runtime": {"compile": False, "precision": "fp32", "threads": 1},
    "evaluation": {"network": "mlp:width=8", "nets": 2, "epochs": 2},
}


def test_one_pace_serves_all_methods_ipcs_and_lengths_pools_and_networks(
    toy_dataset: LabelledDataset, toy_colour: LabelledDataset, timed: list[str]
) -> None:
    methods = {"dsdm": {"steps": 300, "real_batch": 8}, "dm": {"steps": 300, "real_batch": 8}}
    study = study_of([QUICK, {"methods": methods}], methods=[*methods], ipcs=[1, 10], seeds=[0])
    timings = timing.Timings(Reporter(quiet=True))
    for data in (toy_dataset, toy_colour):
        found = estimate(study, lambda _, data=data: data, out=None, reporter=Reporter(quiet=True), timings=timings)
        passes = [300 * 3 * (2 * ipc + 8) for ipc in (1, 10)]
        dm = [e.distill_seconds for e in found if e.method == "dm"]
        assert dm == pytest.approx([300 * 0.010 + 0.001 * n for n in passes])
        steps = math.ceil(120 / resolve(QUICK).pool.training().batch)
        pool = next(e.pool_seconds for e in found if e.method == "dsdm")
        assert pool == pytest.approx(0.001 * 3 * 120 + 0.010 * steps)
    assert timed == ["mlp:width=8 (1, 8, 8)", "mlp:width=8 (3, 16, 16)"]
    assert found[0].disk_mb < found[-1].disk_mb  # each its own


def test_what_compiling_gains_is_found_once_and_its_seconds_count_once_for_each_kind_of_graph(
    toy_dataset: LabelledDataset, timed: list[str]
) -> None:
    timings, keys = timing.Timings(Reporter(quiet=True)), {"runtime": {**QUICK["runtime"], "compile": True}}
    recipe = resolve(QUICK, keys, {"method": {"name": "dm", "steps": 100, "real_batch": 8}, "ipc": 1})
    other = replace(recipe, pool=replace(recipe.pool, network="mlp:width=9"))
    seconds = [timings.set_of(r, toy_dataset)[0] for r in (recipe, recipe, other)]
    alone = (100 * 0.010 + 0.001 * 100 * 3 * (2 + 8)) / 2
    assert seconds == pytest.approx([30 + alone, alone, 30 + alone])
    assert timed == ["mlp:width=8 (1, 8, 8)", "compiled mlp:width=8", "mlp:width=9 (1, 8, 8)"]


def test_what_else_a_machine_does_is_told_and_counted_where_that_is_asked_for(
    toy_dataset: LabelledDataset, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolve(QUICK, {"method": {"name": "dm", "steps": 100, "real_batch": 8}, "ipc": 1})

    def asked(alone: bool) -> tuple[float, str]:
        timings = timing.Timings(Reporter(quiet=True), alone=alone)
        return timings.set_of(recipe, toy_dataset)[0], timings.told()

    seconds, told = asked(False)
    assert "busy" not in told
    monkeypatch.setattr(timing, "slowness", lambda: 3.0)
    assert asked(True) == (
        seconds,
        f"{told}; this machine is busy and work takes 3.0 times as long now, which is not counted",
    )
    counted, told = asked(False)
    assert counted == pytest.approx(3 * seconds) and told.endswith("3.0 times as long now, which is counted")


def test_what_else_runs_is_told_by_the_clock_that_a_threads_work_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(work, "time", SimpleNamespace(thread_time=lambda: now[0] / 4, perf_counter=clock))
    assert work.slowness() == pytest.approx(4, rel=0.1)


def test_timings_are_kept_for_this_hardware_and_these_versions(
    tmp_path: Path, toy_dataset: LabelledDataset, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolve(QUICK, {"method": {"name": "dm", "steps": 100, "real_batch": 8}, "ipc": 1})

    def asked() -> tuple[float, str]:
        timings = timing.Timings(Reporter(quiet=True), tmp_path)
        return timings.set_of(recipe, toy_dataset)[0], timings.told()

    seconds, told = asked()
    assert told.startswith("1 timed now") and len(timed) == 1
    (file,) = tmp_path.iterdir()
    again, told = asked()
    assert again == seconds and told == "1 found in the cache, the oldest made 0 min ago" and len(timed) == 1
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "made": time.time() - 5 * 86400}))
    assert "5 days ago" in asked()[1]
    file.write_text(json.dumps({**record, "made": time.time() - 31 * 86400}))
    assert asked()[1].startswith("1 timed now") and len(timed) == 2
    file.write_text("{")  # damaged
    assert asked()[1].startswith("1 timed now") and len(timed) == 3
    for name, other in (("device_name", lambda _: "another CPU"), ("__version__", "9"), ("commit", lambda: "abc")):
        monkeypatch.setattr(kept, name, other)
        assert asked()[1].startswith("1 timed now")
    assert len(timed) == 6


@pytest.mark.parametrize("once", [0.0, 0.3])
def test_a_step_takes_a_time_of_its_own_and_as_much_again_for_each_sample(
    once: float, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def step(count: int) -> None:
        now[0] += once + 0.02 * count

    monkeypatch.setattr(timing, "_step", lambda *_: step)
    monkeypatch.setattr(Stopwatch, "_now", lambda _: (now[0],))
    found = timing.time_passes("mlp:width=8", toy_dataset, timing.Runtime())
    assert found.each == pytest.approx(0.02 / timing.TIMED) and found.step == pytest.approx(once)


def test_a_real_network_is_timed(toy_dataset: LabelledDataset) -> None:
    for network in ("mlp:width=8", "convnet:width=8,depth=2"):
        found = timing.time_passes(network, toy_dataset, timing.Runtime())
        assert 0 < found.each < 0.1 and 0 <= found.step < 1 and found.memory > 0


def test_what_cannot_be_made_of_the_data_fails_beside_its_kind(toy_dataset: LabelledDataset) -> None:
    methods = {"methods": {"dm": {"steps": 3, "real_batch": 8}}, "init": {"kind": "real"}}
    cells = study_of([QUICK, methods], methods=["dm"], ipcs=[1, 500], seeds=[0])
    fine, none = estimate(cells, lambda _: toy_dataset, out=None, reporter=Reporter(quiet=True))
    assert fine.stands == "new" and none.stands.startswith("fails: class") and "500 needed" in none.stands


def test_networks_take_three_passes_of_each_sample_in_each_epoch_and_one_of_each_in_the_test(
    toy_dataset: LabelledDataset, timed: list[str]
) -> None:
    timings = timing.Timings(Reporter(quiet=True))
    for ipc, steps in ((20, 1), (23, 2)):  # of three classes, in batches of 64
        recipe = resolve(QUICK, {"ipc": ipc, "evaluation": {"nets": 5, "epochs": 50}})
        each = 0.001 * (3 * 50 * 3 * ipc + len(toy_dataset.test)) + 0.010 * 50 * steps
        assert timings.scores_of(recipe, toy_dataset)[0] == pytest.approx(5 * each)


def test_networks_on_the_whole_split_are_trained_once_in_however_few_bits_sets_are_scored(
    toy_dataset: LabelledDataset, timed: list[str]
) -> None:
    def whole(**keys: Any) -> Estimate:
        timings = timing.Timings(Reporter(quiet=True))
        return estimate_whole("full_data", resolve(QUICK, {"evaluation": keys}), toy_dataset, timings, None)

    assert whole(stored_bits=8, epochs=5) == whole(epochs=5) and whole(epochs=5).tasks == 2
    with pytest.raises(UsageError, match="needs a set with learned rates"):
        whole(protocol="dd")


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
