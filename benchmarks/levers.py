"""What single levers are worth on one core: kernel and layouts, the allocator, gray images' empty channel, chunk sizes.

    python benchmarks/levers.py --out results/speed/levers.json

Every measurement is a process of its own, in turn without and with; medians. Where a ratio needs a reason it is here
too: convolutions by memory layout, and the operations of a step with a filled bank by time. `--one chunks` compares
chunk sizes, again each in processes of its own and in turn. `--fp32` measures both kernels where there is no bf16, in
pairs within one process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median

import speed
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from potstill.files import write_atomically
from potstill.learning.augment import Strategy, draw
from potstill.learning.extractor import Extractor
from potstill.learning.fit import Schedule, fit
from potstill.learning.pool import untrained
from potstill.machine import native
from potstill.machine.allocator import keep_freed_memory
from potstill.machine.runtime import Runtime
from potstill.methods import Problem
from potstill.methods.dsdm_plus import DSDMPlus, DSDMPlusConfig
from potstill.methods.real_features import BankConfig
from potstill.networks import build_network
from potstill.run.environment import commit, cpu_name

NOW = Runtime(precision="bf16", compile=True, threads=1, chunk=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--one", choices=MEASURED, help="one measurement, printed (used by this script itself)")
    parser.add_argument("--fp32", action="store_true", help="the kernels' worth in fp32 alone")
    parser.add_argument("--with-levers", action="store_true")
    parser.add_argument("--chunk", type=int, help="one size's rates (used by this script itself)")
    options = parser.parse_args()
    if options.chunk:
        print(json.dumps(rates(True, options.chunk)))
        return
    if options.one:
        print(json.dumps(MEASURED[options.one](options.with_levers)))
        return
    where = {"schema_version": 1, "cpu": cpu_name(), "torch": torch.__version__, "commit": commit()}
    if options.fp32:
        record = {**where, "pairs": options.pairs, "images_per_second": fp32(options.pairs)}
        write_atomically(options.out, json.dumps(record, indent=1) + "\n")
        print(json.dumps(record, indent=1))
        return
    record = {
        **where,
        "pairs": options.pairs,
        "images_per_second": paired("rates", options.pairs),
        "gray_images_per_second": paired("gray", options.pairs),
        "plain_step_seconds_by_allocator": paired("plain", options.pairs),
        "convolution_gflops": apart("convolutions", True),
        "bank_step_ms_by_operation": apart("operations", True),
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def paired(name: str, pairs: int) -> dict:
    """Medians of every figure, without and with the levers."""
    runs = [{side: apart(name, side == "with") for side in ("without", "with")} for _ in range(pairs)]
    return {
        side: {key: round(median(run[side][key] for run in runs), 2) for key in runs[0][side]}
        for side in ("without", "with")
    }


def apart(name: str, levers: bool) -> dict:
    return printed("--one", name, *(["--with-levers"] if levers else []))


def printed(*arguments: str) -> dict:
    """What this script prints as a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def rates(levers: bool, chunk: int = NOW.chunk) -> dict:
    runtime = replace(NOW, chunk=chunk if levers else 16)
    if levers:
        runtime.start()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    return rates_of(runtime)


def fp32(pairs: int) -> dict:
    """The rates in fp32, compiled, with the hand-written kernels and without, in turn in one process."""
    runtime = replace(NOW, precision="fp32")
    runtime.start()
    sides = {"without": native.bypassed, "with": nullcontext}
    acts = {side: acts_of(runtime) for side in sides}
    rates: dict[str, dict[str, list[float]]] = {side: {name: [] for name in acts[side]} for side in sides}
    for turn in range(pairs + 1):  # the first compiles
        for side, kernels in sides.items():
            for name, (count, act) in acts[side].items():
                with kernels():
                    began = time.perf_counter()
                    act()
                    if turn:
                        rates[side][name].append(count / (time.perf_counter() - began))
    both = {name: list(zip(rates["without"][name], rates["with"][name], strict=True)) for name in rates["with"]}
    medians = {side: {name: round(median(found), 1) for name, found in rates[side].items()} for side in sides}
    return {**medians, "times": {name: round(median(b / a for a, b in found), 2) for name, found in both.items()}}


def rates_of(runtime: Runtime) -> dict:
    """Images a second."""
    return {name: count / speed.timed(act, 3) for name, (count, act) in acts_of(runtime).items()}


def acts_of(runtime: Runtime) -> dict:
    """What is timed, and how many images pass in it."""
    data, spec = speed.random_data("cpu")
    extractor = Extractor(build_network("convnet", spec, 0), spec, runtime)
    weights = extractor.network.state_dict()
    drawn = draw(Strategy.parse("color_crop_cutout"), 400, torch.Generator().manual_seed(0))
    images = data.images[:400, None]
    pixels = images.float().div(255).requires_grad_()
    schedule = Schedule(epochs=1, batch=256, learning_rate=0.01, augment="color_crop", cutmix=0.5)
    network = build_network("convnet", spec, 0)
    return {
        "forward": (400, lambda: extractor.embed(weights, images, drawn)),
        "forward_backward": (
            400,
            lambda: torch.autograd.grad(extractor.embed(weights, pixels, drawn).square().sum(), pixels),
        ),
        "pre-training": (len(data), lambda: fit(network, data, spec, schedule, runtime, seed=0)),
    }


def gray(levers: bool) -> dict:
    """Images a second in training on one channel of 28x28, with an empty second channel and without."""
    NOW.start()
    data, spec = speed.random_data("cpu")
    data = replace(data, images=data.images[:, :1, :28, :28].contiguous())
    spec = replace(spec, shape=(1, 28, 28), mean=spec.mean[:1], std=spec.std[:1])
    if not levers:
        native.arranged = lambda images: images.contiguous(memory_format=torch.channels_last)
    schedule = Schedule(epochs=1, batch=256, learning_rate=0.01, augment="color_crop", cutmix=0.5)
    network = build_network("convnet", spec, 0)
    return {"training": len(data) / speed.timed(lambda: fit(network, data, spec, schedule, NOW, seed=0), 3)}


def chunks(_levers: bool) -> dict:
    """The rates by images per chunk: median, least and most of five processes each."""
    sizes = ("16", "32", "64", "128", "256")
    rounds = [{size: printed("--chunk", size) for size in sizes} for _ in range(5)]

    def spread(size: str, act: str) -> dict:
        found = [round(one[size][act], 1) for one in rounds]
        return {"median": median(found), "min": min(found), "max": max(found)}

    return {size: {act: spread(size, act) for act in rounds[0][size]} for size in sizes}


def plain(levers: bool) -> dict:
    """Seconds of plain's step; of the levers it can only have the allocator's setting."""
    torch.set_num_threads(1)
    if levers:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        step = speed.plain_step("cpu", 10, folder)
        return {"step": speed.timed(lambda: step(0), 3)}


def convolutions(_levers: bool) -> dict:
    """GFLOP/s of ConvNet-3's second convolution over 16 images, bf16, by memory layout; a ceiling beside it."""
    torch.set_num_threads(1)
    found = {"square product": speed.ceilings("cpu")["gemm_bf16_gflops"]}
    for name, layout in (("channels first", torch.contiguous_format), ("channels last", torch.channels_last)):
        x, weight = (
            torch.randn(shape).bfloat16().contiguous(memory_format=layout)
            for shape in ((16, 128, 16, 16), (128, 128, 3, 3))
        )
        with torch.no_grad():
            seconds = speed.timed(lambda x=x, weight=weight: F.conv2d(x, weight, padding=1), 21)
        found[name] = round(2 * 16 * 256 * 128 * 128 * 9 / seconds / 1e9)
    return found


def operations(_levers: bool) -> dict:
    """Milliseconds of the operations above one in a dsdm_plus step at IPC 10 whose bank is filled."""
    NOW.start()
    data, spec = speed.random_data("cpu")
    problem = Problem(
        spec=spec,
        train=data,
        ipc=10,
        parameterisation=(2, 2),
        runtime=NOW,
        pool=untrained(spec, members=1),
        network="convnet",
    )
    step = speed.stepper(DSDMPlus(DSDMPlusConfig(bank=BankConfig(draws=1))), problem)
    for t in range(6):
        step(t)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(6)
    times = {event.key: event.self_cpu_time_total / 1000 for event in profiled.key_averages()}
    named = {("compiled graph" if "CompiledFxGraph" in key else key): 0.0 for key in times}
    for key, milliseconds in times.items():
        named["compiled graph" if "CompiledFxGraph" in key else key] += milliseconds
    ordered = sorted(named.items(), key=lambda item: -item[1])
    return {"all": round(sum(named.values()), 1), **{key: round(ms, 1) for key, ms in ordered if ms > 1}}


MEASURED = {
    "rates": rates,
    "gray": gray,
    "chunks": chunks,
    "plain": plain,
    "convolutions": convolutions,
    "operations": operations,
}

if __name__ == "__main__":
    main()
