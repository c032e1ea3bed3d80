"""What a study would take on this machine: a few steps and epochs of the real thing, timed and multiplied.

Nothing is written. A pool counts once, for the first cell that needs it, and not at all where the cache holds it. Steps
are timed on untrained networks, which take as long as trained ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..errors import Interrupted, PotstillError, reason
from ..evaluation import Scheduled, TrainingSet, evaluate_once, evaluation_seeds, find_protocol, samples_of
from ..files import default_cache
from ..learning.fit import fit
from ..learning.pool import Pool, untrained
from ..machine.runtime import Runtime
from ..methods import Method, Problem, State
from ..networks import build_network
from ..recipe import Recipe
from ..spec import LabelledDataset, Split
from .ahead import Part
from .distil import bare_problem, distilling_runtime, passes_of
from .environment import forget_peak_memory, peak_memory_mb
from .pretrain import missing_runs
from .progress import Reporter
from .store import RunStore, score_name
from .study import Cell, Study, load_cells

#: Steps and epochs that are timed after the first, and images that an epoch is timed on at most.
STEPS, EPOCHS, IMAGES = 4, 2, 512
#: Images of a class that a choice without steps is timed on at most; its time grows with their number.
PER_CLASS = 64


@dataclass(frozen=True)
class Estimate:
    """What one cell would still take: seconds of its three stages, and what its process and its folder would hold.

    Attributes:
        members: training runs that its pool lacks; nets: networks of each evaluation, of which there are `sets`.
        run: the folder of its run, where that is not the cell's name.
    """

    cell: str
    stands: str
    pool_seconds: float = 0.0
    distill_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    memory_mb: int = 0
    disk_mb: float = 0.0
    members: int = 1
    nets: int = 1
    sets: int = 1
    run: str = ""

    @property
    def seconds(self) -> float:
        return self.pool_seconds + self.distill_seconds + self.evaluate_seconds

    @property
    def parts(self) -> list[Part]:
        """What it consists of, for whoever follows its progress."""
        run = self.run or self.cell
        return [
            Part(run, "pools", self.pool_seconds, pieces=self.members),
            Part(run, "sets", self.distill_seconds),
            Part(run, "networks", self.evaluate_seconds, pieces=self.nets * self.sets, passes=self.sets),
        ]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


def estimate(
    study: Study,
    load: Callable[[Recipe], LabelledDataset],
    *,
    out: Path | None,
    reporter: Reporter,
    cache: Path | None = None,
) -> list[Estimate]:
    """An estimate for each cell, in the order they would run.

    Args:
        out: where earlier calls left finished runs; None for nowhere.
    Raises:
        PotstillError: the only cell cannot be run; of several, such a one stands as `fails: ...`.
    """
    data, pools = load_cells(study, load), set[Any]()
    known: dict[str, Estimate] = {}
    found = []
    for cell in study.cells:
        stands = _stands(cell, RunStore(out / cell.name) if out else None)
        if stands == "finished":
            found.append(Estimate(cell.name, stands))
            continue
        alike = replace(cell.recipe, seed=0).to_yaml()  # another seed takes as long
        if alike not in known:
            reporter.say(f"timing {cell.name}")
            known[alike] = _timed_or_failed(cell, data[cell.name], alone=len(study.cells) == 1)
        if known[alike].stands.startswith("fails"):
            found.append(replace(known[alike], cell=cell.name))
            continue
        whole = replace(known[alike], cell=cell.name, stands=stands)
        if stands == "to be scored":
            found.append(replace(whole, distill_seconds=0.0))
            continue
        pool = (data[cell.name].spec.fingerprint, cell.recipe.pool)
        if cell.recipe.build_method().needs_pool and pool not in pools:
            pools.add(pool)
            folder = cache or default_cache()
            whole = replace(
                whole,
                pool_seconds=_pool_seconds(cell.recipe, data[cell.name], folder),
                members=max(1, missing_runs(cell.recipe, data[cell.name], folder / "pool")),
            )
        found.append(whole)
    return found


def _stands(cell: Cell, store: RunStore | None) -> str:
    """What earlier calls left to do; a run that was begun is counted as if it were new."""
    if store is None or not store.config.exists():
        return "new"
    if not store.distilled.exists():
        return "to be finished"
    config = cell.recipe.evaluation
    epochs = find_protocol(config.protocol, config.epochs).epochs
    seeds = evaluation_seeds(config.seed, config.network, config.nets)
    names = [score_name(config.network, config.protocol, epochs, seed) for seed in seeds]
    names = names if epochs else [name.replace("-0-", "-*-") for name in names]  # as many as the set brings
    places = [store.scores, *([store.in_few_bits(config.stored_bits).scores] if config.stored_bits else [])]
    scored = all(any(place.glob(name)) for name in names for place in places)
    return "finished" if scored else "to be scored"


def _timed_or_failed(cell: Cell, data: LabelledDataset, *, alone: bool) -> Estimate:
    """One cell that cannot be run is not the end of the others' estimates."""
    try:
        return timed(cell, data)
    except Interrupted:
        raise
    except PotstillError as error:
        if alone:
            raise
        return Estimate(cell.name, f"fails: {reason(error)}")


def timed(cell: Cell, data: LabelledDataset) -> Estimate:
    """A cell's distillation and scores; where its recipe is left open, by default, and with the search before it."""
    recipe, method = cell.recipe.by_default(data), cell.recipe.build_method()
    searched = cell.recipe.open and method.steps and method.uses_factor
    runtime = distilling_runtime(recipe, method, data)
    runtime.start()
    forget_peak_memory()
    if method.steps:
        problem = bare_problem(recipe, data, runtime, _pool(recipe, data, method.needs_pool))
        state, seconds = _time_steps(method, problem, passes_of(recipe, method, data))
        seconds = min(seconds, recipe.budget.seconds)
    else:
        part = _part(data, PER_CLASS)
        problem = bare_problem(recipe, replace(data, train=part), runtime, _pool(recipe, data, method.needs_pool))
        started = time.perf_counter()
        state = method.init(problem)
        seconds = time.perf_counter() - started
        if passes := method.passes(problem):
            seconds *= passes_of(recipe, method, data) / passes
    synthetic = method.result(problem, state)
    size = len(synthetic.to_bytes())
    state_size = sum(tensor.nbytes for tensor in state.to_tensors().values())
    scoring = evaluation_seconds(recipe, synthetic, data)
    return Estimate(
        cell.name,
        "new",
        distill_seconds=seconds + (recipe.budget.search_seconds if searched else 0.0),
        evaluate_seconds=scoring,
        memory_mb=peak_memory_mb(),
        disk_mb=(state_size + (2 + len(recipe.saving.keep)) * size) / 2**20,
        nets=recipe.evaluation.nets,
        sets=2 if recipe.evaluation.stored_bits else 1,
    )


def _time_steps(method: Method[Any], problem: Problem, passes: int) -> tuple[State, float]:
    """All steps, from a few: those after the first, which compiles, take as long as the samples that pass a network.

    Not every step is like the first ones: a bank fills, a network in training is replaced by a new one.
    """
    started = time.perf_counter()
    state = method.init(problem)
    laps = []
    for _ in range(min(1 + STEPS, method.steps)):
        state, _metrics = method.step(problem, state)
        laps.append(time.perf_counter() - started)
        started = time.perf_counter()
    first, *later = laps
    if not later:
        return state, first
    in_one, in_all = (_passes_in(n, method, problem) for n in (1, len(laps)))
    times = (passes - in_one) / (in_all - in_one) if in_all > in_one else (method.steps - 1) / len(later)
    return state, first + median(later) * len(later) * times


def _passes_in(steps: int, method: Method[Any], problem: Problem) -> int:
    return type(method)(replace(method.config, steps=steps)).passes(problem)


def _pool(recipe: Recipe, data: LabelledDataset, needed: bool) -> Pool | None:
    """Two networks at most: one to begin with, and another to see what a change of networks costs."""
    if not needed:
        return None
    config = recipe.pool
    return untrained(data.spec, network=config.network, members=min(2, config.networks), seed=config.seed)


def _pool_seconds(recipe: Recipe, data: LabelledDataset, cache: Path) -> float:
    config, schedule, missing = recipe.pool, recipe.pool.training(), missing_runs(recipe, data, cache / "pool")
    if not missing:
        return 0.0
    passes = 3 * len(data.train) * schedule.epochs * config.members
    runtime = recipe.runtime.resolve(passes=passes, side=data.spec.shape[1])
    runtime.start()
    part = _some(data.train)
    network = build_network(config.network, data.spec, 0)
    once = replace(schedule, epochs=1)
    first, again = (_seconds(fit, network, part, data.spec, once, runtime, seed=0) for _ in range(2))
    share = len(data.train) / len(part)
    return max(0.0, first - again) + again * share * schedule.epochs * missing


def evaluation_seconds(recipe: Recipe, train: TrainingSet, data: LabelledDataset) -> float:
    """What scoring a set would take, or the whole split."""
    config = recipe.evaluation
    protocol = find_protocol(config.protocol, config.epochs).suited(train)
    epochs, test = protocol.epochs, _some(data.test)
    runtime: Runtime = recipe.runtime.resolve(passes=3 * len(train) * epochs * config.nets, side=data.spec.shape[1])
    runtime.start()
    # Only a fixed schedule can be followed on a part of the set.
    part = _some(samples_of(train)) if isinstance(protocol, Scheduled) else train
    (seed,) = evaluation_seeds(config.seed, config.network, 1)

    def score(epochs: int) -> float:
        keys: dict[str, Any] = {"network": config.network, "protocol": config.protocol, "epochs": epochs, "seed": seed}
        return _seconds(evaluate_once, part, data.spec, test, runtime=runtime, **keys)

    first, least, more = score(1 + EPOCHS), score(1), score(1 + EPOCHS)
    epoch = max(0.0, more - least) / EPOCHS  # without the test, which for a small set takes longer
    each = least * len(data.test) / len(test) + epoch * (epochs - 1) * len(train) / len(part)
    sets = 2 if config.stored_bits else 1
    return max(0.0, first - more) + each * config.nets * sets


def _some(split: Split) -> Split:
    """An even choice of its samples: enough to time an epoch."""
    return split.subset(torch.arange(0, len(split), max(1, len(split) // IMAGES))[:IMAGES])


def _part(data: LabelledDataset, per_class: int) -> Split:
    """The first `per_class` samples of each class."""
    classes = range(data.spec.num_classes)
    first = [(data.train.labels == c).nonzero().flatten()[:per_class] for c in classes]
    return data.train.subset(torch.cat(first))


def _seconds(work: Callable[..., Any], *given: Any, **keys: Any) -> float:
    started = time.perf_counter()
    work(*given, **keys)
    return time.perf_counter() - started
