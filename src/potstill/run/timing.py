"""What work takes on this machine: a few steps of a network, timed, and all work counted in their passes.

Pools, sets and evaluation networks consist of samples that pass a network (`Method.passes`), so that one pace for each
network and shape of samples serves them all, whatever the method, the IPC and the length. It is timed without
compiling, on untrained weights, which take as long as trained ones. What compiling gains is found on the first network
that is to be compiled, and taken for the others. Both are kept in the cache, for this hardware and these versions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from .._version import __version__
from ..errors import PotstillError
from ..evaluation import Scheduled, TrainingSet, find_protocol
from ..files import write_atomically
from ..learning.augment import draw, suited
from ..learning.extractor import EAGER_MAPS, KEEP_MAPS_OF, Extractor
from ..learning.pool import Pool, untrained
from ..machine.compiler import count_graphs
from ..machine.runtime import Runtime
from ..methods import Method, Problem, State
from ..networks import build_network
from ..recipe import Recipe
from ..seeding import generator
from ..spec import LabelledDataset, to_pixels
from .distil import bare_problem, distilling_runtime, passes_of
from .environment import commit, device_name, forget_peak_memory, peak_memory_mb
from .pretrain import pool_runtime
from .progress import Reporter

#: Samples in the two steps that are timed, each so often after a first one: a line through both is the pace.
SIZES, TIMES = (8, 32), 2
#: Passes of a sample in a step that is timed, forward and back to its pixels; in one of training, back to the weights.
TIMED, TRAINING = 2, 3
#: How they are augmented, as most protocols do it.
AUGMENT = "color_crop_flip_scale_rotate"
#: Days for which what was timed is taken as true.
KEPT_DAYS = 30
#: Steps of a method that are timed after the first.
STEPS = 4
#: Bytes of the maps of a sample that wait for its gradient, at 32 x 32 in bf16.
MAPS = 2**19

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """Seconds that are spent once, and those of each unit of work: a network pass, a step where these are unknown."""

    once: float
    each: float

    def of(self, amount: float) -> float:
        return self.once + self.each * amount


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


@dataclass(frozen=True)
class Sized:
    """What a set's process and its folder hold, in bytes: memory at the peak, a state, a set."""

    memory: int
    state: int
    stored: int


class Stopwatch:
    """Seconds from one look to the next: of the clock, or, given the threads that work, of the work that a CPU does.

    Work is that of the thread which waits for the others, or the even share of all, whichever is more: a CPU that is
    busy with other things as well changes neither.
    """

    def __init__(self, threads: int = 0):
        self._threads = threads
        self._before = self._now()

    @classmethod
    def of(cls, runtime: Runtime, *, at_work: bool) -> Stopwatch:
        """Of work where that is asked for and done by a CPU."""
        return cls(runtime.threads if at_work and runtime.device == "cpu" else 0)

    def lap(self) -> float:
        now = self._now()
        seconds = max(after - before for before, after in zip(self._before, now, strict=True))
        self._before = now
        return seconds

    def _now(self) -> tuple[float, ...]:
        if not self._threads:
            return (time.perf_counter(),)
        return time.thread_time(), time.process_time() / self._threads


class Timings:
    """What each kind of work takes; found when it is first asked for.

    Args:
        folder: where it is kept and looked for; None for nowhere.
        alone: tell the time on a machine that does nothing else, not that beside what it does now.
    """

    def __init__(self, reporter: Reporter, folder: Path | None = None, *, alone: bool = True):
        self._reporter, self._folder, self._alone = reporter, folder, alone
        self._known, self._compiled = dict[str, Any](), set[Any]()
        self._busy: float | None = None
        #: Seconds for which timings were made, how many, and seconds since each that was found was made.
        self.spent, self.made, self.ages = 0.0, 0, list[float]()

    def set_of(self, recipe: Recipe, data: LabelledDataset) -> tuple[float, Sized]:
        """Seconds that a set takes, and its sizes.

        Raises:
            PotstillError: it cannot be made of these data.
        """
        method = recipe.build_method()
        runtime, passes = distilling_runtime(recipe, method, data), passes_of(recipe, method, data)
        problem = bare_problem(recipe, data, Runtime(), some_pool(recipe, data, method.needs_pool))
        if method.steps:
            sizes = _sizes(method, problem, method.init(problem))  # refused here, each on its own data
        else:
            method.check(problem)
            sizes = (_budget_bytes(recipe, data),) * 2
        if method.steps and not passes:
            words = f"steps of {recipe.method_name} on {data.spec.name}"
            kind = {"method": repr(method.config), "network": recipe.pool.network, "data": data.spec.fingerprint}
            timed = self._find(words, {**kind, **runtime.to_json()}, Timed, lambda: _time_method(recipe, data, runtime))
            seconds = timed.step * method.steps * self._slowness(runtime)
        else:
            timed, seconds = self._passes(recipe.pool.network, data, runtime, passes, method.steps, recipe.method_name)
        held = timed.memory + (_maps(problem, runtime) if method.steps else 0) + sizes[0]
        return min(seconds, recipe.budget.seconds), Sized(held, *sizes)

    def pool_of(self, recipe: Recipe, data: LabelledDataset, runs: int) -> float:
        """Seconds that so many training runs of its pool take."""
        if not runs:
            return 0.0
        schedule, samples = recipe.pool.training(), len(data.train)
        passes, steps = TRAINING * samples * schedule.epochs, math.ceil(samples / schedule.batch) * schedule.epochs
        return self._passes(
            recipe.pool.network, data, pool_runtime(recipe, data), passes * runs, steps * runs, "training"
        )[1]

    def scores_of(
        self, recipe: Recipe, samples: int, data: LabelledDataset, begun: Callable[[], TrainingSet] | None = None
    ) -> tuple[float, int]:
        """Seconds that all networks of an evaluation on so many samples take, and the memory of one.

        Args:
            begun: makes a set to train on, where the protocol reads more of it than samples.
        """
        config = recipe.evaluation
        protocol, batch = find_protocol(config.protocol, config.epochs), samples
        if isinstance(protocol, Scheduled):
            batch = protocol.schedule.batch
        else:
            assert begun
            protocol = protocol.suited(begun())
        runtime = recipe.runtime.resolve(
            passes=TRAINING * samples * protocol.epochs * config.nets, side=data.spec.shape[1]
        )
        networks = config.nets * (2 if config.stored_bits else 1)
        passes = TRAINING * samples * protocol.epochs + len(data.test)
        steps = math.ceil(samples / batch) * protocol.epochs
        timed, seconds = self._passes(config.network, data, runtime, passes * networks, steps * networks, "training")
        return seconds, timed.memory

    def told(self) -> str:
        """Where the numbers are from and how far they can be trusted."""
        found = f"{len(self.ages)} found in the cache, the oldest made {_ago(max(self.ages))}" if self.ages else ""
        made = f"{self.made} timed now in {self.spent:.0f} s" if self.made else ""
        busy = ""
        if self._busy and self._busy > 1.1:
            counted = "which is not counted" if self._alone else "which is counted"
            busy = f"; this machine is busy and work takes {self._busy:.1f} times as long now, {counted}"
        return f"{', '.join(filter(None, (made, found))) or 'nothing had to be timed'}{busy}"

    def _passes(
        self, network: str, data: LabelledDataset, runtime: Runtime, passes: float, steps: float, what: str
    ) -> tuple[Timed, float]:
        """Seconds for passes in so many steps; graphs of `what` are compiled for the first of its network and shape."""
        shape, eager = data.spec.shape, replace(runtime, compile=False)
        words = "x".join(map(str, shape))
        size = sum(parameter.numel() for parameter in build_network(network, data.spec, 0).parameters())
        kind = {"network": network, "parameters": size, "shape": shape, **eager.to_json()}
        timed = self._find(f"{network} on {words}", kind, Timed, lambda: time_passes(network, data, eager))
        seconds = timed.of(passes, steps) * self._slowness(runtime)
        if not (runtime.compile and passes):
            return timed, seconds

        def gain() -> Gain:
            once, compiled = time_compiled(network, data, runtime)
            return Gain(timed.of(TIMED * max(SIZES), 1) / compiled, once)

        how = {"compiled": True, **replace(runtime, chunk=0).to_json()}
        found = self._find(f"what compiling gains, on {network} on {words}", how, Gain, gain)
        once = 0.0 if (graphs := (network, shape, what)) in self._compiled else found.once
        self._compiled.add(graphs)
        return timed, once + seconds / found.times

    def _slowness(self, runtime: Runtime) -> float:
        """How many times as long as alone a CPU's work takes now, where that is to be counted."""
        if runtime.device == "cpu":
            self._busy = self._busy or slowness()
        return 1.0 if self._alone or not self._busy else self._busy

    def _find(self, words: str, kind: Mapping[str, Any], form: Callable[..., T], measure: Callable[[], T]) -> T:
        """What is known of a kind: from before, from an earlier call on such hardware, or measured."""
        versions = {"potstill": __version__, "commit": commit(), "torch": torch.__version__}
        key = json.dumps([form.__name__, kind, device_name(Runtime(device=kind["device"])), versions], default=str)
        if key not in self._known:
            path = self._folder and self._folder / f"{sha256(key.encode()).hexdigest()[:24]}.json"
            self._known[key] = self._read(path, form) or self._measured(words, path, key, measure)
        return self._known[key]

    def _read(self, path: Path | None, form: Callable[..., T]) -> T | None:
        """What was kept, if it is whole and not too old."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text()) if path else {}
            age = time.time() - record["made"]
            if age < KEPT_DAYS * 86400:
                found = form(**record["found"])
                self.ages.append(age)
                return found
        return None

    def _measured(self, words: str, path: Path | None, key: str, measure: Callable[[], T]) -> T:
        self.made += 1
        self._reporter.say(f"timing {self.made}: {words}")
        started = time.perf_counter()
        found = measure()
        self.spent += time.perf_counter() - started
        if path:
            record = {"kind": json.loads(key), "made": time.time(), "found": asdict(found)}  # type: ignore[call-overload]
            with suppress(OSError, PotstillError):  # a cache that cannot be written is none
                write_atomically(path, json.dumps(record, indent=1) + "\n")
        return found


def samples_of_set(recipe: Recipe, data: LabelledDataset) -> int:
    """Decoded samples of all classes."""
    whole = not recipe.build_method().uses_factor
    return data.spec.num_classes * (recipe.ipc if whole else recipe.way().samples(recipe.ipc, data.spec))


def begun_set(recipe: Recipe, data: LabelledDataset) -> TrainingSet:
    """The set of a method with steps before the first one."""
    method = recipe.build_method()
    problem = bare_problem(recipe, data, Runtime(), some_pool(recipe, data, method.needs_pool))
    return method.result(problem, method.init(problem))


def _budget_bytes(recipe: Recipe, data: LabelledDataset) -> int:
    """Of the numbers that all classes may store."""
    return 4 * data.spec.num_classes * recipe.ipc * math.prod(data.spec.shape)


def _sizes(method: Method[Any], problem: Problem, state: State) -> tuple[int, int]:
    """Bytes of a state and of its set."""
    state_bytes = sum(tensor.nbytes for tensor in state.to_tensors().values())
    return state_bytes, len(method.result(problem, state).to_bytes())


def time_steps(
    method: Method[Any], problem: Problem, passes: int, watch: Stopwatch | None = None, least: float = 0.0
) -> tuple[State, Pace]:
    """A few steps, or as many more as take the `least` seconds, and what passes take in all but the first of them.

    Not every step is like the others: a network in training is replaced by a new one, and any may be the first that
    asks for a graph, such as that of an operation of the augmentation; what compiling takes counts once.
    """
    watch = watch or Stopwatch()
    state, laps, usual = method.init(problem), list[float](), list[int]()
    while len(laps) < method.steps and (len(usual) < STEPS or sum(laps[i] for i in usual) < least):
        graphs = count_graphs()
        state, _metrics = method.step(problem, state)
        laps.append(watch.lap())
        if len(laps) > 1 and count_graphs() == graphs:
            usual.append(len(laps) - 1)
    if len(laps) == 1:
        return state, Pace(laps[0], 0.0)
    done = [_passes_in(n, method, problem) for n in range(1, len(laps) + 1)]
    if sorted(set(done)) != done:  # steps tell no passes, or take none after the first
        done = [(passes or method.steps) * n / method.steps for n in range(1, len(laps) + 1)]
    passed = [after - before for before, after in zip([0, *done], done, strict=False)]
    each = median(laps[i] / passed[i] for i in usual or range(1, len(laps)))
    once = sum(laps[i] - each * passed[i] for i in range(len(laps)) if i not in usual)
    return state, Pace(max(0.0, once), each)


def _passes_in(steps: int, method: Method[Any], problem: Problem) -> float:
    return type(method)(replace(method.config, steps=steps)).passes(problem)


def with_small_bank(method: Method[Any]) -> Method[Any]:
    """A bank that is full after a few steps: most steps of a run come after that."""
    bank = getattr(method.config, "bank", None)
    return type(method)(replace(method.config, bank=replace(bank, draws=1))) if bank else method


def some_pool(recipe: Recipe, data: LabelledDataset, needed: bool) -> Pool | None:
    """Two networks at most, to see what a change of networks costs, unless the method wants a later one."""
    if not needed:
        return None
    config, wanted = recipe.pool, max(2, 1 + getattr(recipe.method, "member", 0))
    return untrained(data.spec, network=config.network, members=min(wanted, config.networks), seed=config.seed)


def _maps(problem: Problem, runtime: Runtime) -> int:
    """Bytes of the maps that wait for the gradient of all samples of a step."""
    kept = min(problem.samples * len(problem.classes), KEEP_MAPS_OF // (1 if runtime.compile else EAGER_MAPS))
    wide = (1 if runtime.compile else EAGER_MAPS) * (2 if runtime.precision == "fp32" else 1)
    height, width = problem.spec.shape[1:]
    return kept * wide * MAPS * height * width // 32**2


def time_passes(network: str, data: LabelledDataset, runtime: Runtime) -> Timed:
    """The line through a step's seconds on few samples and on more."""
    runtime.start()
    forget_peak_memory()
    step, watch = _step(network, data, runtime), Stopwatch.of(runtime, at_work=True)
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
    once, watch = time.perf_counter() - started, Stopwatch.of(runtime, at_work=True)
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


def slowness() -> float:
    """Seconds of the clock for one of this thread's work, of a third of a second; 1 where nothing else runs."""
    work, clock = time.thread_time(), time.perf_counter()
    while time.perf_counter() - clock < 0.3 or time.thread_time() - work < 0.02:
        pass
    return max(1.0, (time.perf_counter() - clock) / (time.thread_time() - work))


def _ago(seconds: float) -> str:
    hours = seconds / 3600
    return (
        f"{seconds / 60:.0f} min ago"
        if hours < 2
        else f"{hours:.0f} h ago"
        if hours < 48
        else f"{hours / 24:.0f} days ago"
    )


def _time_method(recipe: Recipe, data: LabelledDataset, runtime: Runtime) -> Timed:
    """Steps of a method that does not tell its passes."""
    runtime.start()
    forget_peak_memory()
    method = recipe.build_method()
    problem = bare_problem(recipe, data, runtime, some_pool(recipe, data, method.needs_pool))
    _, pace = time_steps(method, problem, 0, Stopwatch.of(runtime, at_work=True))
    return Timed(0.0, pace.of(method.steps) / method.steps, peak_memory_mb() * 2**20)
