"""The gradient to the samples in gradient matching: double backward beside the mixed pass, in pairs on one core.

    python benchmarks/gradient_matching.py --threads 1 --out results/speed/gradient_matching.json

One call each of DC's matching of one class (cosine, ConvNet-3, 32x32 colour): the samples' gradient to the weights,
its distance to a given one, and the way back to the pixels. `double` is autograd in eager fp32, which cannot be
compiled; `mixed` is `Gradients.match`, eager and compiled. Ratios are taken pair by pair, the median is quoted.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from potstill.files import write_atomically
from potstill.learning.augment import COLUMNS, Draw
from potstill.learning.gradients import Gradients
from potstill.machine.runtime import Runtime
from potstill.matching.gradients import cosine_distance
from potstill.networks import build_network
from potstill.run.environment import commit, cpu_name
from potstill.spec import DatasetSpec, normalise

SPEC = DatasetSpec(
    "random", (3, 32, 32), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="random"
)
NO_DRAW = Draw((), torch.zeros(1, COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    compiled = Runtime.resolve(device="cpu", threads=options.threads, passes=10**9, precision="fp32")
    compiled.start()
    torch.manual_seed(0)
    pixels, labels = torch.rand(options.images, 3, 32, 32), torch.zeros(options.images, dtype=torch.long)
    weights = build_network("convnet", SPEC, 0).state_dict()
    real = {name: torch.randn_like(value) for name, value in weights.items()}
    sides = {
        "double": double(weights, pixels, labels, real),
        "mixed_eager": mixed(replace(compiled, compile=False), weights, pixels, labels, real),
        "mixed_compiled": mixed(compiled, weights, pixels, labels, real),
    }
    first = {name: timed(side) for name, side in sides.items()}
    expected = sides["double"]()
    errors = {name: float((side() - expected).norm() / expected.norm()) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.pairs):
        for name, side in sides.items():
            seconds[name].append(timed(side))
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "runtime": compiled.describe(),
        "images": options.images,
        "first_call_seconds": {name: round(value, 1) for name, value in first.items()},
        "median_seconds": {name: round(median(values), 4) for name, values in seconds.items()},
        "double_over": {
            name: round(median(d / s for d, s in zip(seconds["double"], seconds[name], strict=True)), 2)
            for name in ("mixed_eager", "mixed_compiled")
        },
        "relative_error_to_double": errors,
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def mixed(runtime: Runtime, weights, pixels: Tensor, labels: Tensor, real) -> Callable[[], Tensor]:
    gradients = Gradients(build_network("convnet", SPEC, 0), SPEC, runtime)

    def call() -> Tensor:
        samples = pixels.clone().requires_grad_()
        value = gradients.match(weights, samples, labels, NO_DRAW, real, cosine_distance)
        return torch.autograd.grad(value, samples)[0]

    return call


def double(weights, pixels: Tensor, labels: Tensor, real) -> Callable[[], Tensor]:
    network, mean, std = build_network("convnet", SPEC, 0), torch.tensor(SPEC.mean), torch.tensor(SPEC.std)

    def call() -> Tensor:
        samples, leaves = pixels.clone().requires_grad_(), {n: w.clone().requires_grad_() for n, w in weights.items()}
        loss = F.cross_entropy(functional_call(network, leaves, (normalise(samples, mean, std),)), labels)
        found = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        value = cosine_distance(real, dict(zip(leaves, found, strict=True)))
        return torch.autograd.grad(value, samples)[0]

    return call


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
