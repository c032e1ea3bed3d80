"""Does the device compute what the CPU's plain path computes? Features, gradients, three DSDM steps, a training.

    python benchmarks/gpu_check.py --device cuda --out check.json

Exits 1 where fp32 departs from the CPU, or replayed training steps from plain ones, by more than 1e-3, or bf16 features
by more than 2 %, relative to their norm.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from potstill.evaluation.protocols import PROTOCOLS, Scheduled
from potstill.files import write_atomically
from potstill.learning.fit import fit
from potstill.learning.inner import Learner
from potstill.learning.pool import untrained
from potstill.machine.runtime import Runtime
from potstill.methods import Init, Problem
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.networks import build_network
from potstill.spec import DatasetSpec, Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    oracle = three_steps(Runtime())
    found = {
        "fp32_eager": relative(three_steps(Runtime(device=options.device, chunk=64)), oracle),
        "fp32_compiled": relative(three_steps(Runtime(device=options.device, chunk=64, compile=True)), oracle),
        "bf16_compiled": relative(three_steps(Runtime.resolve(device=options.device, passes=10**9)), oracle),
    }
    found["training_replayed"] = relative(
        trained(options.device, replayed=True), trained(options.device, replayed=False)
    )
    limits = {"training_replayed": 1e-3, "fp32_eager": 1e-3, "fp32_compiled": 1e-3, "bf16_compiled": 2e-2}
    passed = {name: value <= limits[name] for name, value in found.items()}
    record = {"schema_version": 1, "relative_difference": found, "limits": limits, "passed": passed}
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    sys.exit(0 if all(passed.values()) else 1)


def three_steps(runtime: Runtime) -> torch.Tensor:
    """History after three steps: every network pass, gradient, clamp and prototype has had its part in it."""
    runtime.start()
    images = torch.randint(256, (640, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = tuple("0123456789")
    spec = DatasetSpec("random", (3, 32, 32), names, (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="random")
    problem = Problem(
        spec=spec,
        train=Split(images, torch.arange(10).repeat_interleave(64)),
        ipc=2,
        parameterisation=(2, 2),
        runtime=runtime,
        pool=untrained(spec, members=1),
        init=Init(kind="noise"),
    )
    method = DSDM(DSDMConfig(steps=3, real_batch=64))
    state = method.init(problem)
    for _ in range(3):
        state, _ = method.step(problem, state)
    return state.history.cpu()


def trained(device: str, *, replayed: bool) -> torch.Tensor:
    """Weights after three epochs of the DSDM protocol, two batches each, whose steps are replayed graphs or are not."""
    runtime = Runtime(device=device, compile=True, chunk=64)
    runtime.start()
    stream = torch.Generator().manual_seed(0)
    spec = DatasetSpec(
        "random", (3, 32, 32), tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="random"
    )
    data = Split(torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8, generator=stream), torch.arange(100) % 10)
    protocol = PROTOCOLS["dsdm"].lasting(3)
    assert isinstance(protocol, Scheduled)
    with patch.object(Learner, "replayed", Learner.replayed if replayed else Learner.step):
        network = fit(build_network("convnet", spec, 0), data, spec, protocol.schedule, runtime, seed=0)
    return torch.cat([value.flatten().cpu() for value in network.state_dict().values()])


def relative(found: torch.Tensor, oracle: torch.Tensor) -> float:
    return float((found - oracle).norm() / oracle.norm())


if __name__ == "__main__":
    main()
