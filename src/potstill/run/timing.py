"""What work takes on this machine: a few steps of a network, timed, and all work counted in their passes.

Pools, sets and evaluation networks consist of samples that pass a network (`Method.passes`), so that one pace for each
network and shape of samples serves them all, whatever the method, the IPC and the length. It is timed without
compiling, on untrained weights, which take as long as trained ones. What compiling gains is found on the first network
that is to be compiled, and taken for the others. Both are kept in the cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..evaluation import Scheduled, find_protocol
from ..learning.augment import draw, suited
from ..learning.extractor import Extractor
from ..machine.runtime import Runtime
from ..machine.work import Stopwatch, slowness
from ..networks import build_network
from ..recipe import Recipe
from ..seeding import generator
from ..spec import LabelledDataset, to_pixels
from .distil import distilling_runtime, passes_of
from .environment import forget_peak_memory, peak_memory_mb
from .kept import Kept
from .pace import time_method
from .pretrain import pool_runtime
from .progress import Reporter
from .sizes import Sized, begun_set, samples_of_set, sizes_of

#: Samples in the two steps that are timed, each so often after a first one: a line through both is the pace.
SIZES, TIMES = (8, 32), 2
#: Passes of a sample in a step that is timed, forward and back to its pixels; in one of training, back to the weights.
TIMED, TRAINING = 2, 3
#: How they are augmented, as most protocols do it.
AUGMENT = "color_crop_flip_scale_rotate"


@dataclass(frozen=True)
class Timed:
    """Seconds of a CPU's work (else of the clock) for a pass, and those that a step takes besides; memory in bytes."""

    each: float
    step: float
    memory: int

    def of(self, passes: float, steps: float) -> float:
        return self.each * passes + self.step * steps


@dataclass(frozen=True)
class Gain:
    """How many times as fast compiled steps are, and the seconds that compiling took."""

    times: float
    once: float


class Timings:
    """What each kind of work takes; timed when it is first asked for.

    Args:
        folder: where it is kept and looked for; None for nowhere.
        alone: tell the time on a machine that does nothing else, not that beside what it does now.
    """

    def __init__(self, reporter: Reporter, folder: Path | None = None, *, alone: bool = True):
        self._kept, self._alone = Kept(reporter, folder), alone
        self._compiled = set[Any]()
        self._busy: float | None = None

    def set_of(self, recipe: Recipe, data: LabelledDataset) -> tuple[float, Sized]:
        """Seconds that a set takes, and its sizes.

        Raises:
            PotstillError: it cannot be made of these data.
        """
        method = recipe.build_method()
        runtime, passes = distilling_runtime(recipe, method, data), passes_of(recipe, method, data)
        held = sizes_of(recipe, data, runtime)  # refused here, each on its own data
        if method.steps and not passes:
            words = f"steps of {recipe.method_name} on {data.spec.name}"
            kind = {"method": repr(method.config), "network": recipe.pool.network, "data": data.spec.fingerprint}
            kind |= runtime.to_json()
            timed = self._kept.find(words, kind, Timed, lambda: time_step(recipe, data, runtime))
            seconds = timed.of(0, method.steps) * self._slowness(runtime)
        else:
            timed, seconds = self._passes(recipe.pool.network, data, runtime, passes, method.steps, recipe.method_name)
        return min(seconds, recipe.budget.seconds), replace(held, memory=held.memory + timed.memory)

    def pool_of(self, recipe: Recipe, data: LabelledDataset, runs: int) -> float:
        """Seconds that so many training runs of its pool take."""
        if not runs:
            return 0.0
        network, runtime = recipe.pool.network, pool_runtime(recipe, data)
        schedule, samples = recipe.pool.training(), len(data.train)
        passes, steps = TRAINING * samples * schedule.epochs, math.ceil(samples / schedule.batch) * schedule.epochs
        return self._passes(network, data, runtime, passes * runs, steps * runs, "training")[1]

    def scores_of(self, recipe: Recipe, data: LabelledDataset, *, whole: bool = False) -> tuple[float, int]:
        """Seconds that all networks of an evaluation take, on the set or on the `whole` training split, and the memory
        of one."""
        config = recipe.evaluation
        protocol = find_protocol(config.protocol, config.epochs)
        samples = len(data.train) if whole else samples_of_set(recipe, data)
        if isinstance(protocol, Scheduled):
            batch = protocol.schedule.batch
        else:
            protocol, batch = protocol.suited(data.train if whole else begun_set(recipe, data)), samples
        trained = TRAINING * samples * protocol.epochs
        runtime = recipe.runtime.resolve(passes=trained * config.nets, side=data.spec.shape[1])
        networks = config.nets * (2 if config.stored_bits else 1)
        passes, steps = trained + len(data.test), math.ceil(samples / batch) * protocol.epochs
        timed, seconds = self._passes(config.network, data, runtime, passes * networks, steps * networks, "training")
        return seconds, timed.memory

    def told(self) -> str:
        """Where the numbers are from and how far they can be trusted."""
        if not self._busy or self._busy <= 1.1:
            return self._kept.told()
        counted = "which is not counted" if self._alone else "which is counted"
        busy = f"this machine is busy and work takes {self._busy:.1f} times as long now, {counted}"
        return f"{self._kept.told()}; {busy}"

    def _passes(
        self, network: str, data: LabelledDataset, runtime: Runtime, passes: float, steps: float, what: str
    ) -> tuple[Timed, float]:
        """Seconds for passes in so many steps; graphs of `what` are compiled for the first of its network and shape."""
        shape, eager = data.spec.shape, replace(runtime, compile=False)
        words = "x".join(map(str, shape))
        size = sum(parameter.numel() for parameter in build_network(network, data.spec, 0).parameters())
        kind = {"network": network, "parameters": size, "shape": shape, **eager.to_json()}
        timed = self._kept.find(f"{network} on {words}", kind, Timed, lambda: time_passes(network, data, eager))
        seconds = timed.of(passes, steps) * self._slowness(runtime)
        if not (runtime.compile and passes):
            return timed, seconds

        def gain() -> Gain:
            once, compiled = time_compiled(network, data, runtime)
            return Gain(timed.of(TIMED * max(SIZES), 1) / compiled, once)

        how = {"compiled": True, **replace(runtime, chunk=0).to_json()}
        found = self._kept.find(f"what compiling gains, on {network} on {words}", how, Gain, gain)
        once = 0.0 if (graphs := (network, shape, what)) in self._compiled else found.once
        self._compiled.add(graphs)
        return timed, once + seconds / found.times

    def _slowness(self, runtime: Runtime) -> float:
        """How many times as long as alone a CPU's work takes now, where that is to be counted."""
        if runtime.device == "cpu":
            self._busy = self._busy or slowness()
        return 1.0 if self._alone or not self._busy else self._busy


def time_passes(network: str, data: LabelledDataset, runtime: Runtime) -> Timed:
    """The line through a step's seconds on few samples and on more."""
    runtime.start()
    forget_peak_memory()
    step, watch = _step(network, data, runtime), Stopwatch.of(runtime)
    step(SIZES[-1])
    seconds = [median(_lap(watch, step, size) for _ in range(TIMES)) for size in SIZES]
    each = max(0.0, seconds[1] - seconds[0]) / (SIZES[1] - SIZES[0])
    each = min(each or seconds[1] / SIZES[1], seconds[1] / SIZES[1])
    return Timed(each / TIMED, seconds[1] - each * SIZES[1], peak_memory_mb() * 2**20)


def time_compiled(network: str, data: LabelledDataset, runtime: Runtime) -> tuple[float, float]:
    """Seconds of the clock that compiling takes, and those of a compiled step on the larger number of samples."""
    runtime.start()
    step, started = _step(network, data, runtime), time.perf_counter()
    step(SIZES[-1])
    once, watch = time.perf_counter() - started, Stopwatch.of(runtime)
    return once, median(_lap(watch, step, SIZES[-1]) for _ in range(TIMES))


def _step(network: str, data: LabelledDataset, runtime: Runtime) -> Callable[[int], None]:
    """So many samples through the network and back to their pixels: of those who train and who distil about alike."""
    spec, built = data.spec, build_network(network, data.spec, 0)
    extractor, weights = Extractor(built, spec, runtime), {**built.state_dict()}
    drawn = draw(suited(AUGMENT, spec.modality, mirror=spec.mirror, single=False), 1, generator(0, "timing"))

    def step(count: int) -> None:
        chosen = torch.arange(count) % len(data.train)
        samples = data.train.images[chosen].to(runtime.device)
        pixels = (to_pixels(samples) if samples.dtype == torch.uint8 else samples).requires_grad_()
        loss = extractor.embed(weights, pixels[None], drawn).square().mean()
        (gradient,) = torch.autograd.grad(loss, pixels)
        float(gradient.sum())  # waits for a GPU

    return step


def _lap(watch: Stopwatch, step: Callable[[int], None], size: int) -> float:
    watch.lap()
    step(size)
    return watch.lap()


def time_step(recipe: Recipe, data: LabelledDataset, runtime: Runtime) -> Timed:
    """A step of a method that does not tell its passes."""
    forget_peak_memory()
    steps = recipe.build_method().steps
    _, pace = time_method(recipe, data, runtime)
    return Timed(0.0, pace.of(steps) / steps, peak_memory_mb() * 2**20)
