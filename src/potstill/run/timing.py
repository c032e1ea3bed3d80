"""What work takes on this machine: a few steps and epochs of the real thing, timed once for each kind and multiplied.

Sets are of one kind where one method with the same terms and draws makes them, of samples of one shape that are stored
in one way; networks where one protocol trains one architecture on about as many samples of one shape. Steps are timed
on untrained networks, which take as long as trained ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, TypeVar

import torch

from ..evaluation import Scheduled, TrainingSet, evaluate_once, evaluation_seeds, find_protocol
from ..learning.fit import fit
from ..learning.pool import Pool, untrained
from ..machine.runtime import Runtime
from ..methods import Method, Problem, State
from ..networks import build_network
from ..recipe import Recipe
from ..spec import LabelledDataset, Split
from .distil import bare_problem, distilling_runtime, passes_of
from .environment import forget_peak_memory, peak_memory_mb
from .pretrain import pool_runtime
from .progress import Reporter

#: Steps and epochs that are timed after the first, and samples that an epoch is timed on at most.
STEPS, EPOCHS, IMAGES = 4, 2, 512
#: Samples of a class that a choice without steps is timed on at most; its time grows with their number.
PER_CLASS = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Pace:
    """Seconds that are spent once, and those of each unit of work: a network pass, a step where these are unknown."""

    once: float
    each: float

    def of(self, amount: float) -> float:
        return self.once + self.each * amount


@dataclass(frozen=True)
class Sized:
    """A pace, and what its process and its folder held: memory at the peak, a state, a set."""

    pace: Pace
    memory: int
    state: int = 0
    stored: int = 0

    def grown_to(self, state: int, stored: int) -> Sized:
        """The same work on a state and a set of other sizes."""
        return replace(self, memory=max(0, self.memory + state - self.state), state=state, stored=stored)


@dataclass(frozen=True)
class Scoring:
    """Training one network and testing it: seconds for a sample in an epoch, and for a sample of the test."""

    once: float
    epoch: float
    test: float
    memory: int


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
    """What each kind of work takes; found when it is first asked for."""

    def __init__(self, reporter: Reporter):
        self._reporter, self._known = reporter, dict[Hashable, Any]()

    def _once(self, words: str, kind: Hashable, measure: Callable[[], T]) -> tuple[T, bool]:
        """What is known of a kind, and whether it is the first that is asked for."""
        key = words.partition(" ")[0], kind
        new = key not in self._known
        if new:
            self._reporter.say(f"timing {len(self._known) + 1}: {words}")
            forget_peak_memory()
            self._known[key] = measure()
        return self._known[key], new

    def set_of(self, recipe: Recipe, data: LabelledDataset) -> tuple[float, Sized]:
        """Seconds that a set takes, and its sizes.

        Raises:
            PotstillError: it cannot be made of these data.
        """
        method = recipe.build_method()
        runtime, passes = distilling_runtime(recipe, method, data), passes_of(recipe, method, data)
        words = f"sets by {recipe.method_name} on {data.spec.name}"
        kind = (_form(recipe, method), data.spec.shape, runtime, recipe.unplanned)
        problem = bare_problem(recipe, data, Runtime(), some_pool(recipe, data, method.needs_pool))
        if method.steps:
            sizes = _sizes(method, problem, method.init(problem))  # refused here, each on its own data
            timed, _ = self._once(words, kind, lambda: _time_distilling(recipe, method, data, runtime))
        else:
            method.check(problem)
            sizes = (_budget_bytes(recipe, data),) * 2
            timed, _ = self._once(words, kind, lambda: _time_choice(recipe, method, data, runtime))
        found = timed.grown_to(*sizes)
        return min(found.pace.of(passes or method.steps), recipe.budget.seconds), found

    def pool_of(self, recipe: Recipe, data: LabelledDataset, runs: int) -> float:
        """Seconds that so many training runs of its pool take."""
        if not runs:
            return 0.0
        schedule, runtime = recipe.pool.training(), pool_runtime(recipe, data)
        once = replace(schedule, epochs=1)
        words = f"pools of {recipe.pool.network} on {data.spec.name}"
        kind = (recipe.pool.network, once, data.spec.shape, runtime)
        pace, _ = self._once(words, kind, lambda: _time_pool(recipe, data, runtime))
        return pace.of(len(data.train) * schedule.epochs * runs)

    def scores_of(
        self, recipe: Recipe, samples: int, data: LabelledDataset, begun: Callable[[], TrainingSet] | None = None
    ) -> tuple[float, int]:
        """Seconds that all networks of an evaluation on so many samples take, and the memory of one.

        Args:
            begun: makes a set to train on, where the protocol reads more of it than samples.
        """
        config = recipe.evaluation
        protocol, part = find_protocol(config.protocol, config.epochs), _some(data.train, samples)
        train: TrainingSet = part
        kind: Hashable = (part_size(samples), protocol.lasting(1))
        if not isinstance(protocol, Scheduled):  # only a fixed schedule can be followed on other samples
            assert begun
            train = begun()
            protocol, kind = protocol.suited(train), (recipe.to_yaml(), samples)
        epochs = protocol.epochs
        runtime = recipe.runtime.resolve(passes=3 * samples * epochs * config.nets, side=data.spec.shape[1])
        words = f"networks {config.network} by protocol {config.protocol} on {data.spec.name}"
        kind = (kind, config.network, data.spec.shape, runtime)
        found, new = self._once(words, kind, lambda: _time_scoring(recipe, train, len(part), data, runtime))
        each = found.epoch * samples * epochs + found.test * len(data.test)
        sets = 2 if config.stored_bits else 1
        # What compiles once in a process serves all networks of a kind.
        return found.once * new + each * config.nets * sets, found.memory


def part_size(samples: int) -> int:
    """About how many: sets of one size class are trained on at one pace, smaller ones at a slower."""
    return min(samples, IMAGES - 1).bit_length() // 2


def samples_of_set(recipe: Recipe, data: LabelledDataset) -> int:
    """Decoded samples of all classes."""
    whole = not recipe.build_method().uses_factor
    return data.spec.num_classes * (recipe.ipc if whole else recipe.way().samples(recipe.ipc, data.spec))


def begun_set(recipe: Recipe, data: LabelledDataset) -> TrainingSet:
    """The set of a method with steps before the first one."""
    method = recipe.build_method()
    problem = bare_problem(recipe, data, Runtime(), some_pool(recipe, data, method.needs_pool))
    return method.result(problem, method.init(problem))


def _form(recipe: Recipe, method: Method[Any]) -> Hashable:
    """What decides how long a network pass of the method takes: not their number, nor how strong its terms are."""
    stored = (recipe.parameterisation, tuple(recipe.factor)) if method.uses_factor else ()
    config = {**asdict(method.config), "steps": min(method.steps, 1 + STEPS)}
    return recipe.method_name, _terms(config), recipe.pool.network, recipe.pool.pretrained, stored


def _terms(value: Any) -> Hashable:
    """Keys and values of a configuration, of a weight or a rate whether it is 0."""
    if isinstance(value, Mapping):
        return tuple((key, _terms(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_terms, value))
    return value != 0 if isinstance(value, float) else value


def _time_distilling(recipe: Recipe, method: Method[Any], data: LabelledDataset, runtime: Runtime) -> Sized:
    runtime.start()
    problem = bare_problem(recipe, data, runtime, some_pool(recipe, data, method.needs_pool))
    watch = Stopwatch.of(runtime, at_work=recipe.unplanned)
    state, pace = time_steps(with_small_bank(method), problem, passes_of(recipe, method, data), watch)
    return Sized(pace, peak_memory_mb() * 2**20, *_sizes(method, problem, state))


def _time_choice(recipe: Recipe, method: Method[Any], data: LabelledDataset, runtime: Runtime) -> Sized:
    runtime.start()
    part = replace(data, train=_of_each_class(data, max(PER_CLASS, recipe.ipc)))
    problem = bare_problem(recipe, part, runtime, some_pool(recipe, data, method.needs_pool))
    started = time.perf_counter()
    state = method.init(problem)
    seconds, passes = time.perf_counter() - started, method.passes(problem)
    pace = Pace(0.0, seconds / passes) if passes else Pace(seconds, 0.0)
    return Sized(pace, peak_memory_mb() * 2**20, *_sizes(method, problem, state))


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
    """A few steps, or as many more as take the `least` seconds, and what passes take: as usual after the first step.

    Not every step is like the others: the first compiles, a network in training is replaced by a new one.
    """
    watch = watch or Stopwatch()
    state, laps = method.init(problem), list[float]()
    while len(laps) < method.steps and (len(laps) <= STEPS or sum(laps[1:]) < least):
        state, _metrics = method.step(problem, state)
        laps.append(watch.lap())
    if len(laps) == 1:
        return state, Pace(laps[0], 0.0)
    done = [_passes_in(n, method, problem) for n in range(1, len(laps) + 1)]
    if sorted(set(done)) != done:  # steps tell no passes, or take none after the first
        done = [(passes or method.steps) * n / method.steps for n in range(1, len(laps) + 1)]
    each = median(laps[i] / (done[i] - done[i - 1]) for i in range(1, len(laps)))
    return state, Pace(max(0.0, laps[0] - each * done[0]), each)


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


def _time_pool(recipe: Recipe, data: LabelledDataset, runtime: Runtime) -> Pace:
    runtime.start()
    part, network = _some(data.train, IMAGES), build_network(recipe.pool.network, data.spec, 0)
    once = replace(recipe.pool.training(), epochs=1)
    first, again = (_seconds(fit, network, part, data.spec, once, runtime, seed=0) for _ in range(2))
    return Pace(max(0.0, first - again), again / len(part))


def _time_scoring(recipe: Recipe, train: TrainingSet, samples: int, data: LabelledDataset, runtime: Runtime) -> Scoring:
    runtime.start()
    config, test = recipe.evaluation, _some(data.test, IMAGES)
    (seed,) = evaluation_seeds(config.seed, config.network, 1)

    def score(epochs: int) -> float:
        keys: dict[str, Any] = {"network": config.network, "protocol": config.protocol, "epochs": epochs, "seed": seed}
        return _seconds(evaluate_once, train, data.spec, test, runtime=runtime, **keys)

    more = min(1 + EPOCHS, find_protocol(config.protocol, config.epochs).suited(train).epochs)
    first, least, again = score(more), score(1), score(more)
    epoch = max(0.0, again - least) / (more - 1) if more > 1 else least
    rest = max(0.0, least - epoch) / len(test)
    return Scoring(max(0.0, first - again), epoch / samples, rest, peak_memory_mb() * 2**20)


def _some(split: Split, count: int) -> Split:
    """An even choice of its samples, so many and no more than it takes to time an epoch."""
    count = max(1, min(count, IMAGES, len(split)))
    return split.subset(torch.arange(0, len(split), max(1, len(split) // count))[:count])


def _of_each_class(data: LabelledDataset, count: int) -> Split:
    """The first samples of each class."""
    classes = range(data.spec.num_classes)
    first = [(data.train.labels == c).nonzero().flatten()[:count] for c in classes]
    return data.train.subset(torch.cat(first))


def _seconds(work: Callable[..., Any], *given: Any, **keys: Any) -> float:
    started = time.perf_counter()
    work(*given, **keys)
    return time.perf_counter() - started
