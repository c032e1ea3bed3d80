"""Networks trained at the same time: the same scores, shared threads, and nothing left running whatever happens."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import potstill
from potstill.errors import DataError, Interrupted, MissingExtra, RunError, UsageError
from potstill.machine.runtime import Runtime
from potstill.recipe import resolve
from potstill.run import score as scoring
from potstill.run.engine import processes as module
from potstill.run.engine.processes import settle_at_once, side_by_side, waves
from potstill.run.progress import Reporter
from potstill.run.score import evaluate_set
from potstill.run.store import RunStore
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset

QUIET = Reporter(quiet=True)
PLAIN = {"device": "cpu", "precision": "fp32", "compile": False, "chunk": 64}


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
    long, short = {"passes": 4_000_000, "side": 16}, {"passes": 3_999_999, "side": 16}
    assert settle_at_once("auto", Runtime(threads=4), **long) == 4
    assert settle_at_once("auto", Runtime(threads=4), **short) == 1
    assert settle_at_once("auto", Runtime("cuda", threads=4), **long) == 1
    assert settle_at_once(3, Runtime("cuda", threads=1), **short) == 3


@pytest.mark.parametrize("value", [0, -1, "all", 1.5])
def test_impossible_numbers_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"evaluation\.at_once"):
        resolve({"evaluation.at_once": value})


def test_how_many_at_once_is_no_part_of_the_recipes_address() -> None:
    assert resolve({"evaluation.at_once": 2}).hash() == resolve().hash()


# --- processes


Told = Callable[[int, float], None]


def told(data: bytes, number: int, *, runtime: Runtime, on_epoch: Told) -> tuple[int, int, int, int]:
    on_epoch(1, number / 2)
    return number, len(data), runtime.threads, torch.get_num_threads()


def working(path: Path, *, runtime: Runtime, on_epoch: Told) -> None:
    """An endless training that leaves its process's number."""
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").rename(path)
    while True:
        on_epoch(1, 0.0)
        time.sleep(0.05)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def failing(path: Path, *, runtime: Runtime, on_epoch: Told) -> None:
    wait_for(path)
    raise UsageError("depth=9: too deep for 8 x 8 images")


def breaking(path: Path, *, runtime: Runtime, on_epoch: Told) -> None:
    wait_for(path)
    raise ZeroDivisionError("by none")


def vanishing(path: Path, *, runtime: Runtime, on_epoch: Told) -> None:
    wait_for(path)
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_and_progress_come_from_processes_with_their_own_threads() -> None:
    """A megabyte of work each: more than a pipe holds."""
    epochs: list[tuple[int, float]] = []
    own = torch.get_num_threads()
    work = [partial(told, bytes(2**20), number) for number in (3, 4)]
    found = list(side_by_side(work, Runtime(threads=2), lambda *epoch: epochs.append(epoch)))
    assert sorted(found) == [(3, 2**20, 2, 2), (4, 2**20, 2, 2)]
    assert sorted(epochs) == [(1, 1.5), (1, 2.0)]
    assert torch.get_num_threads() == own


@pytest.mark.parametrize(
    ("work", "kind", "complaint"),
    [
        (failing, UsageError, "^depth=9: too deep for 8 x 8 images$"),
        (breaking, RunError, "^ZeroDivisionError: by none$"),
        (vanishing, RunError, r"ended without a word \(exit code -9; .* evaluation\.at_once=1"),
    ],
)
def test_a_failure_is_told_and_ends_the_others(
    work: Any, kind: type, complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pid"
    with pytest.raises(kind, match=complaint):
        list(side_by_side([partial(working, path), partial(work, path)], Runtime(), lambda *_: None))
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
    assert ("Traceback" in capfd.readouterr().err) == (work is breaking)


class Bomb:
    """Ends the process that unpacks it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (7,)


def test_a_process_that_ends_before_it_has_its_work_is_told_too() -> None:
    with pytest.raises(RunError, match=r"ended without a word \(exit code 7;"):
        list(side_by_side([partial(told, Bomb(), 1), partial(told, bytes(2**22), 2)], Runtime(), lambda *_: None))


BLOCKED = """
import signal
from functools import partial
from potstill.run.engine.processes import side_by_side
from potstill.machine.runtime import Runtime
from test_side_by_side import blocked

if __name__ == "__main__":
    print(*side_by_side([blocked, blocked], Runtime(), print), signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def blocked(*, runtime: Runtime, on_epoch: Told) -> bool:
    return {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held back here")
def test_no_process_sees_a_signal_not_even_the_first_of_a_command(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BLOCKED)
    places = [Path(potstill.__file__).parents[1], Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "set()"], done.stderr


@pytest.mark.parametrize("kind", [RunError, UsageError, DataError, Interrupted, partial(MissingExtra, extra="hub")])
def test_errors_keep_their_kind_and_words_on_the_way(kind: Any) -> None:
    error = kind("reading")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


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
    assert "2 threads, chunks of 64 images, 2 networks at once" in said and "evaluate 4/4, 0 s left" in said


@pytest.mark.parametrize(("pays_from", "together"), [(3, [2, 1]), (4, [1, 1, 1])])
def test_only_jobs_that_are_worth_it_get_processes_by_themselves(
    pays_from: int,
    together: list[int],
    toy_dataset: LabelledDataset,
    toy_set: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """6 images of 8x8, one epoch, 3 networks, forward and backward: as 54 forward passes, or 3.4 of 32x32."""
    found = []

    def one_by_one(work: Any, runtime: Runtime, on_epoch: Any) -> Any:
        found.append(len(work))
        return (piece(runtime=runtime, on_epoch=on_epoch) for piece in work)

    monkeypatch.setattr(scoring, "side_by_side", one_by_one)
    monkeypatch.setattr(module, "PROCESSES_PAY_FROM", pays_from)
    recipe = resolve({"evaluation": {"nets": 3, "epochs": 1}, "runtime": {**PLAIN, "threads": 2}})
    assert evaluate_set(toy_set, toy_dataset.test, recipe, RunStore(tmp_path), QUIET).n_nets == 3
    assert found == together


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are counted as Linux shows them")
@pytest.mark.parametrize("to_all", [True, False], ids=["Ctrl-C in a terminal", "SIGTERM to the command"])
def test_an_interrupted_evaluation_leaves_no_process_and_a_clean_message(
    to_all: bool, toy_dataset: LabelledDataset, toy_set: SyntheticSet, tmp_path: Path
) -> None:
    data, path = tmp_path / "toy.npz", tmp_path / "set.safetensors"
    arrays = {}
    for name, split in (("train", toy_dataset.train), ("test", toy_dataset.test)):
        arrays[f"x_{name}"], arrays[f"y_{name}"] = split.images.numpy(), split.labels.numpy()
    np.savez(data, class_names=np.array(toy_dataset.spec.classes), **arrays)
    path.write_bytes(toy_set.to_bytes())
    command = [sys.executable, "-m", "potstill", "evaluate", str(path), "--dataset", str(data), "--epochs", "1000000"]
    command += ["--nets", "2", "--at-once", "2", "--threads", "2", "--compile", "false", "--precision", "fp32"]
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(session(process.pid)) < 3:  # the command and its two processes
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        if to_all:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("potstill: interrupted; what is finished of the scores is kept")
        assert "Traceback" not in errors
        assert session(process.pid) == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def session(leader: int) -> list[int]:
    """The processes of a session, without the helper that multiprocessing keeps."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(ProcessLookupError, FileNotFoundError):
                words = (entry / "cmdline").read_bytes().decode()
                if os.getsid(int(entry.name)) == leader and words and "resource_tracker" not in words:
                    found.append(int(entry.name))
    return found
