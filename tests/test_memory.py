"""Memory of one step on a set as large as CIFAR-100's at IPC 50 and factor 2, from files of its published layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

STEP = """
import sys
import torch
from potstill.data import load_dataset
from potstill.learning.pool import untrained
from potstill.machine.runtime import Runtime
from potstill.methods import Init, Problem
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.run.environment import peak_memory_mb

network, runtime = "convnet:width=16", Runtime(chunk=64)
runtime.start()
data = load_dataset("cifar100", data_dir=sys.argv[1])
pool = untrained(data.spec, network=network, members=1)
problem = Problem(
    spec=data.spec, train=data.train, ipc=50, parameterisation=(2, 2), runtime=runtime, pool=pool, network=network,
    init=Init(kind="noise"),
)
method = DSDM(DSDMConfig(steps=1))
state, metrics = method.step(problem, method.init(problem))
assert state.images.shape == (100, 50, 3, 32, 32) and problem.samples == 200 and metrics.loss > 0
print(peak_memory_mb())
"""


@pytest.mark.slow
def test_a_step_on_20_000_decoded_samples_stays_below_3_gb(tmp_path: Path) -> None:
    """Maps of all samples at once would take 5.5 GB at this width; chunks of samples go through one after another."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for name, count in (("train", 800), ("test", 100)):
        labels = np.arange(count, dtype=np.uint8) % 100
        pixels = draws.integers(0, 256, (count, 3072), dtype=np.uint8)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels // 5, labels, pixels]).tobytes())
    done = subprocess.run([sys.executable, "-c", STEP, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3_000
