"""Runs with files: who may start, go on or replace one, and what is left when something fails in the middle."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import potstill
from potstill.errors import DataError, Interrupted, PotstillError, RunError, UsageError
from potstill.methods import METHODS
from potstill.methods.dsdm import DSDM
from potstill.recipe import Recipe, resolve
from potstill.run import distil as stages
from potstill.run import environment
from potstill.run import score as scoring
from potstill.run.distil import distill_run, read_run_recipe
from potstill.run.environment import forget_peak_memory, peak_memory_mb
from potstill.run.pretrain import pretrain_pool
from potstill.run.progress import Reporter
from potstill.run.score import evaluate_in_few_bits, evaluate_kept, evaluate_set
from potstill.run.store import RunStore
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset

QUIET = Reporter(quiet=True)
SMALL: dict[str, Any] = {
    "ipc": 1,
    "method": {"steps": 6, "real_batch": 16},
    "pool": {"members": 2, "pretrained": False},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
    "saving": {"every": 2},
    "evaluation": {"nets": 2, "epochs": 1},
}


def small(**keys: Any) -> Recipe:
    return resolve(SMALL, {key.replace("__", "."): value for key, value in keys.items()})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


def steps_logged(store: RunStore) -> list[int]:
    return [json.loads(line)["step"] for line in store.metrics.read_text().splitlines()]


def snapshot_step(store: RunStore) -> int:
    return int(load_file(store.snapshot)["step"])


def uninterrupted(data: LabelledDataset, tmp_path: Path, recipe: Recipe) -> bytes:
    store = RunStore(tmp_path / "uninterrupted")
    distill_run(recipe, data, store, QUIET)
    return store.distilled.read_bytes()


@pytest.mark.parametrize(
    ("method", "passes"),
    # 4 steps, 3 classes, forward and backward of 2 images of 4 tiles, 16 real ones; of the 2 x 3 real batches that a
    # bank of 2 networks would hold, 4 steps ask for 4 at most; dsdm_plus has 7 samples of 16 coefficients; a coreset
    # embeds every image once.
    [
        ("dsdm", 4 * 3 * (2 * 2 * 4 + 16)),
        ("dsdm_plus", 3 * (4 * 2 * 7 + 4 * 16)),
        ("dm", 4 * 3 * (2 * 2 * 4 + 16)),
        ("m3d", 4 * 3 * (2 * 2 * 4 + 16)),
        # Two steps with each network, which trains between them; a gradient to weights is 3, the mixed one 6 more.
        ("dc", 4 * 3 * (9 * 2 * 4 + 3 * 16) + 2 * 3 * 5 * 3 * 2 * 4),
        ("herding", 120),
        ("random", 0),
    ],
)
def test_a_run_is_compiled_by_the_images_that_pass_its_networks(
    method: str, passes: int, toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plain = [], stages.Runtime.resolve
    monkeypatch.setattr(stages.Runtime, "resolve", lambda **keys: asked.append(keys["passes"]) or plain(**keys))
    shared = {"steps": 4, "real_batch": 16}
    keys = {"dsdm": shared, "dsdm_plus": {**shared, "bank_draws": 3}, "dm": shared, "m3d": shared}
    keys["dc"] = {**shared, "outer": 2, "inner": 5}
    recipe = resolve({**SMALL, "method": {"name": method, **keys.get(method, {})}, "ipc": 2})
    distill_run(recipe, toy_dataset, store, QUIET)
    assert set(asked) == {passes} and len(toy_dataset.train) == 120


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Let step number `step` (from 1) go through `act(state, metrics)`."""
    plain = DSDM.step

    def changed(self: DSDM, problem: Any, state: Any) -> Any:
        after = plain(self, problem, state)
        return act(*after) if after[0].step == step else after

    monkeypatch.setattr(DSDM, "step", changed)


# --- a run and its files


def test_a_run_leaves_all_its_files(toy_dataset: LabelledDataset, store: RunStore) -> None:
    recipe = small(saving__keep=[3, 5]).on(toy_dataset)
    synthetic = distill_run(recipe, toy_dataset, store, QUIET)
    found = {str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()}
    assert found - {".lock"} == {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "times.json",
        "state/snapshot.safetensors",
        "state/kept/000003.safetensors",
        "state/kept/000005.safetensors",
        "synthetic/initial.safetensors",
        "synthetic/distilled.safetensors",
        "synthetic/preview.png",
    }
    assert read_run_recipe(store) == recipe
    assert steps_logged(store) == [1, 2, 3, 4, 5, 6]
    assert snapshot_step(store) == 6
    assert torch.equal(SyntheticSet.load(store.distilled).images, synthetic.images)
    assert store.read_json("env.json")["recipe_hash"] == recipe.hash() == synthetic.provenance["recipe_hash"]


def test_a_kept_set_is_what_a_shorter_run_ends_with(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    distill_run(small(saving__keep=[4]), toy_dataset, store, QUIET)
    other = distill_run(small(method__steps=4), toy_dataset, RunStore(tmp_path / "short"), QUIET)
    assert torch.equal(SyntheticSet.load(store.kept(4)).images, other.images)


def test_the_initial_set_is_the_undistilled_mosaic(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    distill_run(small(), toy_dataset, store, QUIET)
    mosaic_recipe = resolve({k: v for k, v in SMALL.items() if k != "method"}, {"method.name": "random_mix"})
    mosaic = distill_run(mosaic_recipe, toy_dataset, RunStore(tmp_path / "mix"), QUIET)
    assert torch.equal(SyntheticSet.load(store.initial).images, mosaic.images)


def test_a_method_without_steps_makes_a_finished_run(toy_dataset: LabelledDataset, store: RunStore) -> None:
    recipe = resolve({k: v for k, v in SMALL.items() if k != "method"}, {"method.name": "random"})
    distill_run(recipe, toy_dataset, store, QUIET)
    assert store.distilled.exists() and store.snapshot.exists() and store.metrics.read_text() == ""


def test_the_time_of_a_choice_without_steps_counts(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, plain = [5.0], METHODS["herding"].init

    def slow(*given: Any) -> Any:
        now[0] += 7
        return plain(*given)

    monkeypatch.setattr(METHODS["herding"], "init", slow)
    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    recipe = resolve({k: v for k, v in SMALL.items() if k != "method"}, {"method.name": "herding"})
    distill_run(recipe, toy_dataset, store, QUIET)
    assert store.read_json("times.json")["distill_seconds"] == 7


# --- who may start, go on, replace


def test_an_existing_run_is_refused_without_resume(toy_dataset: LabelledDataset, store: RunStore) -> None:
    distill_run(small(), toy_dataset, store, QUIET)
    before = store.distilled.read_bytes()
    with pytest.raises(UsageError, match=r"holds a run already; add --resume to go on with it, or --overwrite"):
        distill_run(small(), toy_dataset, store, QUIET)
    assert store.distilled.read_bytes() == before


def test_a_run_of_another_recipe_is_refused_even_with_resume(toy_dataset: LabelledDataset, store: RunStore) -> None:
    distill_run(small(), toy_dataset, store, QUIET)
    config = store.config.read_text()
    with pytest.raises(UsageError, match=r"holds a run with seed 0, not 1; leave that .* use another --out or --over"):
        distill_run(small(seed=1), toy_dataset, store, QUIET, resume=True)
    assert store.config.read_text() == config


def stop_after_a_step(data: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(RunError, match="loss is nan"):
        fail_at(patched, 2, lambda state, metrics: (state, replace(metrics, loss=float("nan"))))
        distill_run(small(saving__every=1), data, store, QUIET)


def inverted(data: LabelledDataset) -> LabelledDataset:
    """The same data set after someone changed its training images."""
    train = replace(data.train, images=255 - data.train.images)
    return LabelledDataset(replace(data.spec, train_fingerprint=""), train, data.test)


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_never_goes_on_with_other_training_data(
    finished: bool, toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not finished:
        stop_after_a_step(toy_dataset, store, monkeypatch)
    else:
        distill_run(small(), toy_dataset, store, QUIET)
    before = {path: path.read_bytes() for path in store.root.rglob("*.[sy]a*")}
    with pytest.raises(
        UsageError, match=r"holds a run on other training data, digits with fingerprint .* have changed"
    ):
        distill_run(small(), inverted(toy_dataset), store, QUIET, resume=True)
    assert {path: path.read_bytes() for path in store.root.rglob("*.[sy]a*")} == before


def test_a_run_goes_on_with_its_data_from_another_place_and_other_choices_of_the_machine(
    toy_dataset: LabelledDataset, store: RunStore
) -> None:
    first = distill_run(small(), toy_dataset, store, QUIET)
    moved = small(data__name="elsewhere", runtime__threads=2, runtime__chunk=4)
    again = distill_run(moved, toy_dataset, store, QUIET, resume=True)
    assert torch.equal(first.images, again.images)
    assert read_run_recipe(store).data.name == "elsewhere"


def test_a_run_of_a_version_that_did_not_record_its_data_is_refused(
    toy_dataset: LabelledDataset, store: RunStore
) -> None:
    store.config.parent.mkdir()
    store.config.write_text(small().to_yaml().replace("  fingerprint: ''\n", ""))
    assert read_run_recipe(store) == small()
    with pytest.raises(UsageError, match="holds a run of an older version, which did not record its training data"):
        distill_run(small(), toy_dataset, store, QUIET, resume=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: text.index("pool:")],
        lambda text: text.replace("ipc: 1", "ipc: 3"),
        lambda text: text.partition("\n")[2],  # without its checksum
        lambda text: text.replace("\n", "\n\xff", 1),
    ],
)
def test_a_run_whose_recipe_was_damaged_never_goes_on_as_another(
    damage: Callable[[str], str], toy_dataset: LabelledDataset, store: RunStore
) -> None:
    distill_run(small(), toy_dataset, store, QUIET)
    text = store.config.read_text()
    store.config.write_text(damage(text), encoding="latin-1")
    assert store.config.read_text(encoding="latin-1") != text
    with pytest.raises(DataError, match=r"config.yaml: .*--overwrite"):
        distill_run(small(), toy_dataset, store, QUIET, resume=True)


@pytest.mark.parametrize("text", ["", "a: {b", "[]", "ipc: 0\n", "method: {name: gone}\n"])
def test_a_recipe_that_cannot_be_read_is_one_line_with_its_file(text: str, store: RunStore) -> None:
    store.config.parent.mkdir()
    store.config.write_text(text)
    with pytest.raises(DataError, match=r"config.yaml: .* start anew with --overwrite") as caught:
        read_run_recipe(store)
    assert "\n" not in str(caught.value)


def test_a_run_that_goes_on_tells_all_that_it_was_computed_on(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_a_step(toy_dataset, store, monkeypatch)
    distill_run(small(runtime__chunk=4), toy_dataset, store, QUIET, resume=True)
    runtimes = store.read_json("env.json")["runtimes"]
    assert [text.rpartition("chunks of ")[2] for text in runtimes][-1] == "4 images" and len(runtimes) == 2


def test_resuming_a_finished_run_does_nothing(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = distill_run(small(), toy_dataset, store, QUIET)
    monkeypatch.setattr(DSDM, "step", lambda *_: pytest.fail("a step was taken"))
    again = distill_run(small(evaluation__nets=7), toy_dataset, store, QUIET, resume=True)
    assert torch.equal(first.images, again.images)
    assert read_run_recipe(store).evaluation.nets == 7  # scoring is no part of the recipe's address


def test_overwriting_starts_anew_with_another_recipe(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    distill_run(small(saving__keep=[2]), toy_dataset, store, QUIET)
    distill_run(small(seed=1, method__steps=3), toy_dataset, store, QUIET, overwrite=True)
    assert store.distilled.read_bytes() == uninterrupted(toy_dataset, tmp_path, small(seed=1, method__steps=3))
    assert steps_logged(store) == [1, 2, 3]
    assert not store.kept(2).exists()


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_holds_it(
    toy_dataset: LabelledDataset, store: RunStore
) -> None:
    with store.locked(), pytest.raises(RunError, match="another process is working on this run"):
        distill_run(small(), toy_dataset, RunStore(store.root), QUIET, overwrite=True)
    assert not store.config.exists()


def test_a_snapshot_of_another_method_is_refused_in_one_line(toy_dataset: LabelledDataset, store: RunStore) -> None:
    store.write_snapshot({"step": torch.tensor(2), "images": torch.zeros(3, 1, 1, 8, 8)})
    with pytest.raises(DataError, match=r"not a snapshot of this method \('memory' is missing\)"):
        distill_run(small(), toy_dataset, store, QUIET, resume=True)


# --- what is left after a failure


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_snapshot(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(
            patch,
            3,
            lambda state, metrics: (state, replace(metrics, terms={**metrics.terms, "covariance": float("nan")})),
        )
        with pytest.raises(RunError, match=r"step 3: covariance is nan; .*Lower method\.learning_rate"):
            distill_run(small(saving__every=1), toy_dataset, store, QUIET)
    assert snapshot_step(store) == 2
    assert not store.distilled.exists()
    distill_run(small(saving__every=1), toy_dataset, store, QUIET, resume=True)
    assert store.distilled.read_bytes() == uninterrupted(toy_dataset, tmp_path, small(saving__every=1))
    assert steps_logged(store) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("step", [4, 6])
def test_images_that_are_not_finite_reach_neither_a_snapshot_nor_the_set(
    step: int, toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is that before it: images it ruins would show a step later, or, at the end, never."""
    fail_at(monkeypatch, step, lambda state, metrics: (replace(state, images=state.images * float("inf")), metrics))
    with pytest.raises(RunError, match=rf"step {step}: the sum of the images is (nan|inf)"):
        distill_run(small(), toy_dataset, store, QUIET)
    assert snapshot_step(store) == step - 2
    assert load_file(store.snapshot)["images"].isfinite().all()
    assert not store.distilled.exists()


@pytest.mark.parametrize("victim", ["snapshot.safetensors", "distilled.safetensors", "times.json"])
def test_a_full_disk_is_a_run_error_and_leaves_a_run_that_can_go_on(
    victim: str, toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second write of the file (the first of the result) finds no room when it is flushed."""
    flushes, fsync = [], os.fsync

    def full(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if Path(name).name.startswith(f".{victim}."):
            flushes.append(name)
            if len(flushes) == (1 if victim.startswith("distilled") else 2):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=rf"{victim}: No space left on device; free some space and run again"):
            distill_run(small(), toy_dataset, store, QUIET)
    assert snapshot_step(store) == {"snapshot.safetensors": 2, "times.json": 4, "distilled.safetensors": 6}[victim]
    assert not list(store.root.rglob(f".{victim}*"))
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    assert store.distilled.read_bytes() == uninterrupted(toy_dataset, tmp_path, small())
    assert steps_logged(store) == [1, 2, 3, 4, 5, 6]


def stop_in_step_5(data: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose fifth step fails, its snapshot being from the fourth."""
    with monkeypatch.context() as patch:
        fail_at(patch, 5, lambda *_: (_ for _ in ()).throw(RunError("stop")))
        with pytest.raises(RunError, match="stop"):
            distill_run(small(), data, store, QUIET)


def test_metrics_beyond_the_snapshot_and_a_torn_line_are_repaired_on_resume(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step_5(toy_dataset, store, monkeypatch)
    assert steps_logged(store) == [1, 2, 3, 4] and snapshot_step(store) == 4
    with store.metrics.open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    assert steps_logged(store) == [1, 2, 3, 4, 5, 6]


def test_seconds_go_on_where_the_snapshot_left_them(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step_5(toy_dataset, store, monkeypatch)
    store.write_json("times.json", {"distill_seconds": 100.0})  # as if the first four steps had taken long
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    seconds = [json.loads(line)["seconds"] for line in store.metrics.read_text().splitlines()]
    assert seconds[3] < 100 < seconds[4] <= seconds[5] <= store.read_json("times.json")["distill_seconds"] < 200


@pytest.mark.parametrize(("known", "before"), [({"distill_core_seconds": 60.0}, 60), ({}, 100)])
def test_the_work_of_cores_goes_on_too_and_of_older_parts_it_is_the_clocks_times_the_threads(
    known: dict[str, float],
    before: float,
    toy_dataset: LabelledDataset,
    store: RunStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_in_step_5(toy_dataset, store, monkeypatch)
    lines = [json.loads(line) for line in store.metrics.read_text().splitlines()]
    assert (
        0
        < lines[0]["core_seconds"]
        <= lines[3]["core_seconds"]
        <= store.read_json("times.json")["distill_core_seconds"]
    )
    if not known:
        text = "".join(json.dumps({k: v for k, v in line.items() if k != "core_seconds"}) + "\n" for line in lines)
        store.metrics.write_text(text)
    store.write_json("times.json", {"distill_seconds": 100.0, **known})
    now = count(7)
    monkeypatch.setattr(stages, "core_seconds", lambda device: float(next(now)))
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    work = [json.loads(line)["core_seconds"] for line in store.metrics.read_text().splitlines()[4:]]
    assert work == [before + 1, before + 2]
    times = store.read_json("times.json")
    assert times["distill_core_seconds"] == before + 3 and times["core_seconds_of"] == "cpu"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system cannot forget a peak")
def test_peak_memory_is_that_of_distilling_and_the_most_over_resumes(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_peak_memory()
    before = peak_memory_mb()
    assert len(b"x" * (600 * 2**20)) and peak_memory_mb() >= before + 600  # an earlier method's, given back by now
    stop_in_step_5(toy_dataset, store, monkeypatch)
    times = store.read_json("times.json")
    assert times["peak_memory_mb"] < before + 600
    store.write_json("times.json", {**times, "peak_memory_mb": 5000})
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    assert store.read_json("times.json")["peak_memory_mb"] == 5000


def test_a_system_that_does_not_tell_its_memory_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where the standard library has no module `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)
    copy = ModuleType("potstill.run.environment")
    copy.__dict__.update(__package__="potstill.run", __file__=environment.__file__)
    exec(compile(Path(str(environment.__file__)).read_text(), str(environment.__file__), "exec"), copy.__dict__)
    assert copy.peak_memory_mb() >= 0


def test_a_snapshot_never_runs_ahead_of_the_metrics_on_the_disk(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = RunStore.write_snapshot, []

    def watched(self: RunStore, tensors: dict[str, torch.Tensor]) -> None:
        seen.append((int(tensors["step"]), len(steps_logged(self))))
        write(self, tensors)

    monkeypatch.setattr(RunStore, "write_snapshot", watched)
    distill_run(small(), toy_dataset, store, QUIET)
    assert seen == [(2, 2), (4, 4), (6, 6)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_writes_a_snapshot(
    number: signal.Signals,
    toy_dataset: LabelledDataset,
    store: RunStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = signal.getsignal(number)

    def ask(state: Any, metrics: Any) -> Any:
        os.kill(os.getpid(), number)
        return state, metrics

    with monkeypatch.context() as patch:
        fail_at(patch, 3, ask)
        with pytest.raises(Interrupted, match=r"interrupted after step 3; go on with: potstill distill --resume"):
            distill_run(small(), toy_dataset, store, QUIET)
    assert snapshot_step(store) == 3 and steps_logged(store) == [1, 2, 3]
    assert signal.getsignal(number) is handler
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    assert store.distilled.read_bytes() == uninterrupted(toy_dataset, tmp_path, small())


def test_a_signal_in_the_last_step_finishes_the_run(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 6, lambda *after: (os.kill(os.getpid(), signal.SIGTERM), after)[1])
    distill_run(small(), toy_dataset, store, QUIET)
    assert store.distilled.exists()


def test_a_second_signal_stops_at_once(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_twice(*after: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return after

    fail_at(monkeypatch, 3, ask_twice)
    with pytest.raises(Interrupted, match="interrupted twice: stopped at once, the last snapshot stays"):
        distill_run(small(), toy_dataset, store, QUIET)
    assert snapshot_step(store) == 2


def test_a_step_that_does_not_end_after_a_signal_is_given_up_and_the_state_before_it_is_kept(
    toy_dataset: LabelledDataset,
    store: RunStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As while a bank of features is filled or a graph is compiled."""

    def hang(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        with suppress(Exception):  # what a step calls may take any error for one of its own
            time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr("potstill.run.signals.SECONDS_TO_END", 0.05)
        fail_at(patch, 4, hang)
        with pytest.raises(Interrupted, match="interrupted after step 3; go on with"):
            distill_run(small(saving__every=1000), toy_dataset, store, Reporter())
    assert "interrupted: one moment" in capsys.readouterr().err
    assert snapshot_step(store) == 3
    distill_run(small(saving__every=1000), toy_dataset, store, QUIET, resume=True)
    assert store.distilled.read_bytes() == uninterrupted(toy_dataset, tmp_path, small())


@pytest.mark.usefixtures("step_of_thirty_seconds")
def test_snapshots_go_by_minutes(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    write = RunStore.write_snapshot
    monkeypatch.setattr(RunStore, "write_snapshot", lambda self, t: saved.append(int(t["step"])) or write(self, t))
    distill_run(small(saving__every=None, saving__minutes=1), toy_dataset, store, QUIET)
    assert saved == [2, 4, 6]


def test_seconds_do_not_go_back_where_a_process_was_killed_between_snapshot_and_times(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step_5(toy_dataset, store, monkeypatch)
    lines = [json.loads(line) for line in store.metrics.read_text().splitlines()]
    store.metrics.write_text("".join(json.dumps({**line, "seconds": 50.0 * line["step"]}) + "\n" for line in lines))
    store.write_json("times.json", {"distill_seconds": 100.0})  # of step 2, the snapshot is of step 4
    distill_run(small(), toy_dataset, store, QUIET, resume=True)
    seconds = [json.loads(line)["seconds"] for line in store.metrics.read_text().splitlines()]
    assert seconds == sorted(seconds) and 200 < seconds[4] < 300


# --- what can be known before


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"runtime.device": "cuda:99"}, "device='cuda:99'"),
        ({"ipc": 11}, "44 needed"),
        ({"ipc": 1, "factor": [1, 1]}, "no covariance"),
        ({"method": {"name": "herding"}, "ipc": 41}, "41 needed"),
        (
            {"method": {"name": "random"}, "ipc": 41, "init.kind": "noise"},
            "41 needed: lower ipc or factor$",
        ),
        ({"method": {"name": "herding", "member": 2}}, "networks 0..1; raise pool.members"),
        ({"method.real_statistics": "bank", "method.bank_gigabytes": 1e-6}, "bank.gigabytes=1e-06: one draw for 2"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_claimed_or_a_network_trained(
    keys: dict[str, Any], error: str, toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    layers = {k: v for k, v in SMALL.items() if k != "method" or "method" not in keys}
    recipe = resolve(layers, {"pool.pretrained": True, "pool.epochs": 1}, keys)
    with pytest.raises(PotstillError, match=error):
        distill_run(recipe, toy_dataset, store, QUIET, cache=tmp_path / "cache")
    assert not store.root.exists() and not (tmp_path / "cache").exists()


def test_a_refused_overwrite_leaves_the_run_that_is_there(toy_dataset: LabelledDataset, store: RunStore) -> None:
    made = distill_run(small(), toy_dataset, store, QUIET)
    with pytest.raises(DataError, match="44 needed"):
        distill_run(small(ipc=11), toy_dataset, store, QUIET, overwrite=True)
    assert torch.equal(store.require_set().images, made.images)


def test_a_cache_that_cannot_be_written_is_found_before_training(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = small(pool__pretrained=True, pool__epochs=1)
    with pytest.raises(RunError, match=r"file/pool: the cache cannot be written .* --cache-dir"):
        pretrain_pool(recipe, toy_dataset, QUIET, cache=tmp_path / "file")


def test_a_run_without_a_cache_that_can_be_written_claims_no_folder(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/pool: the cache cannot be written"):
        distill_run(small(pool__pretrained=True), toy_dataset, store, QUIET, cache=tmp_path / "file")
    assert not store.root.exists()
    distill_run(small(method__steps=1), toy_dataset, store, QUIET, cache=tmp_path / "file")  # which needs none


# --- a budget


@pytest.mark.usefixtures("step_of_thirty_seconds")
def test_a_used_up_budget_finishes_the_set_as_it_stands_and_it_says_so(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    cut = distill_run(small(budget__minutes=1.5, saving__keep=[2]), toy_dataset, store, QUIET)
    assert steps_logged(store) == [1, 2, 3] and snapshot_step(store) == 3
    assert store.read_json("times.json")["distill_seconds"] == 90
    hash_of = small().on(toy_dataset).hash()
    facts = {k: cut.provenance[k] for k in ("steps", "steps_planned", "budget_minutes", "recipe_hash")}
    assert facts == {"steps": "3", "steps_planned": "6", "budget_minutes": "1.5", "recipe_hash": hash_of}
    assert SyntheticSet.load(store.distilled).provenance == cut.provenance
    assert "budget_minutes" not in SyntheticSet.load(store.kept(2)).provenance
    shorter = distill_run(small(saving__keep=[3]), toy_dataset, RunStore(tmp_path / "whole"), QUIET)
    assert "budget_minutes" not in shorter.provenance
    assert torch.equal(cut.images, SyntheticSet.load(RunStore(tmp_path / "whole").kept(3)).images)


@pytest.mark.usefixtures("step_of_thirty_seconds")
def test_a_budget_counts_over_resumes(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda *_: (_ for _ in ()).throw(RunError("stop")))
        with pytest.raises(RunError, match="stop"):
            distill_run(small(budget__minutes=2), toy_dataset, store, QUIET)
    cut = distill_run(small(budget__minutes=2), toy_dataset, store, QUIET, resume=True)
    assert cut.provenance["steps"] == "4"  # two before and two after: the lost one is not counted


@pytest.mark.usefixtures("step_of_thirty_seconds")
@pytest.mark.parametrize("minutes", [2.5, None])
def test_a_larger_budget_goes_on_as_if_there_had_been_no_other(
    minutes: float | None, toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    cut = distill_run(small(budget__minutes=1.5), toy_dataset, store, QUIET)
    evaluate_set(cut, toy_dataset.test, small(), store, QUIET)
    evaluate_in_few_bits(cut, toy_dataset.test, small(evaluation__stored_bits=8), store, QUIET)
    assert len(store.sets_in_few_bits()) == 1
    distill_run(small(budget__minutes=minutes), toy_dataset, store, QUIET, resume=True)
    assert list(store.scores.glob("*.json")) == store.sets_in_few_bits() == []  # they were of the set before
    other = RunStore(tmp_path / "at once")
    distill_run(small(budget__minutes=minutes), toy_dataset, other, QUIET)
    assert store.distilled.read_bytes() == other.distilled.read_bytes()


@pytest.mark.usefixtures("step_of_thirty_seconds")
@pytest.mark.parametrize(("first", "then"), [(1.5, 1.5), (1.5, 1.0), (None, 1.0), (None, 9.0)])
def test_a_finished_run_stays_that_of_its_own_budget(
    first: float | None, then: float, toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = distill_run(small(budget__minutes=first), toy_dataset, store, QUIET)
    monkeypatch.setattr(DSDM, "step", lambda *_: pytest.fail("a step was taken"))
    again = distill_run(small(budget__minutes=then), toy_dataset, store, QUIET, resume=True)
    assert again.provenance == made.provenance
    assert read_run_recipe(store).budget.minutes == first


def test_a_budget_that_is_not_used_up_leaves_the_same_bytes(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path
) -> None:
    distill_run(small(budget__minutes=60), toy_dataset, store, QUIET)
    assert store.distilled.read_bytes() == uninterrupted(toy_dataset, tmp_path, small())


# --- the pool


def test_a_pool_is_trained_once_and_then_read_from_the_cache(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(pool__pretrained=True, pool__epochs=1)
    first = pretrain_pool(recipe, toy_dataset, QUIET, cache=tmp_path)
    monkeypatch.setattr("potstill.learning.pool.fit", lambda *_, **__: pytest.fail("a member was trained again"))
    again = pretrain_pool(
        small(pool__pretrained=True, pool__epochs=1, seed=9, ipc=2), toy_dataset, QUIET, cache=tmp_path
    )
    assert first.digests == again.digests
    for old, new in zip(first.members, again.members, strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)


def test_an_untrained_pool_writes_nothing(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    assert len(pretrain_pool(small(), toy_dataset, QUIET, cache=tmp_path)) == 2
    assert list(tmp_path.iterdir()) == []


# --- scores


@pytest.fixture
def toy_set(toy_dataset: LabelledDataset) -> SyntheticSet:
    images = toy_dataset.train.images[torch.stack([(toy_dataset.train.labels == c).nonzero()[:2, 0] for c in range(3)])]
    return SyntheticSet(images.float() / 255, toy_dataset.spec, provenance={"a": "1", "b": "2", "recipe_hash": "c"})


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that networks are trained with from now on."""
    seeds: list[int] = []
    plain = scoring.evaluate_once

    def count(*given: Any, **named: Any) -> Any:
        seeds.append(named["seed"])
        return plain(*given, **named)

    monkeypatch.setattr(scoring, "evaluate_once", count)
    return seeds


def test_a_finished_score_is_kept_and_only_missing_networks_are_trained(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = counted(monkeypatch)
    two = evaluate_set(toy_set, toy_dataset.test, small(), store, QUIET)
    assert len(seeds) == 2
    three = evaluate_set(toy_set, toy_dataset.test, small(evaluation__nets=3), store, QUIET)
    assert len(seeds) == 3 == len(set(seeds))
    assert three.scores[:2] == two.scores


def test_progress_counts_the_networks_whose_scores_are_kept(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_set(toy_set, toy_dataset.test, small(), store, QUIET)
    evaluate_set(toy_set, toy_dataset.test, small(evaluation__nets=3), store, Reporter())
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluate ")]
    assert [line.partition(",")[0] for line in shown] == ["evaluate 3/3"]


def test_a_score_of_another_set_is_not_reused(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = counted(monkeypatch)
    evaluate_set(toy_set, toy_dataset.test, small(), store, QUIET)
    evaluate_set(replace(toy_set, images=1 - toy_set.images), toy_dataset.test, small(), store, QUIET)
    assert len(seeds) == 4


def test_scores_equal_those_of_the_library_call(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, store: RunStore
) -> None:
    ours = evaluate_set(toy_set, toy_dataset.test, small(), store, QUIET)
    theirs = potstill.evaluate(toy_set, toy_dataset.test, nets=2, epochs=1)
    assert [s.accuracy for s in ours.scores] == [s.accuracy for s in theirs.scores]
    assert [s.seed for s in ours.scores] == [s.seed for s in theirs.scores]


def test_a_score_file_says_which_set_recipe_machine_and_commit(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, store: RunStore
) -> None:
    evaluate_set(toy_set, toy_dataset.test, small(evaluation__nets=1), store, QUIET)
    (path,) = store.scores.glob("*.json")
    record = json.loads(path.read_text())
    assert record["schema_version"] == 1 and record["recipe_hash"] == "c"
    assert {"set_hash", "device", "runtime", "commit", "accuracy", "network", "protocol", "epochs", "seed"} <= set(
        record
    )


def test_a_damaged_score_is_one_clear_line(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, store: RunStore
) -> None:
    evaluate_set(toy_set, toy_dataset.test, small(evaluation__nets=1), store, QUIET)
    (path,) = store.scores.glob("*.json")
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match=r"line \d+: not valid JSON .*; delete it to evaluate again"):
        evaluate_set(toy_set, toy_dataset.test, small(evaluation__nets=1), store, QUIET)


# --- the sets on the way


def test_kept_sets_are_scored_like_the_final_one_and_lie_apart_from_it(
    toy_dataset: LabelledDataset, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(saving__keep=[2, 4, 6])
    final = evaluate_set(distill_run(recipe, toy_dataset, store, QUIET), toy_dataset.test, recipe, store, QUIET)
    evaluate_kept(recipe, toy_dataset.test, store, QUIET)
    found = {step: sorted(store.kept_scores(step).glob("*.json")) for step in (0, 2, 4, 6)}
    assert [len(paths) for paths in found.values()] == [2, 2, 2, 0]  # step 6 is the final set
    assert len(list(store.scores.glob("*.json"))) == 2
    alone = evaluate_set(SyntheticSet.load(store.kept(4)), toy_dataset.test, recipe, RunStore(tmp_path / "b"), QUIET)
    accuracies = {json.loads(path.read_text())["accuracy"] for path in found[4]}
    assert accuracies == {score.accuracy for score in alone.scores}
    assert [json.loads(path.read_text())["seed"] for path in found[0]] == sorted(
        (score.seed for score in final.scores), key=lambda seed: f"{seed:016x}"
    )
    seeds = counted(monkeypatch)
    evaluate_kept(recipe, toy_dataset.test, store, QUIET)
    assert seeds == []


# --- a real process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_process_answers_a_signal_with_130_and_goes_on_to_the_same_bytes(
    number: signal.Signals, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    """Snapshots are rare: only the signal can have written the one that is found."""
    data = tmp_path / "toy.npz"
    np.savez(
        data,
        x_train=toy_dataset.train.images.numpy(), y_train=toy_dataset.train.labels.numpy(),
        x_test=toy_dataset.test.images.numpy(), y_test=toy_dataset.test.labels.numpy(),
    )  # fmt: skip
    command = [sys.executable, "-m", "potstill", "distill", "--dataset", str(data), "--ipc", "1", "--json", "-q"]
    command += [
        "--method.steps",
        "100",
        "--method.real_batch",
        "40",
        "--pool.members",
        "2",
        "--pool.pretrained",
        "false",
    ]
    command += [
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--threads",
        "1",
        "--compile",
        "false",
        "--saving.every",
        "1000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    def run(*words: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *words], env=environment, **pipes)  # type: ignore[call-overload]

    first = run("--out", str(stopped))
    deadline = time.monotonic() + 120
    while not (stopped / "metrics.jsonl").exists():  # opened just before the first step
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.005)
    time.sleep(0.1)
    first.send_signal(number)
    output, errors = first.communicate(timeout=60)
    assert first.returncode == 130, errors
    assert output == ""
    assert "potstill: interrupted after step" in errors and "Traceback" not in errors
    assert 0 < snapshot_step(RunStore(stopped)) < 100

    second = run("--resume", str(stopped))
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert json.loads(output)["run"] == str(stopped)
    third = run("--out", str(whole))
    assert third.communicate(timeout=120) and third.returncode == 0
    assert RunStore(stopped).distilled.read_bytes() == RunStore(whole).distilled.read_bytes()
    assert steps_logged(RunStore(stopped)) == list(range(1, 101))


def test_a_run_says_what_its_method_does_in_one_line_for_the_report(toy_dataset, tmp_path) -> None:
    recipe = resolve({"method.name": "random", "ipc": 1, "factor": [1, 1]})
    store = RunStore(tmp_path / "run")
    distill_run(recipe, toy_dataset, store, Reporter(quiet=True))
    assert store.read_json("env.json")["method_about"] == METHODS["random"].about()
    assert METHODS["random"].about().startswith("IPC whole real samples per class")
