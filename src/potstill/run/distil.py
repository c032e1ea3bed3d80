"""The stage that makes a set. Here configuration ends: the core gets objects and plain arguments.

Like every stage it is idempotent: what is done already, on disk, is not done again.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DataError, Interrupted, RunError, UsageError
from ..evaluation import find_protocol
from ..files import default_cache
from ..learning.pool import Pool, snapshot_epochs
from ..machine.runtime import Runtime
from ..machine.work import core_seconds
from ..methods import FeatureStore, Method, Metrics, Problem, State
from ..recipe import Recipe, difference, parse_recipe, read_recipe, resolve
from ..sets.export.pictures import save_preview
from ..sets.parameterisations import Parameterisation
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .environment import environment, forget_peak_memory, peak_memory_mb
from .pretrain import check_pool_cache, pretrain_pool
from .progress import Reporter
from .signals import giving_up, stop_requests
from .store import MetricsLog, RunStore


def distill_run(
    recipe: Recipe,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    *,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    classes: tuple[int, ...] = (),
) -> SyntheticSet:
    """Make the recipe's synthetic set in `store`, going on from a snapshot where `resume` allows it.

    Args:
        classes: a shard of them; all by default.
    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` was given, or a run of another recipe
            or on other training data.
        RunError: a loss that is not finite; the last good snapshot stays.
        Interrupted: SIGINT or SIGTERM; a snapshot was written.
    """
    if recipe.unplanned:
        raise UsageError("budget.plan=true: potstill distill and compare plan, nothing else does; give method.steps")
    recipe, method = recipe.on(data), recipe.build_method()
    if overwrite or not store.distilled.exists():
        check_recipe(recipe, data, cache)
    with store.locked():
        _claim(store, recipe, resume, overwrite)
        with store.noting_failure():
            if store.distilled.exists():
                synthetic = SyntheticSet.load(store.distilled)
                if not has_budget_left(synthetic, recipe, store):
                    reporter.say(f"{store.root}: already finished")
                    return synthetic
                store.reopen()
            problem = _problem(recipe, method, data, reporter, cache, classes)
            about = {
                "recipe_hash": recipe.hash(),
                "method_about": method.about(),
                "runtimes": _runtimes(store, problem),
            }
            store.write_json("env.json", {**environment(problem.runtime), **about})
            reporter.say(f"{recipe.method_name}: {problem.runtime.describe()}; recipe {recipe.hash()}")
            return _distill(recipe, method, problem, store, reporter)


def _runtimes(store: RunStore, problem: Problem) -> list[str]:
    """What the run was computed on, resumed parts included: other choices change the order of summation."""
    before = store.read_json("env.json").get("runtimes", []) if store.snapshot.exists() else []
    return list(dict.fromkeys([*before, problem.runtime.describe()]))


def check_recipe(recipe: Recipe, data: LabelledDataset, cache: Path | None = None) -> None:
    """Refuse what cannot work while nothing is claimed and nothing trained.

    Raises:
        UsageError, DataError: a device or precision that is not there, a class too small for the IPC, a protocol that
            the sets of the method are not made for, what the method refuses.
        RunError: a cache that cannot be written.
    """
    method = recipe.build_method()
    problem = bare_problem(recipe, data, distilling_runtime(recipe, method, data), _untrained_pool(recipe, method))
    method.check(problem)
    if method.steps:
        begun = method.result(problem, method.init(problem))
        find_protocol(recipe.evaluation.protocol, recipe.evaluation.epochs).suited(begun)
    if method.needs_pool:
        check_pool_cache(recipe, data, cache=cache)


def check_kept_steps(*recipes: Recipe) -> None:
    """Refuse a step to keep the set of that no run comes to: of a comparison's, the shorter ones end before.

    Raises:
        UsageError: it lies beyond the steps of all, once they are known; a method without any has none to keep.
    """
    if any(recipe.unplanned for recipe in recipes):
        return
    steps = max((recipe.build_method().steps for recipe in recipes), default=0)
    beyond = [step for recipe in recipes for step in recipe.saving.keep if step > steps]
    if steps and beyond:
        raise UsageError(f"saving.keep={beyond[0]}: need steps up to {steps}, the last; keep others or take more steps")


def _problem(
    recipe: Recipe,
    method: Method[Any],
    data: LabelledDataset,
    reporter: Reporter,
    cache: Path | None,
    classes: tuple[int, ...],
) -> Problem:
    """All that the method may know, its pool and the process's runtime made ready."""
    runtime = distilling_runtime(recipe, method, data)
    pool = pretrain_pool(recipe, data, reporter, cache=cache) if method.needs_pool else None
    runtime.start()
    problem = replace(bare_problem(recipe, data, runtime, pool), classes=classes or tuple(range(data.spec.num_classes)))
    if not recipe.saving.features:
        return problem
    folder = (cache or default_cache()) / "features"
    return replace(problem, features=FeatureStore(folder, runtime.device, on_batch=reporter.counter("features")))


def distilling_runtime(recipe: Recipe, method: Method[Any], data: LabelledDataset) -> Runtime:
    """What the recipe's choices come to for the distillation on this machine."""
    return recipe.runtime.resolve(passes=passes_of(recipe, method, data), side=data.spec.shape[1])


def passes_of(recipe: Recipe, method: Method[Any], data: LabelledDataset) -> int:
    """About how many samples pass a network in the whole distillation."""
    return method.passes(bare_problem(recipe, data, Runtime(), _untrained_pool(recipe, method), way=recipe.way()))


def _untrained_pool(recipe: Recipe, method: Method[Any]) -> Pool | None:
    """A pool of the right size without any weights, for what is asked before there is one."""
    if not method.needs_pool:
        return None
    pool, networks = recipe.pool, recipe.pool.networks
    moments = tuple(snapshot_epochs(pool.training(), pool.snapshots)) if pool.pretrained else ()
    return Pool(pool.network, ({},) * networks, ("",) * networks, moments=moments)


def bare_problem(
    recipe: Recipe, data: LabelledDataset, runtime: Runtime, pool: Pool | None, *, way: Parameterisation | None = None
) -> Problem:
    """What the method may know, without a place for features; `way`: an unfitted one, where only sizes are asked."""
    return Problem(
        spec=data.spec,
        train=data.train,
        ipc=recipe.ipc,
        parameterisation=way or recipe.way().for_data(data.train, data.spec),
        seed=recipe.seed,
        runtime=runtime,
        pool=pool,
        network=recipe.pool.network,
        init=recipe.init,
    )


def _distill(
    recipe: Recipe, method: Method[Any], problem: Problem, store: RunStore, reporter: Reporter
) -> SyntheticSet:
    forget_peak_memory()
    clock = Clock(problem.runtime)
    state = _first_state(method, problem, store)
    # A killed process may have written the snapshot and not yet the times.
    spent = {k: max(store.read_number("times.json", f"distill_{k}"), store.logged(state.step, k)) for k in Clock.COUNTS}
    clock.add(**spent)
    if state.step == 0:  # a run that goes on made or found its features before, and its time holds theirs
        clock.shared = problem.features
    with (
        closing(Recorder(recipe, method, problem, store, clock, state.step)) as recorder,
        reporter.stage("distill", method.steps, state.step) as stage,
        stop_requests(reporter.say) as stopping,
    ):
        with giving_up():
            while state.step < method.steps and clock.seconds < recipe.budget.seconds and not stopping():
                state, metrics = method.step(problem, state)
                recorder.note(state, metrics)
                stage.advance(_terms(metrics))
        recorder.save(state)
        if stopping() and state.step < method.steps:
            raise Interrupted(
                f"interrupted after step {state.step}; go on with: potstill distill --resume {store.root}"
            )
    return _finish(recipe, method, problem, state, store, reporter)


class Clock:
    """What distilling took over all resumes, of the clock and of work; steps that were lost are no part of it."""

    COUNTS = ("seconds", "core_seconds")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._started, self._worked = time.perf_counter(), core_seconds(runtime.device)
        #: Whose features count with the time that making them took, also where they were found ready.
        self.shared: FeatureStore | None = None

    def add(self, seconds: float, core_seconds: float) -> None:
        """What earlier processes took; those of older versions counted no work, which is taken to be all threads'."""
        self._started -= seconds
        self._worked -= core_seconds or seconds * (self._runtime.threads if self._runtime.device == "cpu" else 1)

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self._started + (self.shared.reused_seconds if self.shared else 0), 3)

    @property
    def core_seconds(self) -> float:
        shared = self.shared.reused_core_seconds if self.shared else 0
        return round(core_seconds(self._runtime.device) - self._worked + shared, 3)

    def to_json(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.COUNTS}


class Recorder:
    """What a run leaves behind on its way: a line of metrics per step, kept sets, snapshots with their times."""

    def __init__(
        self, recipe: Recipe, method: Method[Any], problem: Problem, store: RunStore, clock: Clock, steps_done: int
    ):
        self.recipe, self.method, self.problem, self.store, self.clock = recipe, method, problem, store, clock
        self._log = MetricsLog(store.metrics, steps_done)
        self._peak_before = int(store.read_number("times.json", "peak_memory_mb"))
        self._saved_at = time.perf_counter()

    def close(self) -> None:
        self._log.close()

    def note(self, state: State, metrics: Metrics) -> None:
        """After each step.

        Raises:
            RunError: a loss or images that are not finite.
        """
        _check_finite(metrics, state, self.store)
        self._log.append({"step": state.step, **self.clock.to_json(), **metrics.to_json()})
        if state.step in self.recipe.saving.keep:
            self.store.write_set(self.store.kept(state.step), self._result(state))
        if self._is_due(state.step):
            self.save(state)

    def _result(self, state: State) -> SyntheticSet:
        return _result(self.recipe, self.method, self.problem, state, self.store)

    def _is_due(self, step: int) -> bool:
        saving = self.recipe.saving
        by_steps = saving.every is not None and step % saving.every == 0
        return step < self.method.steps and (by_steps or time.perf_counter() - self._saved_at >= 60 * saving.minutes)

    def save(self, state: State) -> None:
        """A snapshot, never ahead of the metrics, and then the times."""
        self._log.flush()
        self.store.write_snapshot(state.to_tensors())
        peak = max(peak_memory_mb(), self._peak_before)
        self.store.write_json("times.json", _times(self.problem, self.clock, peak))
        self._saved_at = time.perf_counter()


def _finish(
    recipe: Recipe, method: Method[Any], problem: Problem, state: State, store: RunStore, reporter: Reporter
) -> SyntheticSet:
    """The set of the last step, which is the last planned one or that where a budget ended."""
    synthetic = _result(recipe, method, problem, state, store)
    if state.step < method.steps:
        synthetic = _cut_short(synthetic, recipe, method, reporter)
    store.write_set(store.distilled, synthetic)
    save_preview(store.preview, synthetic, SyntheticSet.load(store.initial) if method.steps else None)
    return synthetic


def _first_state(method: Method[Any], problem: Problem, store: RunStore) -> State:
    snapshot = store.read_snapshot()
    if snapshot is not None:
        try:
            return method.State.from_tensors(snapshot, problem.runtime.device)
        except KeyError as error:
            raise DataError(f"{store.snapshot}: not a snapshot of this method ({error} is missing)") from error
    state = method.init(problem)
    store.write_set(store.initial, method.result(problem, state))
    return state


def _result(recipe: Recipe, method: Method[Any], problem: Problem, state: State, store: RunStore) -> SyntheticSet:
    synthetic = method.result(problem, state)
    chosen = store.read_json("search/chosen.json")
    told = {"search": chosen.get("told"), "plan": chosen.get("plan")}
    facts = {"method": recipe.method_name, "fidelity": recipe.fidelity, "recipe_hash": recipe.hash()}
    facts |= {key: str(text) for key, text in told.items() if text}
    return replace(synthetic, provenance={**synthetic.provenance, **facts})


def _cut_short(synthetic: SyntheticSet, recipe: Recipe, method: Method[Any], reporter: Reporter) -> SyntheticSet:
    """The set as the budget left it; its provenance says so."""
    minutes = f"{recipe.budget.minutes:g}"
    reporter.say(f"{recipe.method_name}: {minutes} min are used up after {synthetic.provenance['steps']} steps")
    facts = {"steps_planned": str(method.steps), "budget_minutes": minutes}
    return replace(synthetic, provenance={**synthetic.provenance, **facts})


def is_finished(recipe: Recipe, store: RunStore) -> bool:
    """Whether the set is there, and was not cut short by a budget where more is given now."""
    return store.distilled.exists() and not has_budget_left(store.require_set(), settled(recipe, store), store)


def has_budget_left(synthetic: SyntheticSet, recipe: Recipe, store: RunStore) -> bool:
    """Whether a set that a budget cut short may go on: a larger one is given now, or none."""
    spent = store.read_number("times.json", "distill_seconds")
    return "budget_minutes" in synthetic.provenance and spent < recipe.budget.seconds


def read_run_recipe(store: RunStore) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        UsageError: no run there.
        DataError: damaged, or of another version.
    """
    if not store.config.exists():
        raise UsageError(f"{store.root}: no run here (config.yaml is missing); make one with potstill distill --out")
    text = store.read_config()
    try:
        return resolve(parse_recipe(text, "the recipe"))
    except UsageError as error:
        raise DataError(
            f"{store.config}: {error}; damaged, or of another version: start anew with --overwrite"
        ) from error


def read_asked_recipe(store: RunStore) -> Recipe:
    """What a run was asked for: its recipe, or that from before its search or plan."""
    return resolve(read_recipe(store.asked)) if store.asked.exists() else read_run_recipe(store)


def settled(recipe: Recipe, store: RunStore) -> Recipe:
    """The recipe with what a search or a plan in `store` chose for it; still open where there was none.

    Raises:
        DataError: the file of it is damaged.
    """
    method = recipe.build_method()
    if recipe.unsearched and not (method.steps and method.uses_factor):  # nothing to try, as for Random rows
        recipe = replace(recipe, parameterisation="tiles")
    record = store.read_json("search/chosen.json") if recipe.open else {}
    if record.get("asked") != recipe.hash():
        return recipe
    try:
        chosen = resolve(recipe.to_dict(), record["keys"])
        return replace(chosen, budget=chosen.budget.after_search(float(record["seconds"])))
    except (AttributeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise DataError(f"{store.chosen}: damaged ({error}); delete it to search again") from error


def require_same_data(store: RunStore, there: Recipe, recipe: Recipe) -> None:
    """Refuse to go on with the run `there` in `store` on other training data than it began with.

    Raises:
        UsageError: they differ, or are not known.
    """
    if not there.data.fingerprint:
        raise UsageError(
            f"{store.root}: holds a run of an older version, which did not record its training data; "
            "use another --out or --overwrite"
        )
    if there.data.fingerprint != recipe.data.fingerprint:
        raise UsageError(
            f"{store.root}: holds a run on other training data, {there.data.name} with fingerprint "
            f"{there.data.fingerprint[:12]}, and these have {recipe.data.fingerprint[:12]}: they have changed; restore "
            "them, or use another --out or --overwrite"
        )


def _claim(store: RunStore, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    if overwrite:
        store.clear()
    elif store.config.exists():
        if not resume:
            raise UsageError(f"{store.root}: holds a run already; add --resume to go on with it, or --overwrite")
        found = read_run_recipe(store)
        require_same_data(store, found, recipe)
        if found.hash() != recipe.hash():
            raise UsageError(
                f"{store.root}: holds a run with {difference(found, recipe)}; leave that as it is to go on, or use "
                "another --out or --overwrite"
            )
        if store.distilled.exists() and not has_budget_left(store.require_set(), recipe, store):
            recipe = replace(recipe, budget=found.budget)  # a finished set stays that of its own budget
    store.write_config(recipe.to_yaml())


def _times(problem: Problem, clock: Clock, peak_memory: int) -> dict[str, Any]:
    pool = problem.pool
    return {
        "pool_seconds": round(pool.seconds, 1) if pool else 0.0,
        "pool_core_seconds": round(pool.core_seconds, 1) if pool else 0.0,
        **{f"distill_{key}": seconds for key, seconds in clock.to_json().items()},
        "core_seconds_of": problem.runtime.device.partition(":")[0],
        "peak_memory_mb": peak_memory,
    }


def _check_finite(metrics: Metrics, state: State, store: RunStore) -> None:
    values = {
        "loss": metrics.loss,
        **metrics.terms,
        **metrics.notes,
        "the sum of the images": float(state.images.sum()),
    }
    for term, value in values.items():
        if not math.isfinite(value):
            raise RunError(
                f"step {state.step}: {term} is {value}; the snapshot in {store.root} is from before it. "
                "Lower method.learning_rate, or try runtime.precision=fp32, and start anew with --overwrite"
            )


def _terms(metrics: Metrics) -> str:
    """The loss and its terms, but for those that have no weight."""
    terms = {name: value for name, value in metrics.terms.items() if value}
    return "  ".join(f"{name} {value:.3g}" for name, value in {"loss": metrics.loss, **terms}.items())
