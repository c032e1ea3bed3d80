"""Features shared between runs: the same bytes as a bank in memory, made once, by any number of processes."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.errors import DataError
from potstill.learning.pool import untrained
from potstill.machine.runtime import Runtime
from potstill.methods import FeatureStore, Method, Problem, run_method
from potstill.recipe import Recipe, resolve
from potstill.run import distil as stages
from potstill.run.distil import distill_run
from potstill.run.progress import Reporter
from potstill.run.store import RunStore
from potstill.spec import LabelledDataset

BANK: dict[str, Any] = {"steps": 6, "real_batch": 16, "real_statistics": "bank", "bank": {"draws": 2}}
QUIET = Reporter(quiet=True)


def banking(name: str = "dsdm", **keys: Any) -> Method[Any]:
    return resolve({"method": {"name": name, **BANK, **keys}}).build_method()


def problem_of(data: LabelledDataset, folder: Path | None, **changes: Any) -> Problem:
    features = FeatureStore(folder) if folder else None
    given = {"ipc": 2, "parameterisation": (2, 2), "pool": untrained(data.spec, members=2), "runtime": Runtime()}
    return Problem(spec=data.spec, train=data.train, features=features, **{**given, **changes})


def embedded(problem: Problem, monkeypatch: pytest.MonkeyPatch, method: Any = None) -> int:
    """How many real batches a run puts through a network."""
    calls, embed = [], Problem.class_batches
    monkeypatch.setattr(Problem, "class_batches", lambda *given: calls.append(1) or embed(*given))
    run_method(method or banking(), problem)
    return len(calls)


def test_stored_features_give_the_set_that_features_in_memory_give(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    in_memory, made, found = (
        run_method(banking(), problem_of(toy_dataset, folder)).images for folder in (None, tmp_path, tmp_path)
    )
    assert torch.equal(made, in_memory) and torch.equal(found, in_memory)


def test_features_serve_other_ipc_values_and_other_methods(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = problem_of(toy_dataset, tmp_path)
    assert embedded(first, monkeypatch) == 2 * 2  # networks x draws
    assert first.features is not None and first.features.reused_seconds == 0
    other = problem_of(toy_dataset, tmp_path, ipc=1)
    assert embedded(other, monkeypatch) == 0
    assert other.features and other.features.reused_seconds > 0 and other.features.reused_core_seconds > 0
    assert embedded(problem_of(toy_dataset, tmp_path, parameterisation=(1, 1)), monkeypatch) == 0
    plus = banking("dsdm_plus")
    assert embedded(problem_of(toy_dataset, tmp_path, ipc=1), monkeypatch, plus) == 0


@pytest.mark.parametrize(
    "other", ["seed", "network", "classes", "precision", "normalisation", "data", "batch", "augment"]
)
def test_what_determines_features_is_in_their_names(
    other: str, toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded(problem_of(toy_dataset, tmp_path), monkeypatch)
    spec = toy_dataset.spec
    changed: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "network": {"pool": untrained(spec, members=2, seed=1)},
        "classes": {"classes": (0, 2)},
        "precision": {"runtime": Runtime(precision="bf16")},
    }
    data = {"normalisation": replace(spec, std=(0.5,)), "data": replace(spec, fingerprint="other")}
    keys: dict[str, dict[str, Any]] = {"batch": {"real_batch": 15}, "augment": {"augment": "color"}}
    seen = replace(toy_dataset, spec=data.get(other, spec))
    problem = problem_of(seen, tmp_path, **changed.get(other, {}))
    assert embedded(problem, monkeypatch, banking(**keys.get(other, {}))) == 4


def slow(number: int, log: Path, who: int) -> Tensor:
    with log.open("a") as file:
        file.write(f"{number} {who}\n")
    time.sleep(0.05)
    return torch.full((2, 3), float(number))


def fill(folder: Path, log: Path, who: int, barrier: Any) -> None:
    barrier.wait()
    FeatureStore(folder).fill([(str(n), lambda n=n: slow(n, log, who)) for n in range(12)])
    # Returned: every batch is there, also those that the other process was making.
    assert all(FeatureStore(folder).read(str(n))[0, 0] == n for n in range(12))


def test_processes_fill_a_folder_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, log = context.Barrier(2), tmp_path / "log"
    processes = [context.Process(target=fill, args=(tmp_path / "features", log, who, barrier)) for who in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    made = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(number) for number, _ in made) == list(range(12))  # each once
    assert min(Counter(who for _, who in made)[who] for who in ("0", "1")) >= 3


def test_damaged_features_are_named_with_the_remedy(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    run_method(banking(), problem_of(toy_dataset, tmp_path))
    victim = sorted(tmp_path.glob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{victim.name}: damaged features .* delete the file to make it again"):
        run_method(banking(), problem_of(toy_dataset, tmp_path))


# --- in runs


def recipe(**keys: Any) -> Recipe:
    pool, runtime = {"members": 2, "pretrained": False}, {"device": "cpu", "precision": "fp32", "compile": False}
    given = {"method": {"name": "dsdm", **BANK}, "pool": pool, "runtime": runtime, "saving": {"features": True}}
    return resolve(given, {"ipc": 1, **keys})


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which only the making of a batch takes time: seven seconds."""
    now, embed = [0.0], stages.Problem.class_batches

    def slow_batch(*given: Any) -> Any:
        now[0] += 7
        return embed(*given)

    monkeypatch.setattr(stages.Problem, "class_batches", slow_batch)
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(stages, "time", clock)
    monkeypatch.setattr("potstill.methods.feature_store.time", clock)


def distilling_seconds(store: RunStore) -> float:
    return store.read_json("times.json")["distill_seconds"]


@pytest.mark.usefixtures("ticking")
def test_a_run_owes_the_time_of_features_that_it_found(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    first, second, third = (RunStore(tmp_path / name) for name in ("ipc1", "ipc2", "resumed"))
    distill_run(recipe(), toy_dataset, first, QUIET, cache=tmp_path)
    distill_run(recipe(ipc=2), toy_dataset, second, QUIET, cache=tmp_path)
    assert distilling_seconds(first) == distilling_seconds(second) == 4 * 7
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == 4
    # A run that goes on finds the features that its own first half paid for.
    half = recipe(**{"budget.minutes": 0.45})
    distill_run(half, toy_dataset, third, QUIET, cache=tmp_path)
    assert 0 < int(third.require_set().provenance["steps"]) < 6
    distill_run(recipe(), toy_dataset, third, QUIET, cache=tmp_path, resume=True)
    assert third.require_set().provenance["steps"] == "6"
    assert distilling_seconds(third) == 4 * 7


def test_features_stay_in_memory_unless_asked_for(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    distill_run(recipe(**{"saving.features": False}), toy_dataset, RunStore(tmp_path / "run"), QUIET, cache=tmp_path)
    assert not (tmp_path / "features").exists()


def test_features_of_another_program_are_named_with_the_remedy(tmp_path: Path) -> None:
    from safetensors.torch import save_file  # writes no checksum

    for tensors, facts in [({"other": torch.zeros(1)}, {"seconds": "1"}), ({"features": torch.zeros(1)}, None)]:
        save_file(tensors, tmp_path / "a.safetensors", facts)
        with pytest.raises(DataError, match=r"a.safetensors: damaged features .* delete the file to make it again"):
            FeatureStore(tmp_path).fill([("a", lambda: torch.zeros(1))])
