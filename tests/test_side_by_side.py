"""Networks trained at the same time: the same scores, shared threads, and nothing left running whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import potstill
from potstill import runtime as runtime_module
from potstill.config import resolve
from potstill.errors import RunError, UsageError
from potstill.run import scoring
from potstill.run.progress import Reporter
from potstill.run.scoring import evaluate_set
from potstill.run.side_by_side import settle_at_once, side_by_side, waves
from potstill.run.store import RunStore
from potstill.runtime import Runtime
from potstill.spec import LabelledDataset
from potstill.synthetic import SyntheticSet

QUIET = Reporter(quiet=True)
PLAIN = {"device": "cpu", "precision": "fp32", "compile": False}


# --- who works together


@pytest.mark.parametrize(
    ("count", "at_once", "threads", "shares"),
    [
        (3, 2, 2, [(2, 1), (1, 2)]),
        (3, 1, 4, [(1, 4)] * 3),
        (3, 8, 8, [(3, 2)]),
        (5, 4, 4, [(4, 1), (1, 4)]),
        (2, 2, 1, [(2, 1)]),
        (0, 2, 2, []),
    ],
)
def test_those_together_share_the_threads_and_the_last_has_them_all(
    count: int, at_once: int, threads: int, shares: list[tuple[int, int]]
) -> None:
    found = list(waves(range(count), at_once, Runtime(threads=threads)))
    assert [(len(items), runtime.threads) for items, runtime in found] == shares
    assert [i for items, _ in found for i in items] == list(range(count))


def test_long_jobs_on_a_cpu_use_a_process_for_each_thread() -> None:
    assert settle_at_once("auto", Runtime(threads=4), small=False) == 4
    assert settle_at_once("auto", Runtime(threads=4), small=True) == 1
    assert settle_at_once("auto", Runtime("cuda", threads=4), small=False) == 1
    assert settle_at_once("3", Runtime("cuda", threads=1), small=True) == 3


@pytest.mark.parametrize("value", [0, -1, "all", 1.5])
def test_impossible_numbers_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.at_once"):
        resolve({"evaluation.at_once": value})


def test_how_many_at_once_is_no_part_of_the_recipes_address() -> None:
    assert resolve({"evaluation.at_once": 2}).hash() == resolve().hash()


# --- processes


def told(number: int, *, runtime: Runtime, on_epoch: Callable[[int, float], None]) -> tuple[int, int, int]:
    on_epoch(1, number / 2)
    return number, runtime.threads, torch.get_num_threads()


def failing(*, runtime: Runtime, on_epoch: Callable[[int, float], None]) -> None:
    raise RunError("training loss is nan in epoch 7")


def vanishing(*, runtime: Runtime, on_epoch: Callable[[int, float], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def endless(path: Path, *, runtime: Runtime, on_epoch: Callable[[int, float], None]) -> None:
    path.write_text(str(os.getpid()))
    on_epoch(1, 0.0)
    time.sleep(600)


def test_results_and_progress_come_from_processes_with_their_own_threads() -> None:
    epochs: list[tuple[int, float]] = []
    own = torch.get_num_threads()
    found = list(
        side_by_side([partial(told, 3), partial(told, 4)], Runtime(threads=2), lambda *epoch: epochs.append(epoch))
    )
    assert sorted(found) == [(3, 2, 2), (4, 2, 2)]
    assert sorted(epochs) == [(1, 1.5), (1, 2.0)]
    assert torch.get_num_threads() == own


@pytest.mark.parametrize(
    ("work", "complaint"),
    [
        (failing, "^training loss is nan in epoch 7$"),
        (vanishing, r"ended without a word \(exit code -9; .* evaluation\.at_once=1"),
    ],
)
def test_a_failure_is_told_and_ends_the_others(work: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=complaint):
        list(side_by_side([partial(endless, tmp_path / "pid"), work], Runtime(), lambda *_: None))
    if (tmp_path / "pid").exists():  # it may have been ended before it got so far
        assert not is_running(int((tmp_path / "pid").read_text()))


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# --- the stage that uses them


@pytest.fixture
def toy_set(toy_dataset: LabelledDataset) -> SyntheticSet:
    images = toy_dataset.train.images[torch.stack([(toy_dataset.train.labels == c).nonzero()[:2, 0] for c in range(3)])]
    return SyntheticSet(images.float() / 255, toy_dataset.spec)


def test_scores_are_those_of_one_network_after_another(
    toy_dataset: LabelledDataset, toy_set: SyntheticSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"evaluation": {"nets": 2, "epochs": 2}, "runtime": {**PLAIN, "threads": 1}}
    one_by_one = evaluate_set(toy_set, toy_dataset.test, resolve(keys), RunStore(tmp_path / "a"), QUIET)
    together = resolve(keys, {"evaluation.at_once": 2, "runtime.threads": 2})
    scores = evaluate_set(toy_set, toy_dataset.test, together, RunStore(tmp_path / "b"), Reporter())
    facts = [(s.seed, s.accuracy, s.train_loss) for s in scores.scores]
    assert facts == [(s.seed, s.accuracy, s.train_loss) for s in one_by_one.scores]
    files = sorted(RunStore(tmp_path / "b").scores.glob("*.json"))
    assert [path.name for path in files] == [path.name for path in sorted(RunStore(tmp_path / "a").scores.iterdir())]
    assert all("1 thread," in json.loads(path.read_text())["runtime"] for path in files)
    said = capsys.readouterr().err
    assert "2 threads, chunks of 512 images, 2 networks at once" in said and "evaluate 4/4, 0 s left" in said


@pytest.mark.parametrize(("pays_from", "together"), [(0, [2, 1]), (10**9, [1, 1, 1])])
def test_only_jobs_that_are_worth_it_get_processes_by_themselves(
    pays_from: int,
    together: list[int],
    toy_dataset: LabelledDataset,
    toy_set: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def one_by_one(work: Any, runtime: Runtime, on_epoch: Any) -> Any:
        found.append(len(work))
        return (piece(runtime=runtime, on_epoch=on_epoch) for piece in work)

    monkeypatch.setattr(scoring, "side_by_side", one_by_one)
    monkeypatch.setattr(runtime_module, "COMPILE_PAYS_FROM", pays_from)
    recipe = resolve({"evaluation": {"nets": 3, "epochs": 1}, "runtime": {**PLAIN, "threads": 2}})
    assert evaluate_set(toy_set, toy_dataset.test, recipe, RunStore(tmp_path), QUIET).n_nets == 3
    assert found == together


@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C in a terminal", "SIGTERM to the command"])
def test_an_interrupted_evaluation_leaves_no_process_and_a_clean_message(
    to_all: bool, toy_dataset: LabelledDataset, toy_set: SyntheticSet, tmp_path: Path
) -> None:
    data, path = tmp_path / "toy.npz", tmp_path / "set.safetensors"
    arrays = {}
    for name, split in (("train", toy_dataset.train), ("test", toy_dataset.test)):
        arrays[f"x_{name}"], arrays[f"y_{name}"] = split.images.numpy(), split.labels.numpy()
    np.savez(data, **arrays)
    path.write_bytes(toy_set.to_bytes())
    command = [sys.executable, "-m", "potstill", "evaluate", str(path), "--dataset", str(data), "--epochs", "1000000"]
    command += ["--nets", "2", "--at-once", "2", "--threads", "2", "--compile", "false", "--precision", "fp32"]
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(group(process.pid)) < 3:  # the command and its two processes
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    time.sleep(1)
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("potstill: interrupted; what is finished of the scores is kept")
    assert "Traceback" not in errors
    assert group(process.pid) == []


def group(session: int) -> list[int]:
    """The training processes of a session: every one but the helper that multiprocessing keeps."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode()
                if os.getsid(int(entry.name)) == session and "resource_tracker" not in words and words:
                    found.append(int(entry.name))
            except (ProcessLookupError, FileNotFoundError):
                continue
    return found
