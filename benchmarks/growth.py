"""How a DSDM step's time and peak memory grow with classes, IPC, image side, feature width, networks and threads.

    python benchmarks/growth.py --out results/growth.json --figure docs/growth.svg

Every point is a process of its own, so that peak memory is its own; exponents are least-squares slopes of log time
over log size. Pixels are random: times do not depend on them.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from potstill.files import write_atomically
from potstill.learning.pool import untrained
from potstill.machine.runtime import Runtime
from potstill.methods import Init, Problem
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.methods.real_features import BankConfig
from potstill.networks import NETWORKS
from potstill.networks.convnet import ConvNet
from potstill.run.environment import commit, cpu_name, peak_memory_mb
from potstill.spec import DatasetSpec, Split

BASE = {"classes": 10, "ipc": 10, "side": 32, "width": 128, "networks": 1, "threads": 1}
AXES = {
    "classes": [5, 10, 20, 40],
    "ipc": [10, 20, 40, 80],
    "side": [16, 32, 64],
    "width": [64, 128, 256],
    "networks": [1, 4],
    "threads": [1, 2],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=[*AXES], help="measure these, keep --out's others")
    parser.add_argument("--redraw", action="store_true", help="draw the figure from --out, measure nothing")
    parser.add_argument("--point", type=json.loads, help="measure one point and print it (used by this script itself)")
    options = parser.parse_args()
    if options.point is not None:
        print(json.dumps(measure(**options.point)))
        return
    if options.redraw:
        draw(json.loads(options.out.read_text()), options.figure)
        return
    kept = {} if set(options.axes) == set(AXES) else json.loads(options.out.read_text())["axes"]
    found = {axis: [measured({**BASE, axis: value}) for value in AXES[axis]] for axis in options.axes}
    axes = {axis: (kept | found)[axis] for axis in AXES}
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "commit": commit(),
        "base": BASE,
        "real_statistics": "bank",
        "axes": axes,
        "exponents": {axis: round(exponent(axis, points), 3) for axis, points in axes.items()},
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    if options.figure:
        draw(record, options.figure)
    print(json.dumps(record["exponents"]))


def measured(point: dict) -> dict:
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(classes: int, ipc: int, side: int, width: int, networks: int, threads: int) -> dict:
    """Median seconds of a step whose real features come from a filled bank, and the process's peak memory."""
    if "sized" not in NETWORKS:
        NETWORKS.register("sized")(lambda shape, count: ConvNet(shape, count, width=width, depth=3))
    runtime = Runtime.resolve(passes=10**9, side=side, threads=threads)
    runtime.start()
    names = tuple(str(c) for c in range(classes))
    shape = (3, side, side)
    spec = DatasetSpec("random", shape, names, (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="random")
    images = torch.randint(256, (classes * 256, *shape), dtype=torch.uint8)
    problem = Problem(
        spec=spec,
        train=Split(images, torch.arange(classes).repeat_interleave(256)),
        ipc=ipc,
        parameterisation=(2, 2),
        runtime=runtime,
        pool=untrained(spec, network="sized", members=networks),
        network="sized",
        init=Init(kind="noise"),
    )
    method = DSDM(DSDMConfig(real_statistics="bank", bank=BankConfig(draws=1), synthetic_batch=10**6))
    state = method.init(problem)
    seconds = []
    for step in range(6 + 2 * networks):
        started = time.perf_counter()
        state, _ = method.step(problem, state)
        if step >= 2 * networks + 1:
            seconds.append(time.perf_counter() - started)
    point = {"classes": classes, "ipc": ipc, "side": side, "width": width, "networks": networks}
    return {**point, "threads": threads, "seconds": round(median(seconds), 4), "peak_memory_mb": peak_memory_mb()}


def exponent(axis: str, points: list[dict]) -> float:
    """Least-squares slope of log seconds over log size."""
    x, y = [math.log(p[axis]) for p in points], [math.log(p["seconds"]) for p in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def draw(record: dict, path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for axis, points in record["axes"].items():
        sizes = [p[axis] / record["base"][axis] for p in points]
        time_axes.loglog(sizes, [p["seconds"] for p in points], "o-", label=f"{axis} ({record['exponents'][axis]:.2f})")
        memory_axes.loglog(sizes, [p["peak_memory_mb"] for p in points], "o-", label=axis)
    time_axes.set(xlabel="size, times the base", ylabel="seconds a step (median of 5)")
    memory_axes.set(xlabel="size, times the base", ylabel="peak memory, MB")
    for axes, ticks in ((time_axes, [0.1, 0.3, 1, 3]), (memory_axes, [600, 1000, 2000])):
        axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    time_axes.legend(title="exponent of time", fontsize=7, loc="upper left", framealpha=1)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
