"""Killed at any moment, nothing is lost but the steps since the last snapshot: with real processes and SIGKILL."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load

import potstill
from potstill.spec import LabelledDataset

STEPS = 60
KEYS = {
    "--method.steps": STEPS,
    "--method.real_batch": 40,
    "--method.real_statistics": "bank",  # what a resumed run has to make again, too
    "--method.bank_draws": 3,
    "--method.momentum": 0.5,  # state beside the images
    "--saving.every": 2,
    "--pool.members": 2,
    "--pool.epochs": 1,
    "--ipc": 2,
    "--device": "cpu",
    "--precision": "fp32",
    "--threads": 1,
    "--compile": "false",
}


@pytest.fixture
def data_file(toy_colour: LabelledDataset, tmp_path: Path) -> Path:
    path = tmp_path / "toy.npz"
    arrays = {}
    for name, split in (("train", toy_colour.train), ("test", toy_colour.test)):
        arrays[f"x_{name}"], arrays[f"y_{name}"] = split.images.numpy(), split.labels.numpy()
    np.savez(path, **arrays)
    return path


def start(data: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "potstill", "distill", "--dataset", str(data), "--out", str(folder), "-q", *words]
    command += [word for key, value in KEYS.items() for word in (key, str(value))]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(potstill.__file__).parents[1]),
        "POTSTILL_CACHE_DIR": str(folder.parent / f"cache-{folder.name}"),
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def snapshot_step(folder: Path) -> int:
    path = folder / "state" / "snapshot.safetensors"
    return int(load(path.read_bytes())["step"]) if path.exists() else 0


def kill_after(process: subprocess.Popen[str], folder: Path, step: int, seconds: float) -> None:
    """SIGKILL, `seconds` after a snapshot of at least `step` steps is there."""
    deadline = time.monotonic() + 300
    while snapshot_step(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # it was still at work


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_bytes_of_an_uninterrupted_one(
    data_file: Path, tmp_path: Path
) -> None:
    moments = random.Random(5)
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    words: tuple[str, ...] = ()
    start_up = start(data_file, folder)  # anywhere between importing and the first steps
    time.sleep(moments.uniform(0.5, 3.0))
    start_up.kill()
    start_up.communicate()
    reached = [snapshot_step(folder)]
    for target in (2, 8, 16, 24, 32):
        words = ("--resume",)
        step = max(target, reached[-1] + 2)
        kill_after(start(data_file, folder, *words), folder, step, moments.uniform(0, 0.06))
        reached.append(snapshot_step(folder))
        assert not (folder / "synthetic" / "distilled.safetensors").exists()
    assert reached == sorted(reached) and reached[1] > 0 and reached[-1] < STEPS
    finish(start(data_file, folder, "--resume"))
    finish(start(data_file, whole))

    for name in ("synthetic/distilled.safetensors", "synthetic/initial.safetensors", "state/snapshot.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(folder) == metrics(whole)
    assert [record["step"] for record in metrics(folder)] == list(range(1, STEPS + 1))


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl but for the time they took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "core_seconds")} for record in records]
