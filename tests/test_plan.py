"""Planned budgets: the steps that fit are settled before the run, once, and then all of them are taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_method_contract import quick_keys

import potstill
from potstill.cli import main
from potstill.errors import Interrupted, UsageError
from potstill.machine.runtime import Runtime
from potstill.machine.work import Stopwatch
from potstill.methods import METHODS
from potstill.recipe import Recipe, resolve
from potstill.report import collect, make_rows
from potstill.run import distil, plan, search
from potstill.run.compare import run_study
from potstill.run.distil import distill_run, read_run_recipe
from potstill.run.engine.find import find_engine
from potstill.run.pace import Pace
from potstill.run.progress import Reporter
from potstill.run.search import settle
from potstill.run.store import RunStore
from potstill.run.study import Study, study_of
from potstill.spec import LabelledDataset

QUIET = Reporter(quiet=True)
#: Six seconds, of which each step takes one by the clock of `second_by_second`.
TINY: dict[str, Any] = {
    "ipc": 1,
    "method": {"name": "dm", "steps": 3, "real_batch": 8, "decay": "linear"},
    "pool": {"network": "convnet:width=8", "members": 2, "pretrained": False},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
    "evaluation": {"network": "convnet:width=8", "nets": 1, "epochs": 1},
    "budget": {"minutes": 0.1, "plan": True},
}


def tiny(**changes: Any) -> Recipe:
    return resolve(TINY, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def second_by_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every timed step takes a second, whatever it does."""
    monkeypatch.setattr(Stopwatch, "lap", lambda _: 1.0)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


def never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "plan", lambda *_: pytest.fail("planned again"))


def test_where_compiling_leaves_too_little_as_many_steps_are_taken_as_need_none(
    toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 eager steps of a tenth of a second; from 400 on they are compiled, for 59 of the 60 seconds."""
    eager, compiling = Runtime(), Runtime(compile=True)
    paces = {eager: (5, Pace(0.0, 0.1)), compiling: (7, Pace(59.0, 0.01))}
    monkeypatch.setattr(plan, "amount", lambda recipe, _: recipe.method.steps)
    monkeypatch.setattr(plan, "distilling_runtime", lambda r, *_: compiling if r.method.steps >= 400 else eager)
    monkeypatch.setattr(plan, "time_method", lambda recipe, data, runtime, **_: paces[runtime])
    assert plan.plan(tiny(), toy_dataset, 60.0)[0].method.steps == 399
    assert plan.plan(tiny(), toy_dataset, 70.0)[0].method.steps == 1100
    assert plan.plan(tiny(), toy_dataset, 30.0)[0].method.steps == 300


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name]().steps])
@pytest.mark.usefixtures("second_by_second")
def test_every_method_with_steps_takes_as_many_as_fit(
    name: str, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, paces = plan.steps_in, list[Pace]()
    monkeypatch.setattr(plan, "steps_in", lambda *given: (paces.append(given[1]), plain(*given))[1])
    keys = {"method": {"name": name, **quick_keys(name, steps=50)}, "budget": {"minutes": 1, "plan": True}}
    recipe = resolve({**TINY, "ipc": 2, **keys}).on(toy_dataset)
    planned, timed = plan.plan(recipe, toy_dataset, 60.0)
    more = plan.with_steps(recipe, planned.method.steps + 1)
    takes, would_take = (paces[-1].of(plan.amount(recipe, toy_dataset)) for recipe in (planned, more))
    assert takes <= 60 < would_take and timed == 5
    assert replace(planned, method=recipe.method) == recipe


# --- a run


@pytest.mark.usefixtures("second_by_second")
def test_a_planned_run_is_that_of_the_steps_it_was_planned_for(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    run = potstill.distill(toy_dataset, recipe=TINY, out=tmp_path / "run", cache=tmp_path)
    store = RunStore(tmp_path / "run")
    written = read_run_recipe(store)
    assert written == run.recipe and (written.method.steps, written.budget.planned) == (6, 6)  # 3 were the method's
    plain = potstill.distill(toy_dataset, recipe=TINY | {"budget": {}}, steps=6, cache=tmp_path)
    assert torch.equal(plain.synthetic.images, run.synthetic.images)  # so the decay ends with them
    assert plain.recipe.hash() == run.recipe.hash() == run.synthetic.provenance["recipe_hash"]
    assert run.synthetic.provenance["plan"] == "6 steps for 0.1 min of distilling, from 5 that were timed"
    assert "plan" not in plain.synthetic.provenance and "budget_minutes" not in run.synthetic.provenance


@pytest.mark.usefixtures("second_by_second", "step_of_thirty_seconds")
def test_steps_that_take_longer_than_planned_are_taken_all_the_same(
    toy_dataset: LabelledDataset, store: RunStore
) -> None:
    recipe = settle(tiny(method={"name": "dsdm", "covariance_weight": 0, "real_batch": 8}), toy_dataset, store, QUIET)
    synthetic = distill_run(recipe, toy_dataset, store, QUIET)
    assert store.read_json("times.json")["distill_seconds"] == 30 * 6 and synthetic.provenance["steps"] == "6"


@pytest.mark.usefixtures("second_by_second")
def test_a_killed_run_never_plans_again(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = settle(tiny(), toy_dataset, store, QUIET)
    never_again(monkeypatch)
    assert settle(tiny(), toy_dataset, store, QUIET) == recipe  # killed before its first step
    with monkeypatch.context() as patch:
        patch.setattr(distil, "_finish", lambda *_: (_ for _ in ()).throw(Interrupted("signal")))
        with pytest.raises(Interrupted):
            distill_run(recipe, toy_dataset, store, QUIET)
    again = settle(distil.read_asked_recipe(store), toy_dataset, store, QUIET)
    assert again == recipe and distill_run(again, toy_dataset, store, QUIET, resume=True).provenance["steps"] == "6"


@pytest.mark.usefixtures("second_by_second")
def test_a_folder_holds_the_plan_of_one_budget(toy_dataset: LabelledDataset, store: RunStore) -> None:
    settle(tiny(), toy_dataset, store, QUIET)
    with pytest.raises(UsageError, match=r"holds a plan for a recipe with budget.minutes 0.1, not 0.2; use another"):
        settle(tiny(budget__minutes=0.2), toy_dataset, store, QUIET)
    assert settle(tiny(budget__minutes=0.2), toy_dataset, store, QUIET, overwrite=True).method.steps == 12
    other = RunStore(store.root.parent / "other")
    other.write_config(tiny(budget__plan=False).on(toy_dataset).to_yaml())
    with pytest.raises(UsageError, match="holds a run that no plan came before"):
        settle(tiny(), toy_dataset, other, QUIET)


def test_steps_that_nobody_planned_are_refused(toy_dataset: LabelledDataset, store: RunStore) -> None:
    with pytest.raises(UsageError, match=r"budget.plan=true: potstill distill and compare plan"):
        distill_run(tiny(), toy_dataset, store, QUIET)
    assert not store.root.exists()


@pytest.mark.usefixtures("second_by_second")
def test_a_kept_step_is_no_mistake_before_the_steps_are_known(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    run = potstill.distill(
        toy_dataset, recipe={**TINY, "saving": {"keep": [5, 99]}}, out=tmp_path / "run", cache=tmp_path
    )
    assert run.folder and list(RunStore(run.folder).kept_sets()) == [0, 5]


@pytest.mark.usefixtures("second_by_second")
def test_after_a_search_the_rest_of_the_budget_is_planned_for(
    toy_dataset: LabelledDataset, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_search", lambda recipe, data, *_: (recipe.by_default(data), "as it is", 3.0))
    recipe = settle(tiny(parameterisation="auto"), toy_dataset, store, QUIET)
    assert (recipe.parameterisation, recipe.method.steps, recipe.budget.planned) == ("tiles", 3, 3)
    assert recipe.budget.minutes == pytest.approx(0.05) and not recipe.open
    assert settle(tiny(parameterisation="auto"), toy_dataset, store, QUIET) == recipe


def test_a_budget_that_cuts_is_planned_for_by_the_clock_that_cuts(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_search", lambda recipe, data, *_: (recipe.by_default(data), "as it is", 0.0))
    monkeypatch.setattr(Stopwatch, "lap", lambda watch: 1.0 if len(watch._before) > 1 else 4.0)
    monkeypatch.setattr(search, "time", SimpleNamespace(perf_counter=lambda: 0.0))  # which timing the steps takes
    keys: dict[str, Any] = {"parameterisation": "auto", "budget__minutes": 0.2}
    cut = settle(tiny(**keys, budget__plan=False, method__steps=99), toy_dataset, RunStore(tmp_path / "cut"), QUIET)
    whole = settle(tiny(**keys), toy_dataset, RunStore(tmp_path / "whole"), QUIET)
    assert (cut.method.steps, whole.method.steps) == (int(0.9 * 12 / 4), 12)


# --- studies, engines, the command line


def study(*methods: str, **over: Any) -> Study:
    keys = {"methods": {"dm": {"real_batch": 8, "decay": "linear"}}, **over}
    return study_of([{**TINY, "method": {}}, keys], methods=methods, ipcs=[1], seeds=[0, 1])


def test_a_comparison_plans_its_cells_once_and_seeds_share_a_row(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laps = iter([1.0] * 5 + [1.5] * 5)
    monkeypatch.setattr(Stopwatch, "lap", lambda _: next(laps))
    for _ in range(2):
        outcomes = run_study(study("random", "dm"), lambda _: toy_dataset, out=tmp_path, reporter=QUIET, cache=tmp_path)
        assert [outcome.failure for outcome in outcomes] == [""] * 4
        never_again(monkeypatch)
    assert [record.steps_done for record in collect(tmp_path) if record.method == "dm"] == [6, 4]
    assert [row.n_sets for row in make_rows(collect(tmp_path))] == [2, 2]


@pytest.mark.parametrize("workers", ["serial", "processes"])
def test_an_engine_plans_where_its_task_runs(workers: str, toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    with find_engine(workers, 1 if workers == "processes" else None) as engine:
        given: dict[str, Any] = {"out": tmp_path, "reporter": QUIET, "cache": tmp_path / "cache", "engine": engine}
        (cell, _) = study("dm", budget={"minutes": 0.01}).cells
        outcomes = run_study(Study((cell,)), lambda _: toy_dataset, **given)
    assert [outcome.failure for outcome in outcomes] == [""]
    (record,) = collect(tmp_path)
    assert record.planned and record.distilled and record.steps_done == record.steps_planned != 20_000
    assert record.distilled.provenance["plan"].startswith(f"{record.steps_done:,} steps for 0.01 min")


def test_shards_have_no_planned_budget(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    with find_engine("serial") as engine:
        given: dict[str, Any] = {"out": tmp_path, "reporter": QUIET, "cache": tmp_path, "engine": engine, "shards": 2}
        outcomes = run_study(study("dm"), lambda _: toy_dataset, **given)
    assert all("leave out --shards or budget.minutes" in outcome.failure for outcome in outcomes)
    assert not list(tmp_path.glob("*/search"))


@pytest.mark.usefixtures("second_by_second")
def test_a_dry_run_says_how_many_steps_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps({key: TINY[key] for key in TINY if key != "budget"}))  # JSON is YAML
    words = ["distill", "--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), "-q"]
    words += ["--cache-dir", str(tmp_path / "cache"), "--budget-minutes", "0.1", "--budget-plan"]
    assert main([*words, "--dry-run", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["planned"], cell["distill_seconds"]) == (6, 6.0) and not (tmp_path / "run").exists()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"].startswith("6 steps for 0.1 min")
    assert main([*words, "--dry-run"]) == 0
    assert " to be scored " in capsys.readouterr().out  # and nothing left to plan
    assert main([*words[:4], str(tmp_path / "other"), *words[5:], "--dry-run"]) == 0
    assert "new, 6 steps planned" in capsys.readouterr().out
