"""The stages that make a set: pretrain, distil. Here configuration ends: the core gets objects and plain arguments.

Every stage is idempotent: what is done already, on disk, is not done again. The stage that evaluates is `scoring`.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError, Interrupted, RunError, UsageError
from ..files import default_cache
from ..learning.pool import Pool, pretrain, untrained
from ..machine.runtime import Runtime
from ..methods import FeatureStore, Method, Problem, State
from ..recipe import Recipe, resolve
from ..sets.export.pictures import save_preview
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .environment import environment, forget_peak_memory, peak_memory_mb
from .progress import Reporter
from .signals import interruptible, stop_requests
from .store import MetricsLog, RunStore


def pretrain_pool(
    recipe: Recipe,
    data: LabelledDataset,
    reporter: Reporter,
    *,
    cache: Path | None = None,
    runtime: Runtime | None = None,
) -> Pool:
    """The recipe's pool, from the cache where it is there."""
    config = recipe.pool
    if not config.pretrained:
        return untrained(data.spec, network=config.network, members=config.members, seed=config.seed)
    schedule = config.training()
    runtime = runtime or recipe.runtime.resolve(
        passes=3 * len(data.train) * schedule.epochs * config.members, side=data.spec.shape[1]
    )
    runtime.start()
    reporter.say(f"pool: {config.members} x {config.network}, {schedule.epochs} epochs; {runtime.describe()}")
    with reporter.stage("pretrain", config.members * schedule.epochs) as stage, interruptible("the pool"):
        return pretrain(
            data.train,
            data.spec,
            cache=(cache or default_cache()) / "pool",
            runtime=runtime,
            network=config.network,
            members=config.members,
            schedule=schedule,
            snapshots=config.snapshots,
            seed=config.seed,
            on_epoch=lambda member, epoch, loss: stage.advance(f"network {member + 1} epoch {epoch} loss {loss:.3f}"),
        )


def distill_run(
    recipe: Recipe,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    *,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> SyntheticSet:
    """Make the recipe's synthetic set in `store`, going on from a snapshot where `resume` allows it.

    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` was given, or another recipe's run.
        RunError: a loss that is not finite; the last good snapshot stays.
        Interrupted: SIGINT or SIGTERM; a snapshot was written.
    """
    with store.locked():
        _claim(store, recipe, resume, overwrite)
        with store.noting_failure():
            if store.distilled.exists():
                synthetic = SyntheticSet.load(store.distilled)
                if not _has_budget_left(synthetic, recipe, store):
                    reporter.say(f"{store.root}: already finished")
                    return synthetic
                store.reopen()
            method = recipe.build_method()
            problem = _problem(recipe, method, data, reporter, cache)
            about = {"recipe_hash": recipe.hash(), "method_about": method.about()}
            store.write_json("env.json", {**environment(problem.runtime), **about})
            reporter.say(f"{recipe.method_name}: {problem.runtime.describe()}; recipe {recipe.hash()}")
            return _distill(recipe, method, problem, store, reporter)


def _problem(
    recipe: Recipe, method: Method[Any], data: LabelledDataset, reporter: Reporter, cache: Path | None
) -> Problem:
    """All that the method may know, its pool and the process's runtime made ready."""
    runtime = recipe.runtime.resolve(passes=_network_passes(recipe, method, data), side=data.spec.shape[1])
    pool = pretrain_pool(recipe, data, reporter, cache=cache) if method.needs_pool else None
    runtime.start()
    return Problem(
        spec=data.spec,
        train=data.train,
        ipc=recipe.ipc,
        factor=recipe.factor,
        seed=recipe.seed,
        runtime=runtime,
        pool=pool,
        network=recipe.pool.network,
        init=recipe.init,
        features=FeatureStore((cache or default_cache()) / "features", on_batch=reporter.counter("features"))
        if recipe.saving.features
        else None,
    )


def _distill(
    recipe: Recipe, method: Method[Any], problem: Problem, store: RunStore, reporter: Reporter
) -> SyntheticSet:
    forget_peak_memory()
    # Taken back to the last snapshot's: the time of lost steps is no part of what the set cost.
    before = store.read_json("times.json")
    started = time.perf_counter() - float(before.get("distill_seconds", 0.0))
    state = _first_state(method, problem, store)
    # A run that goes on made or found its features before, and its time holds theirs.
    shared = problem.features if state.step == 0 else None

    def seconds() -> float:
        """What the run took so far, features that it found ready included."""
        return round(time.perf_counter() - started + (shared.reused_seconds if shared else 0), 3)

    def save(state: State) -> None:
        metrics.flush()
        store.write_snapshot(state.to_tensors())
        peak = max(peak_memory_mb(), int(before.get("peak_memory_mb", 0)))
        store.write_json("times.json", _times(problem.pool, seconds(), peak))

    with (
        closing(MetricsLog(store.metrics, state.step)) as metrics,
        reporter.stage("distill", method.steps, state.step) as stage,
        stop_requests() as stopping,
    ):
        while state.step < method.steps and seconds() < recipe.budget.seconds:
            state, record = method.step(problem, state)
            _check_finite({**record, "the sum of the images": float(state.images.sum())}, state.step, store)
            metrics.append({"step": state.step, "seconds": seconds(), **record})
            stage.advance(_terms(record))
            if state.step in recipe.saving.keep:
                store.write_set(store.kept(state.step), _result(recipe, method, problem, state))
            if state.step == method.steps:
                break
            if state.step % recipe.saving.every == 0 or stopping():
                save(state)
            if stopping():
                raise Interrupted(
                    f"interrupted after step {state.step}; go on with: potstill distill --resume {store.root}"
                )
        save(state)
    synthetic = _result(recipe, method, problem, state)
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


def _result(recipe: Recipe, method: Method[Any], problem: Problem, state: State) -> SyntheticSet:
    synthetic = method.result(problem, state)
    facts = {"method": recipe.method_name, "fidelity": recipe.fidelity, "recipe_hash": recipe.hash()}
    return replace(synthetic, provenance={**synthetic.provenance, **facts})


def _cut_short(synthetic: SyntheticSet, recipe: Recipe, method: Method[Any], reporter: Reporter) -> SyntheticSet:
    """The set as the budget left it; its provenance says so."""
    minutes = f"{recipe.budget.minutes:g}"
    reporter.say(f"{recipe.method_name}: {minutes} min are used up after {synthetic.provenance['steps']} steps")
    facts = {"steps_planned": str(method.steps), "budget_minutes": minutes}
    return replace(synthetic, provenance={**synthetic.provenance, **facts})


def _has_budget_left(synthetic: SyntheticSet, recipe: Recipe, store: RunStore) -> bool:
    """Whether a set that a budget cut short may go on: a larger one is given now, or none."""
    spent = float(store.read_json("times.json").get("distill_seconds", 0.0))
    return "budget_minutes" in synthetic.provenance and spent < recipe.budget.seconds


def read_run_recipe(store: RunStore) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        UsageError: no run there.
    """
    if not store.config.exists():
        raise UsageError(f"{store.root}: no run here (config.yaml is missing); make one with potstill distill --out")
    return resolve(yaml.safe_load(store.config.read_text()))


def _claim(store: RunStore, recipe: Recipe, resume: bool, overwrite: bool) -> None:
    if overwrite:
        store.clear()
    elif store.config.exists():
        if not resume:
            raise UsageError(f"{store.root}: holds a run already; add --resume to go on with it, or --overwrite")
        found = read_run_recipe(store)
        if found.hash() != recipe.hash():
            raise UsageError(
                f"{store.root}: holds a run of recipe {found.hash()}, not {recipe.hash()}; "
                "use another --out or --overwrite"
            )
        if store.distilled.exists() and not _has_budget_left(store.require_set(), recipe, store):
            recipe = replace(recipe, budget=found.budget)  # a finished set stays that of its own budget
    store.write_config(recipe.to_yaml())


def _network_passes(recipe: Recipe, method: Method[Any], data: LabelledDataset) -> int:
    """About how many images pass a network in the distillation: without steps it is each once, or none."""
    if not method.steps:
        return len(data.train) if method.needs_pool else 0
    synthetic = 2 * recipe.ipc * recipe.factor[0] * recipe.factor[1]
    real = getattr(recipe.method, "real_batch", 0)
    return method.steps * data.spec.num_classes * (synthetic + real)


def _times(pool: Pool | None, seconds: float, peak_memory: int) -> dict[str, Any]:
    return {
        "pool_seconds": round(pool.seconds, 1) if pool else 0.0,
        "pool_core_seconds": round(pool.core_seconds, 1) if pool else 0.0,
        "distill_seconds": seconds,
        "peak_memory_mb": peak_memory,
    }


def _check_finite(record: dict[str, float], step: int, store: RunStore) -> None:
    for term, value in record.items():
        if not math.isfinite(value):
            raise RunError(
                f"step {step}: {term} is {value}; the snapshot in {store.root} is from before it. "
                "Lower method.learning_rate, or try runtime.precision=fp32, and start anew with --overwrite"
            )


def _terms(record: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in record.items() if name != "network")
