"""What a training step of an evaluation network costs on a GPU: eager, compiled, and replayed as one graph.

    python benchmarks/replay.py --out results/speed/replay.json

The DSDM protocol (batch 64) on 800 random images of 32 x 32, ConvNet-3, bf16. Several of these at once tell what
sharing the GPU costs; with CUDA's multi-process service (`nvidia-cuda-mps-control -d`) their kernels run side by side.
"""

import argparse
import json
import time
from pathlib import Path
from unittest.mock import patch

import torch

from potstill.evaluation.protocols import PROTOCOLS, Scheduled
from potstill.files import write_atomically
from potstill.learning.fit import fit
from potstill.learning.inner import Learner
from potstill.machine.runtime import Runtime
from potstill.networks import build_network
from potstill.run.environment import device_name
from potstill.spec import DatasetSpec, Split

SPEC = DatasetSpec(
    "random", (3, 32, 32), tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="random"
)
DATA = Split(torch.rand(800, 3, 32, 32), torch.arange(800) % 10)
STEPS = 13  # of an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runtime = Runtime.resolve(device="cuda", passes=10**9)
    runtime.start()
    found = {
        "eager": step_ms(Runtime(device="cuda", precision="bf16", chunk=1024), epochs=10),
        "compiled": step_ms(runtime, epochs=60),
        "replayed": step_ms(runtime, epochs=200, replayed=True),
    }
    record = {"schema_version": 1, "device": device_name(runtime), "torch": torch.__version__, "ms_per_step": found}
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def step_ms(runtime: Runtime, *, epochs: int, replayed: bool = False) -> float:
    """Milliseconds, in the second of two trainings: the first compiles and captures."""
    trained(runtime, 20, replayed)
    return 1000 * trained(runtime, epochs, replayed) / epochs / STEPS


def trained(runtime: Runtime, epochs: int, replayed: bool) -> float:
    protocol = PROTOCOLS["dsdm"].lasting(epochs)
    assert isinstance(protocol, Scheduled)
    started = time.perf_counter()
    with patch.object(Learner, "replayed", Learner.replayed if replayed else Learner.step):
        fit(build_network("convnet", SPEC, 0), DATA, SPEC, protocol.schedule, runtime, seed=0)
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
