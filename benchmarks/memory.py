"""Peak memory of one DSDM step at CIFAR-100's shape, IPC 50, factor 2: 20,000 decoded samples, on generated pixels.

python benchmarks/memory.py --out results/speed/memory.json
python benchmarks/memory.py --eager --steps 1 --out results/speed/memory_eager.json
"""

import argparse
import json
import time
from pathlib import Path

import torch

from potstill.files import write_atomically
from potstill.learning.extractor import KEEP_MAPS_OF
from potstill.learning.pool import untrained
from potstill.machine.runtime import Runtime
from potstill.methods import Init, Problem
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.run.environment import commit, cpu_name, peak_memory_mb
from potstill.spec import DatasetSpec, Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--ipc", type=int, default=50)
    parser.add_argument("--eager", action="store_true", help="as without a C++ compiler: not compiled, in fp32")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    mode = {"compile": False, "precision": "fp32"} if options.eager else {}
    runtime = Runtime.resolve(passes=10**9, **mode)
    runtime.start()
    images = torch.randint(256, (options.classes * 500, 3, 32, 32), dtype=torch.uint8)
    names = tuple(str(c) for c in range(options.classes))
    spec = DatasetSpec("generated", (3, 32, 32), names, (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="generated")
    problem = Problem(
        spec=spec,
        train=Split(images, torch.arange(options.classes).repeat_interleave(500)),
        ipc=options.ipc,
        parameterisation=(2, 2),
        runtime=runtime,
        pool=untrained(spec, members=1),
        init=Init(kind="noise"),
    )
    before = peak_memory_mb()
    method = DSDM(DSDMConfig(steps=options.steps))
    state = method.init(problem)
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        state, metrics = method.step(problem, state)
        seconds.append(round(time.perf_counter() - started, 1))
    record = {
        "schema_version": 1,
        "decoded_samples": options.classes * options.ipc * 4,
        "keep_maps_of": KEEP_MAPS_OF,
        "peak_memory_mb": peak_memory_mb(),
        "memory_with_data_loaded_mb": before,
        "step_seconds": seconds,
        "loss": metrics.loss,
        "cpu": cpu_name(),
        "runtime": runtime.describe(),
        "commit": commit(),
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
