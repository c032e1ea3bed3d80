"""potstill beside `plain.py`, in pairs on the same cores: step, pre-training, evaluation, and the ceilings.

    python benchmarks/speed.py --threads 1 --out results/speed_1thread.json

A pair is one run of each side, one after the other, so that a machine whose speed drifts slows both; the ratio is
taken pair by pair and its median quoted. Plain runs in a process of its own: in ours it would be a third faster, for
the allocator's settings (`Runtime.start`). Data are random pixels of CIFAR-10's shape: times do not depend on them.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import plain
import torch

from potstill.files import write_atomically
from potstill.learning.fit import Schedule, fit
from potstill.learning.pool import Pool
from potstill.machine.runtime import Runtime
from potstill.methods import Problem
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.methods.real_features import BankConfig
from potstill.networks import build_network
from potstill.run.environment import commit, cpu_name, peak_memory_mb
from potstill.spec import DatasetSpec, Split

CLASSES, PER_CLASS, MEMBERS = 10, 300, 2
#: Floating-point operations of ConvNet-3 at 32x32x3, counted from its shapes: three convolutions and the classifier.
FORWARD = 2 * 9 * 128 * (3 * 1024 + 128 * 256 + 128 * 64) + 2 * 2048 * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--ipcs", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runtime = Runtime.resolve(device=options.device, threads=options.threads, passes=10**9)
    runtime.start()
    torch.manual_seed(0)
    data, spec = random_data(options.device)
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "commit": commit(),
        "runtime": runtime.describe(),
        "ceilings": ceilings(options.device),
        "step": {f"ipc{ipc}": step_pairs(data, spec, runtime, ipc, options.pairs) for ipc in options.ipcs},
        "pretraining_epoch": training_pairs(data, spec, runtime, 256, options.pairs),
        "evaluation_epoch": training_pairs(
            data.subset(torch.arange(400, device=options.device)), spec, runtime, 64, options.pairs
        ),
    }
    record["network_passes"] = passes(data, spec, runtime, record["ceilings"])
    record["peak_memory_mb"] = peak_memory_mb()
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def random_data(device: str) -> tuple[Split, DatasetSpec]:
    count = CLASSES * PER_CLASS
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    names = tuple(str(c) for c in range(CLASSES))
    spec = DatasetSpec("random", (3, 32, 32), names, (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="random")
    return Split(images.to(device), labels.to(device)), spec


def ceilings(device: str) -> dict:
    """GFLOP/s of square matrix products and GB/s of a copy, on the threads or the device in use."""
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        side = 1536 if device == "cpu" else 8192
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[f"gemm_{name}_gflops"] = round(2 * side**3 / timed(lambda a=a, b=b: a @ b, 9) / 1e9, 1)
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    found["copy_gbytes"] = round(2 * source.numel() * 4 / timed(lambda: target.copy_(source), 5) / 1e9, 1)
    return found


def step_pairs(data: Split, spec: DatasetSpec, runtime: Runtime, ipc: int, pairs: int) -> dict:
    """Seconds of a distillation step: plain, fresh real batches, and the feature bank once it is filled."""
    nets = [build_network("convnet", spec, m).state_dict() for m in range(MEMBERS)]
    pool = Pool("convnet", nets, [str(m) for m in range(MEMBERS)])
    problem = Problem(spec=spec, train=data, ipc=ipc, parameterisation=(2, 2), runtime=runtime, pool=pool)
    with tempfile.TemporaryDirectory() as folder, apart(plain_step, runtime, ipc, folder) as plain_side:
        sides = {"plain": plain_side}
        for kind in ("fresh", "bank"):
            sides[kind] = stepper(DSDM(DSDMConfig(real_statistics=kind, bank=BankConfig(draws=1))), problem)
        return paired(sides, pairs, warm=3 * MEMBERS)


def stepper(method: DSDM, problem: Problem):
    state = [method.init(problem)]

    def step(_t: int) -> None:
        state[0], _ = method.step(problem, state[0])

    return step


@contextmanager
def apart(build: Callable[..., Callable[[int], object]], runtime: Runtime, *given) -> Iterator[Callable[[int], None]]:
    """What `build(device, *given)` returns, living in a process of its own, as a function that waits for it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, build, runtime.device, runtime.threads, given), daemon=True)
    process.start()

    def call(t: int) -> None:
        here.send(t)
        here.recv()

    try:
        yield call
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection, build: Callable, device: str, threads: int, given: tuple) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    act = build(device, *given)
    while True:
        t = pipe.recv()
        act(t)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send(None)


def plain_step(device: str, ipc: int, folder: str) -> Callable[[int], object]:
    data, spec = random_data(device)
    images = Problem(
        spec=spec, train=data, ipc=ipc, parameterisation=(2, 2), runtime=Runtime(device=device)
    ).initial_images()
    paths = []
    for m in range(MEMBERS):
        paths.append(Path(folder) / f"{m}.pt")
        torch.save(plain_network(spec, device).state_dict(), paths[-1])
    mean, std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))
    return plain.PlainDSDM(data.images, data.labels, images, paths, mean, std).step


def plain_epoch(device: str, count: int, batch: int) -> Callable[[int], object]:
    data, spec = random_data(device)
    model = plain_network(spec, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    mean, std = (torch.tensor(values, device=device) for values in (spec.mean, spec.std))
    images, labels = data.images[:count], data.labels[:count]
    return lambda t: plain.train_epoch(model, optimizer, images, labels, mean, std, batch)


def plain_network(spec: DatasetSpec, device: str) -> plain.PlainConvNet:
    model = plain.PlainConvNet().to(device)
    model(torch.zeros(1, *spec.shape, device=device))  # its classifier takes its width from the first call
    return model


def training_pairs(data: Split, spec: DatasetSpec, runtime: Runtime, batch: int, pairs: int) -> dict:
    """Seconds of one epoch over `data`, both with SGD, colour, crop and CutMix."""
    schedule = Schedule(epochs=1, batch=batch, learning_rate=0.01, augment="color_crop", cutmix=0.5)
    net = build_network("convnet", spec, 0)
    with apart(plain_epoch, runtime, len(data), batch) as plain_side:
        sides = {"plain": plain_side, "potstill": lambda t: fit(net, data, spec, schedule, runtime, seed=t)}
        found = paired(sides, pairs, warm=1)
    found["images_per_second"] = {name: round(len(data) / seconds[0], 1) for name, seconds in found["seconds"].items()}
    return found


def passes(data: Split, spec: DatasetSpec, runtime: Runtime, limits: dict) -> dict:
    """Achieved GFLOP/s of forward and of forward + backward to pixels (2 x forward), and their share of bf16 GEMM."""
    from potstill.learning.augment import COLUMNS, Draw
    from potstill.learning.extractor import Extractor

    extractor = Extractor(build_network("convnet", spec, 0), spec, replace(runtime))
    draw, images = Draw((), torch.zeros(400, COLUMNS)), data.images[:400, None]
    weights, pixels = extractor.network.state_dict(), images.float().div(255).requires_grad_()
    forward = timed(lambda: extractor.embed(weights, images, draw), 7)
    both = timed(lambda: torch.autograd.grad(extractor.embed(weights, pixels, draw).square().sum(), pixels), 7)
    rates = {"forward": 400 * FORWARD / forward / 1e9, "forward_backward": 400 * 2 * FORWARD / both / 1e9}
    ceiling = limits["gemm_bf16_gflops"]
    return {
        name: {"gflops": round(rate, 1), "share_of_bf16_gemm": round(rate / ceiling, 3)} for name, rate in rates.items()
    }


def paired(sides: dict, pairs: int, warm: int) -> dict:
    """Median, minimum and maximum seconds of every side, and the ratio of the first to each, pair by pair."""
    for side in sides.values():
        for t in range(warm):
            side(t)
    seconds = {name: [] for name in sides}
    for t in range(pairs):
        for name, side in sides.items():
            seconds[name].append(clock(lambda side=side, t=t: side(warm + t)))
    first, *others = sides
    ratios = {name: median(a / b for a, b in zip(seconds[first], seconds[name], strict=True)) for name in others}
    return {
        "seconds": {name: [round(f(values), 4) for f in (median, min, max)] for name, values in seconds.items()},
        "times_faster": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "pairs": pairs,
    }


def timed(act, repeats: int) -> float:
    for _ in range(2):
        act()
    return median(clock(act) for _ in range(repeats))


def clock(act) -> float:
    """Wall seconds of one call, the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    act()
    wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
