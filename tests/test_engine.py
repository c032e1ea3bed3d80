"""Engines: whoever does the tasks of a study, the files are the same; what is lost or fails is told and no more."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.errors import PotstillError, RunError, UsageError
from potstill.learning import pool as pools
from potstill.machine.runtime import usable_cores
from potstill.methods.dsdm import DSDM
from potstill.recipe import resolve
from potstill.report import collect
from potstill.run.compare import Outcome, run_study
from potstill.run.engine.base import Engine, lost
from potstill.run.engine.find import find_engine
from potstill.run.engine.workers import Workers, core_group, gpu_of
from potstill.run.progress import Reporter
from potstill.run.shards import shards
from potstill.run.store import RunStore
from potstill.run.study import Study, study_of
from potstill.run.task import Task, data_name, pack_data, perform
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset

QUICK: dict[str, Any] = {
    "factor": [1, 1],
    "pool": {"network": "convnet:width=8", "members": 2, "epochs": 1},
    "runtime": {"compile": False, "precision": "fp32", "threads": 1},
    "evaluation": {"network": "convnet:width=8", "nets": 2, "epochs": 1},
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where workers, which inherit it, do their tasks."""
    cache = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTSTILL_CACHE_DIR", str(cache))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield cache


@pytest.fixture(scope="module")
def processes(own_cache: Path) -> Iterator[Engine]:
    """Two workers for all tests of this module: starting one takes seconds."""
    with find_engine("processes", 2) as engine:
        yield engine


@pytest.fixture(scope="module")
def ray(own_cache: Path) -> Iterator[Engine]:
    """A local cluster of two workers."""
    pytest.importorskip("ray")
    with find_engine("ray", 2) as engine:
        yield engine


@pytest.fixture(params=["serial", "processes", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param != "serial":
        yield request.getfixturevalue(request.param)
        return
    with find_engine("serial") as engine:
        yield engine


def study(*methods: str, steps: int = 3) -> Study:
    layers = [QUICK, {"methods": {"dsdm": {"steps": steps, "real_batch": 8}}}]
    return study_of(layers, methods=methods or ("random", "dsdm"), ipcs=[2], seeds=[0])


def run(
    data: LabelledDataset, out: Path, engine: Engine | None, cells: Study | None = None, **how: Any
) -> list[Outcome]:
    given = {"out": out, "cache": out / "cache", "reporter": Reporter(quiet=True), "engine": engine, **how}
    return run_study(cells or study(), lambda _: data, **given)


def sets_and_scores(out: Path) -> dict[str, Any]:
    """All that a study is made for: sets and pools by their bytes, accuracies by their files' names."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*/synthetic/*.safetensors")):
        found[path.relative_to(out).as_posix()] = path.read_bytes()
    for path in sorted(out.glob("*/**/scores/**/*.json")):
        record = json.loads(path.read_text())
        found[path.relative_to(out).as_posix()] = record["accuracy"], record["set_hash"]
    return found


def test_every_engine_leaves_the_bytes_of_a_run_without_one(
    engine: Engine, toy_dataset: LabelledDataset, tmp_path: Path, own_cache: Path
) -> None:
    plain = run(toy_dataset, tmp_path / "plain", None)
    spread = run(toy_dataset, tmp_path / "spread", engine)
    found = sets_and_scores(tmp_path / "spread")
    assert len(found) == 2 * (2 + 2)  # of each cell its set, that before the first step, and two scores
    assert found == sets_and_scores(tmp_path / "plain")
    assert [o.scores and o.scores.mean for o in spread] == [o.scores and o.scores.mean for o in plain]
    weights = [{p.name for p in (tmp_path / n / "cache" / "pool").glob("*.safetensors")} for n in ("plain", "spread")]
    assert weights[0] == weights[1] != set()
    assert not list((own_cache / "tasks").glob("*"))  # what is done leaves nothing behind


def test_a_task_that_always_fails_is_told_and_the_others_finish(
    engine: Engine, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    failing, fine = study("dsdm").cells[0], study("random").cells[0]
    bare = {"precision": "fp32", "compile": False, "threads": 1, "device": "cuda:77"}
    failing = replace(failing, recipe=replace(failing.recipe, runtime=type(failing.recipe.runtime)(**bare)))
    first, second = run(toy_dataset, tmp_path / "out", engine, Study((failing, fine)))
    assert first.scores is None and "device='cuda:77'" in first.failure
    assert second.scores is not None and not second.failure


#: A network that trains only where no file of this name is.
UNPLUGGED = """
import torch
from pathlib import Path
from torch import nn

class Body(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.flat, self.last = nn.Flatten(), nn.Linear(features, 3)

    def forward(self, x):
        if torch.is_grad_enabled() and Path({flag!r}).exists():
            raise ArithmeticError("the plug was pulled")
        return self.last(self.flat(x))

def make(shape, num_classes):
    return Body(shape[0] * shape[1] * shape[2])
"""


@pytest.mark.parametrize("kind", ["member", "distil", "network", "whole"])
def test_a_task_of_any_kind_that_fails_is_noted_in_its_folder_until_it_succeeds(
    kind: str, engine: Engine, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    flag = tmp_path / "unplugged"
    flag.touch()
    (tmp_path / "own.py").write_text(UNPLUGGED.format(flag=str(flag)))
    network = f"{tmp_path}/own.py:make"
    keys = {
        "member": {"pool": {"network": network}},
        "distil": {"pool": {"network": network, "pretrained": False}},
        "network": {"evaluation": {"network": network}},
        "whole": {"evaluation": {"network": network}},
    }[kind]
    layers = [QUICK, {"methods": {"dsdm": {"steps": 2, "real_batch": 8}}}]
    fine, *_ = study_of(layers, methods=["random"], ipcs=[2], seeds=[0]).cells
    broken, *_ = study_of([*layers, keys], methods=["dsdm"], ipcs=[2], seeds=[0]).cells
    cells = Study((broken, fine))
    how: dict[str, Any] = {"full_data_epochs": 1} if kind == "whole" else {}
    failed, ended, *whole = run(toy_dataset, tmp_path / "out", engine, cells, **how)
    for outcome in (failed, *whole):
        assert (outcome.folder / "failure.json").exists(), outcome.failure
        note = json.loads((outcome.folder / "failure.json").read_text())
        assert note["reason"] == "ArithmeticError: the plug was pulled" and "own.py" in note["traceback"]
        assert outcome.scores is None and note["reason"] in outcome.failure
    assert ended.scores is not None and not (ended.folder / "failure.json").exists()
    (row,) = [record for record in collect(tmp_path / "out") if record.folder == failed.folder]
    assert row.failure == "ArithmeticError: the plug was pulled" and row.label == "dsdm"
    flag.unlink()
    for outcome in run(toy_dataset, tmp_path / "out", engine, cells, **how):
        assert outcome.scores is not None and not (outcome.folder / "failure.json").exists()


def test_tasks_tell_that_they_begin_and_how_far_they_are(engine: Engine, toy_dataset: LabelledDataset) -> None:
    """A training run of 40 epochs; on Ray a task tells that it begins and no more."""
    recipe = resolve(QUICK, {"pool": {"members": 1, "epochs": 40}})
    name = data_name(toy_dataset)
    task, heard = Task("member", "cell", recipe.to_dict(), name), list[tuple[Task, float | None]]()
    sent = {name: pack_data(toy_dataset)}
    ((_, told, seconds),) = engine.run([task], sent, lambda one, share: heard.append((one, share)))
    assert not isinstance(told, PotstillError) and seconds > 0
    shares = [share for _, share in heard]
    assert all(one is task for one, _ in heard)
    assert shares[0] is None and shares.count(None) == 1
    if type(engine).__name__ != "Ray":
        assert shares[1] == 0.0 and shares[1:] == sorted(shares[1:])  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Task("distil", "dm-seed0", {}, "d", classes=(3, 4, 5)), "dm-seed0 (classes 3-5)"),
        (Task("distil", "dm-seed0", {}, "d"), "dm-seed0"),
        (Task("member", "dm-seed0", {}, "d", 1), "dm-seed0 (pool network 2)"),
        (Task("whole", "full_data", {}, "d", 2), "full_data (network 3)"),
    ],
)
def test_a_task_is_named_by_its_cell_and_what_it_is_of_it(task: Task, name: str) -> None:
    assert task.name == name


def test_a_study_says_at_once_and_again_and_again_what_is_at_work(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potstill.run.progress.PLAIN_EVERY", 0.06)
    with find_engine("serial") as engine:
        run(toy_dataset, tmp_path, engine, study("dsdm", steps=50), shards=2, reporter=Reporter())
    lines = capsys.readouterr().err.splitlines()
    assert "sets: 2 tasks by 1 worker" in lines and "pools: 2 tasks by 1 worker" in lines
    assert any(re.fullmatch(r"sets [01]/2.*at work: \S+-seed0 \(classes 0-0\) \d+%", line) for line in lines)
    assert any(re.match(r"sets 2/2.*-seed0 \(classes 1-2\) done", line) for line in lines)


def test_what_is_refused_claims_no_folder(engine: Engine, toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    (cell,) = study("dsdm").cells
    pool = replace(cell.recipe.pool, network="convnet:depth=9")
    (outcome,) = run(toy_dataset, tmp_path, engine, Study((replace(cell, recipe=replace(cell.recipe, pool=pool)),)))
    assert outcome.scores is None and "depth" in outcome.failure and not outcome.folder.exists()


def test_few_bits_curves_whole_data_and_searches_are_tasks_too(
    engine: Engine, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    layers = [QUICK, {"methods": {"dsdm": {"steps": 3, "real_batch": 8}}, "saving": {"keep": [2]}}]
    layers += [{"evaluation": {"stored_bits": 8}, "parameterisation": "auto"}]
    cells = study_of(layers, methods=["random", "dsdm"], ipcs=[2], seeds=[0])
    how: dict[str, Any] = {"full_data_epochs": 1, "curve": True}
    plain = run(toy_dataset, tmp_path / "plain", None, cells, **how)
    asked = _Watched(engine)
    spread = run(toy_dataset, tmp_path / "spread", asked, cells, **how)
    kinds = [task.kind for task in asked.tasks]
    # Two networks on each of both final sets, the same in 8 bits, and for dsdm those before step 1 and after step 2.
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "member": 2,
        "search": 1,
        "distil": 2,
        "network": 12,
        "whole": 2,
    }
    found = sets_and_scores(tmp_path / "spread")
    assert found == sets_and_scores(tmp_path / "plain") and len(found) == 4 + 12 + 2
    assert [o.failure for o in spread] == [""] * 3 and [o.scores and o.scores.mean for o in spread] == [
        o.scores and o.scores.mean for o in plain
    ]
    chosen = RunStore(spread[1].folder).require_set().provenance
    assert "too few to hold some out" in chosen["search"] and chosen["recipe_hash"]
    again = _Watched(engine)
    run(toy_dataset, tmp_path / "spread", again, cells, **how)
    assert again.tasks == []


def test_finished_tasks_are_not_done_again(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    with find_engine("serial") as engine:
        run(toy_dataset, tmp_path / "out", engine)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
        (next((tmp_path / "out").glob("dsdm*/scores/*.json"))).unlink()
        asked = _Watched(engine)
        run(toy_dataset, tmp_path / "out", asked)
    assert [task.kind for task in asked.tasks] == ["network"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_pool_that_lacks_its_beginning_alone_is_not_trained_again(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cells(name: str, **keys: Any) -> Study:
        layers = [QUICK, {"pool": keys, "methods": {"dance": {"steps": 1}}}]
        return study_of(layers, methods=[name], ipcs=[1], seeds=[0])

    with find_engine("serial") as serial:
        run(toy_dataset, tmp_path, serial, cells("herding"))
        monkeypatch.setattr(pools, "fit", lambda *_, **__: pytest.fail("trained again"))
        (outcome,) = run(toy_dataset, tmp_path, serial, cells("dance", snapshots=[0]))
    assert outcome.failure == "" and outcome.scores


class _Watched:
    """An engine that remembers what it was asked for."""

    def __init__(self, engine: Engine):
        self.engine, self.workers, self.tasks = engine, engine.workers, list[Task]()

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None: ...

    def at_once(self, threads: int = 1) -> int:
        return self.engine.at_once(threads)

    def run(self, tasks: Any, inputs: Any, hear: Any) -> Any:
        self.tasks += tasks
        return self.engine.run(tasks, inputs, hear)


# --- shards


def test_shards_are_neighbours_of_about_one_size() -> None:
    assert shards(10, 3) == [(0, 1, 2), (3, 4, 5), (6, 7, 8, 9)]
    assert shards(3, 8) == [(0,), (1,), (2,)] and shards(3, 1) == [(0, 1, 2)]


def test_a_set_joined_of_shards_is_that_of_the_whole(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    cells = study("dsdm", "random", steps=20)
    cells = Study(
        tuple(replace(c, recipe=replace(c.recipe, saving=replace(c.recipe.saving, keep=(10,)))) for c in cells.cells)
    )
    run(toy_dataset, tmp_path / "1", None, cells)
    with find_engine("serial") as engine:
        for count in (2, 3):
            asked = _Watched(engine)
            outcomes = run(toy_dataset, tmp_path / str(count), asked, cells, shards=count)
            assert sum(task.kind == "distil" for task in asked.tasks) == 2 * count
            for outcome in outcomes:
                whole, joined = RunStore(tmp_path / "1" / outcome.folder.name), RunStore(outcome.folder)
                assert outcome.failure == "" and not (joined.root / "state" / "shards").exists()
                assert joined.require_set().provenance["shards"] == str(count)
                assert joined.kept_sets().keys() == whole.kept_sets().keys()
                for path in (joined.distilled, *joined.kept_sets().values()):
                    ours, theirs = (SyntheticSet.load(s.root / path.relative_to(joined.root)) for s in (joined, whole))
                    assert ours.classes == theirs.classes == (0, 1, 2)
                    torch.testing.assert_close(ours.images, theirs.images, atol=1e-4, rtol=0)
                lines = [[json.loads(x) for x in s.metrics.read_text().splitlines()] for s in (joined, whole)]
                assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]]
                losses, terms = ([[f(x) for x in part] for part in lines] for f in (_loss, _terms))
                assert losses[0] == pytest.approx(losses[1], rel=1e-3) and terms[0] == pytest.approx(terms[1], rel=1e-3)


def _loss(line: dict[str, Any]) -> float:
    return line["loss"]


def _terms(line: dict[str, Any]) -> float:
    return sum(line["terms"].values())


def test_one_plan_gives_the_same_bytes_by_every_engine(
    engine: Engine, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    with find_engine("serial") as serial:
        run(toy_dataset, tmp_path / "serial", serial, study("dsdm"), shards=2)
    run(toy_dataset, tmp_path / "spread", engine, study("dsdm"), shards=2)
    assert sets_and_scores(tmp_path / "spread") == sets_and_scores(tmp_path / "serial")


def test_shards_are_refused_where_they_cannot_be(
    toy_dataset: LabelledDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="shards=2 without an engine"):
        run(toy_dataset, tmp_path, None, shards=2)
    (cell,) = study("dsdm").cells
    cell = replace(cell, recipe=replace(cell.recipe, budget=replace(cell.recipe.budget, minutes=1.0)))
    with find_engine("serial") as serial:
        (outcome,) = run(toy_dataset, tmp_path, serial, Study((cell,)), shards=2)
        assert "leave out --shards or budget.minutes" in outcome.failure
        cells = study_of([QUICK, {"methods": {"dc": {"steps": 1}}}], methods=["dc"], ipcs=[1], seeds=[0, 1])
        outcome, _ = run(toy_dataset, tmp_path / "dc", serial, cells, shards=3, reporter=Reporter())
    assert outcome.failure == "" and "shards" not in RunStore(outcome.folder).require_set().provenance
    told = "dc: its classes depend on each other, so --shards splits none of its sets"
    assert capsys.readouterr().err.splitlines().count(told) == 1


# --- what tasks are told apart by


def test_the_same_images_normalised_otherwise_are_other_data(toy_dataset: LabelledDataset) -> None:
    other = replace(toy_dataset, spec=replace(toy_dataset.spec, mean=(0.1,)))
    assert data_name(other) != data_name(toy_dataset) == data_name(replace(toy_dataset))


def test_two_runs_that_were_begun_go_on_each_from_its_own_snapshot(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [QUICK, {"methods": {"dsdm": {"steps": 4, "real_batch": 8}}, "saving": {"every": 1}}]
    cells = study_of(layers, methods=["dsdm"], ipcs=[2, 3], seeds=[0])
    run(toy_dataset, tmp_path / "plain", None, cells)
    ordinary, done = DSDM.step, list[int]()

    def stops(method: Any, problem: Any, state: Any) -> Any:
        if state.step == 2:
            raise RunError("the plug was pulled")
        return ordinary(method, problem, state)

    monkeypatch.setattr(DSDM, "step", stops)
    assert all(o.failure for o in run(toy_dataset, tmp_path / "spread", None, cells))
    monkeypatch.setattr(DSDM, "step", lambda m, p, s: done.append(s.step) or ordinary(m, p, s))
    with find_engine("serial") as engine:
        outcomes = run(toy_dataset, tmp_path / "spread", engine, cells)
    assert [o.failure for o in outcomes] == ["", ""] and done == [2, 3, 2, 3]
    assert sets_and_scores(tmp_path / "spread") == sets_and_scores(tmp_path / "plain")


# --- workers


def test_workers_get_cores_of_their_own() -> None:
    assert [core_group([0, 1, 2, 3, 4], n, 2) for n in range(2)] == [[0, 1], [2, 3]]
    assert [core_group([4, 6], n, 3) for n in range(3)] == [[4], [6], [4]]


class _Counted(dict[str, bytes]):
    """Inputs that count how often each is read."""

    def __init__(self, inputs: Mapping[str, bytes]):
        super().__init__(inputs)
        self.reads = Counter[str]()

    def __getitem__(self, name: str) -> bytes:
        self.reads[name] += 1
        return super().__getitem__(name)


def test_each_worker_gets_the_data_once_and_stays_on_its_cores(
    processes: Workers, toy_dataset: LabelledDataset
) -> None:
    """Six training runs by two workers, each with one thread."""
    recipe = resolve(QUICK, {"pool": {"members": 6}}).to_dict()
    name = data_name(toy_dataset) + "-once"
    tasks, inputs = (
        [Task("member", "cell", recipe, name, i) for i in range(6)],
        _Counted({name: pack_data(toy_dataset)}),
    )
    told = [files for _, files, _ in processes.run(tasks, inputs)]
    assert len(told) == 6 and not any(isinstance(files, PotstillError) for files in told)
    assert 1 <= inputs.reads[name] <= 2
    if hasattr(os, "sched_getaffinity"):
        cores = usable_cores()
        for worker in processes._alive:
            mine = os.sched_getaffinity(worker.process.pid or 0)
            assert mine == set(core_group(cores, worker.number, 2)) and len(mine) == max(1, len(cores) // 2)


def test_stated_threads_are_counted_when_workers_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.run.engine.workers.usable_threads", lambda: 8)
    tasks = [Task("network", "cell", {"runtime": {"threads": threads}}, "data") for threads in ("auto", 3, 16)]
    assert [task.threads for task in tasks] == [1, 3, 16]
    for asked, chosen in (((0,), 6), ((0, 1), 2), ((0, 2), 1), ((0,), 6)):
        with Workers(6) as engine:
            engine._fit([tasks[i] for i in asked])
            assert engine.workers == chosen


def test_each_worker_has_one_of_the_gpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu_of(number, 2) for number in range(3)] == ["0", "1", "0"] and gpu_of(0, 0) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [gpu_of(number, 2) for number in range(2)] == ["3", "5"]


def test_a_worker_at_work_ends_with_the_block_however_the_block_ends() -> None:
    with Workers(1) as engine:
        worker = engine._start(
            {}
        )  # as one whose task is not waited for any more, after a signal while others were ended
        assert worker.process.is_alive()
    assert not worker.process.is_alive()


ORPHAN = """
import os, signal
from potstill.run.engine.find import find_engine
from potstill.run.task import Task

if __name__ == "__main__":
    engine = find_engine("processes", 1)
    worker = engine._start({})
    print(worker.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker in /proc")
def test_workers_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ORPHAN)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True, timeout=300)
    until = time.monotonic() + 120
    while Path("/proc", done.stdout.strip(), "stat").exists() and time.monotonic() < until:
        if Path("/proc", done.stdout.strip(), "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        assert done.stdout.strip() and time.monotonic() < until, "it outlives its driver"


def kill_a_worker(parent: int, seen: list[int]) -> None:
    """SIGKILL for the first child of this process that is at a task, once it has left a snapshot."""
    tasks = Path(os.environ["POTSTILL_CACHE_DIR"]) / "tasks"
    until = time.monotonic() + 120
    while time.monotonic() < until and not seen:
        for snapshot in tasks.glob("*/run/state/snapshot.safetensors"):
            for status in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = status.read_text().rpartition(")")[2].split()
                    words = (status.parent / "cmdline").read_bytes()
                except OSError:
                    continue
                if int(fields[1]) == parent and b"spawn_main" in words and snapshot.exists():
                    seen.append(int(status.parent.name))
                    os.kill(seen[-1], signal.SIGKILL)
                    return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker in /proc")
def test_a_task_whose_worker_is_killed_goes_on_from_its_snapshot_to_the_same_bytes(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    cells = study("dsdm", steps=150)
    cells = Study(tuple(replace(c, recipe=replace(c.recipe, saving=_often(c.recipe.saving))) for c in cells.cells))
    run(toy_dataset, tmp_path / "plain", None, cells)
    killed: list[int] = []
    with find_engine("processes", 1) as engine:
        watcher = threading.Thread(target=kill_a_worker, args=(os.getpid(), killed))
        watcher.start()
        (outcome,) = run(toy_dataset, tmp_path / "spread", engine, cells)
        watcher.join()
    assert killed and outcome.scores is not None
    assert sets_and_scores(tmp_path / "spread") == sets_and_scores(tmp_path / "plain")


def _often(saving: Any) -> Any:
    return replace(saving, every=5)


@pytest.mark.slow
def test_a_worker_that_is_lost_again_and_again_fails_its_task() -> None:
    task = Task("network", "cell", {}, "data", 0, ())
    with find_engine("processes", 1) as engine:
        ((told_of, told, _),) = engine.run([task], {"data": _Deadly.packed()})
    assert told_of == task
    assert isinstance(told, RunError) and "lost 3 times" in str(told) and "--workers" in str(told)
    assert str(lost(task, "x")).startswith("network of cell")


class _Deadly:
    """Unpacking it ends the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)

    @staticmethod
    def packed() -> bytes:
        import pickle

        return pickle.dumps(_Deadly())


def test_a_worker_of_another_version_refuses_by_name(toy_dataset: LabelledDataset) -> None:
    task = replace(Task("network", "cell", {}, "data"), version="0.0.1")
    with pytest.raises(RunError, match=r"a worker has potstill \S+, the study has 0\.0\.1: install the same"):
        perform(task, {"data": pack_data(toy_dataset)}, {})


def test_a_task_is_addressed_by_all_that_it_says() -> None:
    task = Task("member", "cell", {"ipc": 1}, "data")
    others = [replace(task, **change) for change in ({"index": 1}, {"recipe": {"ipc": 2}}, {"kind": "distil"})]
    assert len({task.key, *(other.key for other in others)}) == 4
    assert task.key == replace(task).key


@pytest.mark.parametrize(
    ("name", "workers", "words"),
    [("threads", None, "use one of serial, processes, ray"), ("serial", 4, "workers=4: the serial engine has one")],
)
def test_an_impossible_engine_is_one_line(name: str, workers: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_engine(name, workers)


def test_a_cluster_that_does_not_answer_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(PotstillError, match=r"RAY_ADDRESS=127\.0\.0\.1:1: nothing answers there"):
        find_engine("ray")
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    call = [
        sys.executable,
        "-m",
        "potstill",
        "compare",
        "--dataset",
        "digits",
        "--methods",
        "random,dsdm",
        "--ipc",
        "2",
    ]
    call += ["--methods.dsdm.steps", "60", "--pool.members", "2", "--pool.epochs", "1", "--nets", "2", "--epochs", "2"]
    call += ["--precision", "fp32", "--compile", "false", "--out", str(tmp_path / "out"), "--saving.every", "10"]
    call += ["--cache-dir", str(tmp_path / "cache"), "--engine", "processes", "--workers", "2", "-q"]
    first = subprocess.Popen(call, stdout=subprocess.DEVNULL)
    pool = tmp_path / "cache" / "pool"
    until = time.monotonic() + 180
    while len(list(pool.glob("*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    first.kill()
    first.wait()
    trained = {path: path.stat().st_mtime_ns for path in pool.glob("*.safetensors")}
    assert len(trained) == 2
    again = subprocess.run(call, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert len(list((tmp_path / "out").glob("*/scores/*.json"))) == 4
