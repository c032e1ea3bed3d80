"""What a recipe leaves open, settled before its run: by short trials what is stored (`auto`), by a plan the steps.

A trial is a cell of a study in `RUN/search`: a short distillation, scored on training images that neither it nor its
pool saw. The test split has no part in it. Trials are all of one length, the longest at which a few fit into the
minutes of the search, and come in a fixed order: their length and number depend on the machine, what one of that length
gives does not. Killed, the search goes on where it was.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data import holdout_split
from ..data.measure import split_fingerprint
from ..errors import Interrupted, UsageError
from ..evaluation import find_protocol
from ..files import default_cache, write_atomically
from ..recipe import Recipe
from ..recipe.sections import BudgetConfig, PoolConfig, SavingConfig
from ..seeding import generator
from ..sets.parameterisations import FEW, Tiles, likely
from ..spec import LabelledDataset
from .cells import attempt, distil_and_score
from .distil import check_recipe, passes_of, read_asked_recipe, settled
from .plan import plan, with_steps
from .pretrain import missing_runs
from .progress import Reporter
from .sizes import samples_of_set
from .store import RunStore
from .study import Cell, Study, claim, difference
from .timing import Timings

#: A share of the training split is held out, at most so many images; fewer than the least tell trials apart by chance.
HELD_SHARE, MOST_HELD, LEAST_HELD = 0.2, 2_000, 50
#: Images at most that trials and their pool learn from: in all, and of each class where classes are many.
PART, PART_OF_CLASS = 5_000, 100
#: Of a whole trial: steps, epochs and networks of its evaluation.
STEPS, EPOCHS, NETS = 150, 200, 1
#: Shares of those steps and epochs that trials have: the first at which so many fit, the last if a second one does.
SHARES, MANY = (1.0, 0.5, 0.25), 4
#: An image that a network learns from: a pass forward and one back, to the samples and to the weights.
LEARNT = 4
#: Of a budget, that which the training of the run's own pool may take before it gets smaller.
POOL_SHARE = 1 / 3
#: Steps of training after which networks are as good for few samples as older ones: 78 were too few, 234 were not.
GROWN = 200
#: Calibration weights tried beside the recipe's own, as shares of it.
CALIBRATION = (0.5, 0.25)
#: What steps are planned for of the time that a budget leaves where it cuts the run: an estimate may be short.
PLANNED = 0.9
#: What the trials gave and took so far, in the folder of the search.
LOG = "search/trials.json"
#: A recipe that a search chose, why, and the seconds that it took.
Found = tuple[Recipe, str, float]


def settle(
    recipe: Recipe,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    *,
    cache: Path | None = None,
    overwrite: bool = False,
) -> Recipe:
    """The recipe with nothing left open for a run in `store`: by the search and plan there, made or gone on with.

    Raises:
        UsageError: the folder holds a run, a search or a plan of another recipe.
        Interrupted: by a signal; the same call goes on.
    """
    recipe = recipe.on(data)
    if not recipe.open and not (overwrite and store.search.exists()):
        return recipe
    if not overwrite and not (known := settled(recipe, store)).open:
        return known
    check_recipe(recipe.by_default(data), data, cache)
    with store.locked():
        if overwrite:
            shutil.rmtree(store.search, ignore_errors=True)
            store.clear()
        known = settled(recipe, store)
        if not known.open:
            return known
        _claim(known, store)
        try:
            record = _settle(known, data, store, reporter, cache)
        except Interrupted as error:
            again = f"go on with: potstill distill --resume {store.root}"
            raise Interrupted(f"interrupted while settling what the recipe leaves open; {again}") from error
        store.write_json("search/chosen.json", {"asked": known.hash(), **record})
    return settled(recipe, store)


def _claim(recipe: Recipe, store: RunStore) -> None:
    if store.asked.exists() and (there := read_asked_recipe(store)).hash() != recipe.hash():
        asked = f"holds a {_how(there)} for a recipe with {difference(there, recipe)}"
        raise UsageError(f"{store.root}: {asked}; use another --out or --overwrite")
    if store.config.exists():
        how = _how(recipe)
        raise UsageError(f"{store.root}: holds a run that no {how} came before; use another --out or --overwrite")
    write_atomically(store.asked, recipe.to_yaml())


def _how(recipe: Recipe) -> str:
    """It is settled."""
    return "search" if recipe.unsearched else "plan"


def _settle(
    recipe: Recipe, data: LabelledDataset, store: RunStore, reporter: Reporter, cache: Path | None
) -> dict[str, Any]:
    """What was settled: the keys, the seconds of the budget that are gone, and in words what was found and planned."""
    chosen, told, spent = recipe, "", 0.0
    if recipe.unsearched:
        timings = Timings(reporter, alone=False)
        pool, training = _pool(recipe, data, timings, reporter, cache)
        chosen, told, spent = _search(recipe, data, store, reporter, cache, timings, training)
        chosen, spent = replace(chosen, pool=pool), spent + training
        reporter.say(f"auto: {told}")
    chosen, planned, spent = _planned(chosen, data, spent)
    if planned:
        reporter.say(f"plan: {planned}")
    return {"keys": _keys(chosen), "told": told, "plan": planned, "seconds": round(spent, 1)}


def _keys(chosen: Recipe) -> dict[str, Any]:
    """All that may be settled."""
    record = chosen.to_dict()
    budget = {"budget": {"planned": chosen.budget.planned}}
    return {key: record[key] for key in ("parameterisation", "factor", "method", "pool")} | budget


def _pool(
    recipe: Recipe, data: LabelledDataset, timings: Timings, reporter: Reporter, cache: Path | None
) -> tuple[PoolConfig, float]:
    """The pool that the budget of the recipe has room for, and the seconds that its training takes."""
    asked, default, folder = recipe.pool, recipe.by_default(data), (cache or default_cache()) / "pool"
    if recipe.budget.minutes is None or not default.build_method().needs_pool:
        return asked, 0.0

    def takes(pool: PoolConfig) -> float:
        with_pool = replace(default, pool=pool)
        return timings.pool_of(with_pool, data, missing_runs(with_pool, data, folder))

    pools, most = smaller_pools(asked, len(data.train), few=recipe.ipc < FEW), POOL_SHARE * 60 * recipe.budget.minutes
    pool = next((pool for pool in pools if takes(pool) <= most), pools[-1])
    if seconds := takes(pool):
        count = f"{pool.members} of {asked.members}" if pool.members < asked.members else f"{pool.members}"
        epochs, own = pool.training().epochs, asked.training().epochs
        networks = f"{count} networks" + (f" of {epochs} in place of {own} epochs" if epochs < own else "")
        reporter.say(f"auto: the pool of the run, {networks}, takes about {seconds / 60:.1f} min of the budget")
    return pool, seconds


def smaller_pools(pool: PoolConfig, images: int, *, few: bool) -> list[PoolConfig]:
    """The pool and smaller ones, in the order in which they are taken: fewer training runs, then shorter ones.

    For `few` samples runs on so many `images` get shorter first, as long as they do not end too young: networks of one
    epoch were as good for them as those of six, for a sixth of the work (docs/methods/dsdm_plus.md).
    """
    schedule, runs = pool.training(), range(pool.members, 0, -1)
    lengths = list(dict.fromkeys(max(1, schedule.epochs >> n) for n in range(schedule.epochs.bit_length())))
    grown = [e for e in lengths if e * math.ceil(images / schedule.batch) >= GROWN] if few else []
    good = grown or lengths[:1]
    sizes = [(runs[0], e) for e in good] + [(n, good[-1]) for n in runs[1:]] + [(1, e) for e in lengths if e < good[-1]]
    return [_sized(pool, *size) for size in sizes]


def _sized(pool: PoolConfig, members: int, epochs: int) -> PoolConfig:
    """With so many runs of so many epochs, its snapshots at the same shares of them."""
    own = pool.training().epochs
    if epochs == own:
        return replace(pool, members=members)
    snapshots = tuple(round(moment * epochs / own, 2) for moment in pool.snapshots)
    return replace(pool, members=members, epochs=epochs, snapshots=snapshots)


def _planned(recipe: Recipe, data: LabelledDataset, spent: float) -> tuple[Recipe, str, float]:
    """The recipe with the steps that fit into what is left of its budget, in words where it is a plan, what is gone.

    After a search alone they are at most its own, and fewer than fit: a budget that is not planned for cuts the run,
    and its clock runs on while steps are timed.
    """
    left = recipe.budget.after_search(spent)
    if left.minutes is None:
        return recipe, "", spent
    if left.plan:
        fitting, timed = plan(recipe, data, 60 * left.minutes)
        steps = fitting.method.steps
        words = f"{steps:,} steps for {left.minutes:.3g} min of distilling, from {timed} that were timed"
        return replace(fitting, budget=replace(recipe.budget, planned=steps)), words, spent
    started = time.perf_counter()
    most, _ = plan(recipe, data, PLANNED * 60 * left.minutes, at_work=False)
    spent += time.perf_counter() - started
    still = (recipe.budget.after_search(spent).minutes or 0.0) / left.minutes
    steps = max(1, min(recipe.method.steps, round(most.method.steps * still)))
    return with_steps(recipe, steps), "", spent


def _search(
    recipe: Recipe,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    cache: Path | None,
    timings: Timings,
    pool: float,
) -> Found:
    """What was chosen, why, and the seconds that it took; `pool` are those that are kept for the run's."""
    default, budget = recipe.by_default(data), recipe.budget.after_search(pool).search_seconds
    held = min(MOST_HELD, int(HELD_SHARE * len(data.train)))
    if data.spec.num_classes < 2:
        return _default(recipe, data, "there is one class, so nothing tells trials apart")
    if held < LEAST_HELD:
        few = f"{len(data.train)} training images are too few to hold some out for a search"
        return _default(recipe, data, few)
    part = apart(data, held, samples_of(default, data))
    if samples_of(default, part) > part.smallest_class:
        few = f"a class of {data.smallest_class} training images is too small to hold some out for a search"
        return _default(recipe, data, few)
    trials, variants = Trials(part, store, reporter, cache, budget), ways(default, part)
    takes = trials.begin(variants, timings)
    if takes > budget:
        long = f"two short trials take about {takes / 60:.1f} min, more than the {budget / 60:.1f} min of the search"
        return _default(recipe, data, f"{long}; for one use --overwrite and a larger --budget-minutes", trials.seconds)
    best = trials.best(variants)
    best = best and trials.best(weights(*best))
    if best is None:
        return _default(recipe, data, "no trial came to an end, see the lines above", trials.seconds)
    return best[1], f"{_words(best[1])}: {trials.told()}", trials.seconds


def _default(recipe: Recipe, data: LabelledDataset, why: str, spent: float = 0.0) -> Found:
    default = recipe.by_default(data)
    return default, f"{_words(default)} without a search: {why}", spent


def _words(recipe: Recipe) -> str:
    way = recipe.way()
    stored = f"tiles {way.describe()}" if isinstance(way, Tiles) else recipe.parameterisation
    weight = getattr(recipe.method, "calibration_weight", 0)
    return f"{stored}, calibration weight {weight:g}" if weight else stored


def apart(data: LabelledDataset, held: int, least: int = 0) -> LabelledDataset:
    """About `held` training images in the place of the test split, and some of the others to learn from.

    Args:
        least: of each class, where it has them: as many as a trial has samples to start.
    """
    rest, scored = holdout_split(data.train, held / len(data.train), 0)
    most = max(PART_OF_CLASS, PART // data.spec.num_classes, least)
    chosen = []
    for cls in range(data.spec.num_classes):
        members = (rest.labels == cls).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator(0, "search", cls))[:most]])
    part = rest.subset(torch.cat(chosen).sort().values)
    address = split_fingerprint(part)
    spec = replace(
        data.spec,
        fingerprint=f"{data.spec.fingerprint}-search-{address[:12]}",
        train_fingerprint=address,
        test_fingerprint=split_fingerprint(scored),
    )
    return LabelledDataset(spec, part, scored)


def ways(recipe: Recipe, data: LabelledDataset) -> dict[str, Recipe]:
    """The recipe under other parameterisations, by the names of their trials: its own, the likeliest, then tiles.

    In that order, for a slow machine comes no further than the first, and of equal ones the first is chosen.
    """
    tiles = replace(recipe, parameterisation="tiles")
    tried = [recipe, *(replace(recipe, parameterisation=way) for way in likely(recipe.ipc, data.spec)), tiles]
    tried += [replace(tiles, factor=(n, n)) for n in (3, 1, 2, 4)]
    found: dict[str, Recipe] = {}
    for variant in tried:
        if variant is recipe or _can_be(variant, data):
            found.setdefault(_name(variant), variant)
    return found


def _can_be(recipe: Recipe, data: LabelledDataset) -> bool:
    """Whether the data can be stored so: samples start from images of their own, and one alone has no spread."""
    try:
        recipe.way().check(data.spec)
    except UsageError:
        return False
    return 1 < samples_of(recipe, data) <= data.smallest_class


def _name(recipe: Recipe) -> str:
    """tiles3x3, half_chroma10, dct100."""
    way = recipe.way()
    if isinstance(way, Tiles):
        return "tiles{}x{}".format(*way.factor)
    return recipe.parameterisation.partition(",")[0].replace(":luma=", "")


def samples_of(recipe: Recipe, data: LabelledDataset) -> int:
    """Of one class."""
    return recipe.way().samples(recipe.ipc, data.spec)


def weights(name: str, recipe: Recipe) -> dict[str, Recipe]:
    """The recipe, and under other calibration weights where its method has one that counts."""
    own = getattr(recipe.method, "calibration_weight", 0)
    tried = {f"{name}-calibration{share * own:g}": share * own for share in CALIBRATION if own}
    return {name: recipe} | {
        trial: replace(recipe, method=replace(recipe.method, calibration_weight=weight))
        for trial, weight in tried.items()
    }


def _short(recipe: Recipe, share: float) -> Recipe:
    """A trial of the recipe, a share of a whole one."""
    scoring, steps = recipe.evaluation, math.ceil(share * min(STEPS, recipe.method.steps))
    epochs = min(EPOCHS, find_protocol(scoring.protocol, scoring.epochs).epochs)
    return replace(
        with_steps(replace(recipe, pool=replace(recipe.pool, members=1)), steps),
        evaluation=replace(scoring, nets=min(NETS, scoring.nets), epochs=math.ceil(share * epochs), stored_bits=None),
        saving=SavingConfig(minutes=recipe.saving.minutes),
        budget=BudgetConfig(),
    )


class Trials:
    """Short runs, one after another, as long as their minutes last. What they gave and took is kept in a file."""

    def __init__(
        self, data: LabelledDataset, store: RunStore, reporter: Reporter, cache: Path | None, budget: float
    ) -> None:
        self.data, self.store, self.reporter, self.cache, self.budget = data, store, reporter, cache, budget
        log = store.read_json(LOG)
        #: By name; None of a trial that failed.
        self.accuracy: dict[str, float | None] = log.get("accuracy", {})
        self.seconds = float(log.get("seconds", 0.0))
        #: Of a whole trial, 0 until it is known; what a pass through a network takes in them.
        self._share, self._pace = float(log.get("share", 0.0)), float(log.get("seconds_per_pass", 0.0))

    def begin(self, variants: Mapping[str, Recipe], timings: Timings) -> float:
        """Settle how long trials are, and tell the seconds of the least search; 0 where one was begun before.

        That is two of the shortest trials, as one tells nothing, and their pool.
        """
        if self._share:
            return 0.0
        started = time.perf_counter()
        first = _short(next(iter(variants.values())), 1.0)
        seconds, _ = timings.scores_of(first, self.data)
        self._pace = seconds / max(1, self._learnt(first))
        missing = missing_runs(first, self.data, (self.cache or default_cache()) / "pool")
        pool = timings.pool_of(first, self.data, missing) if first.build_method().needs_pool else 0.0
        self._spent(started)

        def take(share: float, trials: int) -> float:
            some = list(variants.values())[:trials]
            return self.seconds + pool + sum(self._takes(_short(variant, share)) for variant in some)

        least = take(SHARES[-1], 2)
        if least <= self.budget:
            self._share = next((share for share in SHARES if take(share, MANY) <= self.budget), SHARES[-1])
            self._keep()
        return least

    def best(self, variants: Mapping[str, Recipe]) -> tuple[str, Recipe] | None:
        """The first whose trial came within a standard error of the highest score; None where none scored."""
        left_out = []
        for name, variant in variants.items():
            short = _short(variant, self._share)
            if name in self.accuracy:
                continue
            if self.accuracy and self.seconds + self._takes(short) > self.budget:
                left_out.append(name)
                continue
            self._run(Cell(name, name, short))
        if left_out:
            self.reporter.say(f"left out of the {self.budget / 60:.1f} min of the search: {', '.join(left_out)}")
        came = {name: accuracy for name in variants if (accuracy := self.accuracy.get(name)) is not None}
        if not came:
            return None
        least = max(came.values()) - self._error(max(came.values()))
        name = next(trial for trial, accuracy in came.items() if accuracy >= least)
        return name, variants[name]

    def told(self) -> str:
        """What the trials gave, and what of it is chance."""
        came = {name: accuracy for name, accuracy in self.accuracy.items() if accuracy is not None}
        gave = ", ".join(f"{name} {100 * accuracy:.1f}" for name, accuracy in came.items())
        tried = f"1 trial, {gave} %" if len(came) == 1 else f"{len(came)} trials, {gave} %"
        length = f"{self._share:.0%} of {STEPS} steps and {EPOCHS} epochs"
        points = 100 * self._error(max(came.values()))
        held = f"{len(self.data.test):,} held-out training images"
        return f"the likeliest within {points:.1f} points of the best of {tried} on {held}, {length}"

    def _error(self, accuracy: float) -> float:
        """Of the difference of two such scores on the images held out."""
        return math.sqrt(2 * accuracy * (1 - accuracy) / len(self.data.test))

    def _run(self, cell: Cell) -> None:
        started, store, held = time.perf_counter(), RunStore(self.store.search / cell.name), len(self.data.test)
        self.reporter.say(f"--- trial {cell.name}")
        cell = replace(cell, recipe=cell.recipe.on(self.data))
        claim(Study((cell,), held), self.store.search)
        given = cell, held, self.data, store, self.reporter, self.cache
        try:
            scores, _ = attempt(self.reporter, distil_and_score, *given)
            self.accuracy[cell.name] = scores.mean if scores else None
            if scores:  # an estimate may be wrong either way, but the first trial took its pool besides
                taken = (time.perf_counter() - started) / self._passes(cell.recipe)
                self._pace = taken if len(self.accuracy) > 1 else min(self._pace, taken)
        finally:
            self._spent(started)

    def _takes(self, recipe: Recipe) -> float:
        """Seconds of a trial whose pool is there."""
        return self._pace * self._passes(recipe)

    def _passes(self, recipe: Recipe) -> int:
        return passes_of(recipe, recipe.build_method(), self.data) + self._learnt(recipe)

    def _learnt(self, recipe: Recipe) -> int:
        """Passes of its evaluation."""
        epochs = recipe.evaluation.epochs or 1
        return LEARNT * samples_of_set(recipe, self.data) * epochs * recipe.evaluation.nets

    def _spent(self, started: float) -> None:
        self.seconds += time.perf_counter() - started
        self._keep()

    def _keep(self) -> None:
        spent = {"seconds": self.seconds, "seconds_per_pass": self._pace, "share": self._share}
        self.store.write_json(LOG, {**spent, "accuracy": self.accuracy})
