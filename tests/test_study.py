"""Studies: named cells read from a file or made from a comparison, and what tells them apart in their folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.errors import UsageError
from potstill.methods import METHODS
from potstill.methods.dsdm import DSDM as DSDMMethod
from potstill.report import collect, keep, make_rows, write_report
from potstill.report.tables import to_markdown
from potstill.run.compare import compare, run_study
from potstill.run.distil import read_run_recipe
from potstill.run.engine.find import find_engine
from potstill.run.progress import Reporter
from potstill.run.sharing import kin
from potstill.run.store import RunStore
from potstill.run.study import STUDY, Study, hold_out, read_study, study_of
from potstill.spec import LabelledDataset

BASE: dict[str, Any] = {
    "ipc": 1,
    "pool": {"members": 1, "pretrained": False},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
    "evaluation": {"nets": 1, "epochs": 1},
}
DSDM = {"name": "dsdm", "steps": 1, "real_batch": 8}
STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"
QUIET = Reporter(quiet=True)


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(json.dumps({"base": BASE, **sections}))  # JSON is YAML
    return path


def read(folder: Path, **sections: Any) -> Study:
    return read_study(written(folder, **sections))


def test_a_cell_is_a_layer_over_the_base_and_its_name_is_its_folder(tmp_path: Path) -> None:
    cells = {"random": {"method": "random"}, "no_covariance": {"method": {**DSDM, "covariance_weight": 0}, "paper": 60}}
    plain, other = read(tmp_path, cells=cells).cells
    assert (plain.name, plain.label, plain.recipe.method_name, plain.paper) == ("random", "random", "random", None)
    assert (other.name, other.recipe.method.covariance_weight, other.paper) == ("no_covariance", 0, 60)
    assert other.recipe.ipc == 1 and other.recipe.pool.members == 1


def test_keys_of_one_method_in_the_call_hold_for_its_cells(tmp_path: Path) -> None:
    path = written(tmp_path, cells={"random": {"method": "random"}, "mine": {"method": DSDM}})
    _, mine = read_study(path, {"methods": {"dsdm": {"steps": 7, "learning_rate": 0.5}}}).cells
    assert (mine.recipe.method.steps, mine.recipe.method.descent.learning_rate) == (7, 0.5)
    with pytest.raises(UsageError, match=r"cell 'random': unknown recipe key 'method.steps'.*methods\.NAME\.steps"):
        read_study(path, {"method": {"steps": 7}})


def test_what_varies_stands_in_the_folders_name_and_what_has_no_column_in_the_label(tmp_path: Path) -> None:
    vary = {"ipc": [1, 2], "factor": [[1, 1], [2, 3]], "method.learning_rate": [0.1], "seed": [0, 1]}
    cells = read(tmp_path, vary=vary, cells={"mine": {"method": DSDM}}).cells
    assert len(cells) == 8 and len({cell.recipe.hash() for cell in cells}) == 8
    assert cells[-1].name == "mine-learning_rate0.1-ipc2-factor2x3-seed1"
    assert {cell.label for cell in cells} == {"mine-learning_rate0.1"}


def test_whole_images_are_there_once_whatever_factors_vary(tmp_path: Path) -> None:
    cells = read(tmp_path, vary={"factor": [[1, 1], [2, 2]]}, cells={"random": {"method": "random"}}).cells
    assert [cell.name for cell in cells] == ["random"]


def test_a_factor_that_varies_may_be_one_number(tmp_path: Path) -> None:
    cells = read(tmp_path, vary={"factor": [1, [2, 2]]}, cells={"dm": {"method": "dm"}}).cells
    assert {cell.name: cell.recipe.factor for cell in cells} == {"dm-factor1": (1, 1), "dm-factor2": (2, 2)}


def test_a_comparison_is_a_study_that_its_own_file_gives_back(tmp_path: Path) -> None:
    study = study_of([BASE], methods=["random", "dsdm"], ipcs=[1, 10], seeds=[0, 1], factors=[(1, 1), (2, 2)])
    (tmp_path / STUDY).write_text(study.to_yaml())
    assert read_study(tmp_path / STUDY) == study
    assert study.cells[-1].name == "dsdm-ipc10-factor2-seed1" and study.cells[-1].label == "dsdm"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "a study is a mapping with cells"),
        ("cells: {}", "a study is a mapping with cells"),
        ("[", "not valid YAML"),
        ("cells: {a: {method: random}}\ntrials: {}", "unknown section 'trials': known are base, vary"),
        ("cells: {a: {method: random}}\nholdout: -1", "holdout=-1: need"),
        ("cells: {a: {method: random}}\nvary: {seed: 3}", "vary.seed=3: need a list"),
        ("cells: {a: {method: random, ipcs: 3}}", "cell 'a': unknown recipe key 'ipcs'"),
        ("cells: {a: 3}", "cell 'a': expected keys and values, found 3"),
        ("cells: {../a: {method: random}}", "that of its folder"),
        ("cells: {full_data: {method: random}}", "and not full_data"),
        ("cells: {a: {method: random, paper: best}}", "paper='best' of cell 'a'"),
    ],
)
def test_a_study_that_is_none_is_refused_in_one_line(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"plan\.yaml: ") as refused:
        read_study(tmp_path / "plan.yaml")
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_two_recipes_of_one_name_never_meet_in_one_folder(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": ["dsdm"], "ipcs": [1], "seeds": [0], "out": tmp_path, "reporter": QUIET}
    keys = {"methods": {"dsdm": {"steps": 1, "real_batch": 8}}}
    compare(toy_dataset, [BASE, keys], **given)
    before = (tmp_path / STUDY).read_text()
    with pytest.raises(UsageError, match=r"method\.descent\.momentum 0\.0, not 0\.9; give this one a name of its own"):
        compare(toy_dataset, [BASE, keys, {"method.momentum": 0.9}], **given)
    assert (tmp_path / STUDY).read_text() == before
    (outcome,) = compare(toy_dataset, [BASE, keys, {"method.momentum": 0.9}], overwrite=True, **given)
    assert outcome.failure == ""


def test_rows_carry_the_cells_labels_and_the_papers_values_and_the_same_call_goes_on(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    cells = {"plain": {"method": "random"}, "again": {"method": "random", "seed": 1, "paper": 26.0}}
    study = read(tmp_path, cells=cells)
    first = run_study(study, lambda _: toy_dataset, out=tmp_path / "out", reporter=QUIET)
    assert run_study(study, lambda _: toy_dataset, out=tmp_path / "out", reporter=QUIET) == first
    rows = make_rows(collect(tmp_path / "out"))
    assert {(row.label, row.method, row.paper) for row in rows} == {
        ("plain", "random", None),
        ("again", "random", 26.0),
    }
    heading = to_markdown(rows).splitlines()[0]
    assert "| cell | method |" in heading and "paper, %" in heading and "scored on" not in heading


def test_a_hold_out_is_scored_on_and_neither_pool_nor_method_sees_it(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.run import cells as module

    seen: list[LabelledDataset] = []
    plain = module.distill_run
    monkeypatch.setattr(module, "distill_run", lambda r, data, *a, **k: seen.append(data) or plain(r, data, *a, **k))
    study = read(tmp_path, cells={"a": {"method": "random"}}, holdout=30)
    (outcome,) = run_study(study, lambda _: toy_dataset, out=tmp_path / "out", reporter=QUIET)
    (data,) = seen
    assert (len(data.train), len(data.test)) == (90, 30) and outcome.scores is not None
    held = {image.numpy().tobytes() for image in data.test.images}
    assert not held & {image.numpy().tobytes() for image in data.train.images}
    assert not held & {image.numpy().tobytes() for image in toy_dataset.test.images}
    (row,) = make_rows(collect(tmp_path / "out"))
    assert row.holdout == 30 and "30 held-out training images" in to_markdown([row])
    without = read(tmp_path, cells={"a": {"method": "random"}})
    with pytest.raises(UsageError, match="holdout 30, not 0"):
        run_study(without, lambda _: toy_dataset, out=tmp_path / "out", reporter=QUIET)


def test_more_is_held_out_than_there_is() -> None:
    data = pytest.importorskip("potstill").load_dataset("digits")
    with pytest.raises(UsageError, match="holdout=1437: the training split has 1437 images"):
        hold_out(data, 1437)


def test_the_command_runs_a_study_with_its_own_options_over_every_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = written(
        tmp_path, cells={"a": {"method": "random", "data": {"name": "digits"}}, "b": {"method": "random", "seed": 1}}
    )
    assert main(["compare", str(plan), "--nets", "2", "--out", str(tmp_path / "out"), "--json", "-q"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["label"], row["n_nets"]) for row in rows] == [("a", 2), ("b", 2)]
    assert main(["compare", str(plan), "--methods", "random", "--out", str(tmp_path / "out"), "-q"]) == 2
    assert "--methods beside a study" in capsys.readouterr().err


def test_a_cell_that_is_refused_has_its_line_though_it_has_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--dataset", "digits", "--ipc", "1,500", "--methods", "random", "--nets", "1", "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "out"), "-q"]) == 1
    said = capsys.readouterr()
    assert "random-ipc500-seed0: class" in said.out and "500 needed" in said.out
    assert "1 of 2 runs failed" in said.err and not (tmp_path / "out" / "random-ipc500-seed0").exists()


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_committed_study_resolves(path: Path) -> None:
    assert read_study(path).cells


@pytest.mark.parametrize(("name", "minutes"), [("field_cifar10_ipc10", 20), ("field_fashion_mnist_ipc1", 5)])
def test_a_study_of_the_field_has_every_method_under_one_budget_and_protocol(name: str, minutes: float) -> None:
    recipes = [cell.recipe for cell in read_study(STUDIES / f"{name}.yaml").cells]
    assert {recipe.method_name for recipe in recipes} == set(METHODS)
    assert {recipe.budget.minutes for recipe in recipes if recipe.unplanned} == {minutes}
    assert all(recipe.unplanned for recipe in recipes if recipe.build_method().steps)
    assert len({(recipe.evaluation, recipe.ipc, recipe.data, recipe.seed) for recipe in recipes}) == 1
    assert len({replace(recipe.pool, snapshots=()) for recipe in recipes}) == 1
    tenths = tuple(i / 10 for i in range(60))  # with the last as many moments as tgdd was published with
    assert {recipe.method_name: recipe.pool.snapshots for recipe in recipes}["tgdd"] == tenths
    assert {recipe.pool.snapshots for recipe in recipes} == {(0,), (2, 4), tenths}  # of one training run


def test_the_study_across_architectures_distils_two_sets_for_six_networks() -> None:
    cells = read_study(STUDIES / "cross_architecture_cifar10_ipc10.yaml").cells
    assert sorted(map(len, {tuple(names) for names in kin(cells).values()})) == [6, 6]
    scored = {cell.recipe.evaluation.network: cell.recipe.evaluation.nets for cell in cells}
    once = {"densenet121": 1, "vgg11": 1, "alexnet": 1}
    assert scored == {"convnet": 3, "resnet10": 3, "densenet121_k12": 3, **once}
    assert {cell.label for cell in cells} == {"dsdm", "dsdm_plus"}


def test_a_dry_run_tells_what_each_cell_takes_counts_the_pool_once_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(tmp_path / "cache"))
    base = {**BASE, "data": {"name": "digits"}, "pool": {"members": 1, "epochs": 2}}
    steps = {"method": {**DSDM, "steps": 500, "real_batch": 16}}
    cells = {"random": {"method": "random"}, "dsdm": steps, "more": {**steps, "seed": 1}}
    words = ["compare", str(written(tmp_path, base=base, cells=cells)), "--out", str(tmp_path / "out"), "--json", "-q"]
    assert main([*words, "--dry-run"]) == 0
    random, first, second = json.loads(capsys.readouterr().out)["cells"]
    assert random["pool_seconds"] == second["pool_seconds"] == 0 < first["pool_seconds"]
    assert random["distill_seconds"] < first["distill_seconds"] == second["distill_seconds"]
    assert all(cell["evaluate_seconds"] > 0 and cell["disk_mb"] > 0 for cell in (random, first, second))
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yaml", "cache"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"timings"}  # which serve the next call


def test_a_dry_run_knows_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "--dataset",
        "digits",
        "--methods",
        "random",
        "--ipc",
        "1",
        "--nets",
        "1",
        "--epochs",
        "1",
        "-q",
    ]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:2] == ["random-ipc1-seed0", "finished"]
    assert shown[-1].startswith("1 cells, about 0 s")


NETWORKS = {
    "Small": {"evaluation.network": "convnet:width=4,depth=1"},
    "MLP": {"evaluation": {"network": "mlp", "nets": 2}},
}


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every step of DSDM."""
    taken, plain = list[int](), DSDMMethod.step
    monkeypatch.setattr(
        DSDMMethod, "step", lambda method, problem, state: taken.append(1) or plain(method, problem, state)
    )
    return taken


@pytest.mark.parametrize("engine", ["", "serial"])
def test_a_set_that_several_networks_score_is_distilled_once_and_has_a_row_for_each(
    engine: str, toy_dataset: LabelledDataset, tmp_path: Path, steps_taken: list[int]
) -> None:
    keys = {"method": DSDM, "budget": {"minutes": 0.001, "plan": True}}
    study = read(tmp_path, vary={"network": NETWORKS}, cells={"dsdm": {**keys, "paper": [66.5, "unknown"]}})
    given: dict[str, Any] = {"out": tmp_path / "out", "cache": tmp_path / "cache", "reporter": QUIET, "curve": True}
    with find_engine("serial") as serial:
        given["engine"] = serial if engine else None
        outcomes = run_study(study, lambda _: toy_dataset, **given)
        first, second = (RunStore(tmp_path / "out" / name) for name in ("dsdm-networkSmall", "dsdm-networkMLP"))
        planned = [json.loads(store.chosen.read_text())["keys"]["budget"]["planned"] for store in (first, second)]
        steps = len(steps_taken)
        assert run_study(study, lambda _: toy_dataset, **given) == outcomes
    assert [o.failure for o in outcomes] == ["", ""] and planned[0] == planned[1]
    assert len(steps_taken) == steps  # a finished study takes none
    assert first.metrics.read_text().count("\n") == planned[0] == second.metrics.read_text().count("\n")
    assert first.distilled.read_bytes() == second.distilled.read_bytes()
    assert read_run_recipe(second).evaluation.network == "mlp"
    rows = make_rows(collect(tmp_path / "out"))
    shown = {(row.label, row.network, row.n, row.paper) for row in rows}
    assert shown == {("dsdm", "convnet:width=4,depth=1", "1 x 1", 66.5), ("dsdm", "mlp", "1 x 2", None)}
    keep(tmp_path / "out", tmp_path / "kept")  # which holds the set once
    assert [path.name for path in (tmp_path / "kept").glob("*.safetensors")] == ["dsdm-networkMLP.fp16.safetensors"]
    for folder, figures in (
        ("out", 5),
        ("kept", 4),
    ):  # two of accuracy against cost, one of losses, the rest of the set
        page = write_report(tmp_path / folder).read_text()
        assert page.count("; seed 0.") == 1 and page.count("<figcaption>") == figures
    assert {path.name for path in second.scores.rglob("*.json") if "convnet" in path.name} == set()
    assert len(list(second.kept_scores(0).glob("mlp-*.json"))) == 2  # the first set is scored by its own too


@pytest.mark.parametrize("engine", ["", "serial"])
def test_a_set_that_cannot_be_made_is_tried_once_and_fails_all_that_share_it(
    engine: str, toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[int]()
    monkeypatch.setattr(DSDMMethod, "step", lambda *_: tries.append(1) or 1 / 0)
    study = read(tmp_path, vary={"network": NETWORKS}, cells={"dsdm": {"method": DSDM}, "random": {"method": "random"}})
    with find_engine("serial") as serial:
        given = {"out": tmp_path / "out", "cache": tmp_path / "cache", "engine": serial if engine else None}
        outcomes = run_study(study, lambda _: toy_dataset, reporter=QUIET, **given)
    assert ["division by zero" in o.failure for o in outcomes] == [True, True, False, False]
    assert len(tries) == 1


def test_a_network_added_later_scores_the_set_that_is_there_and_overwriting_makes_it_anew_once(
    toy_dataset: LabelledDataset, tmp_path: Path, steps_taken: list[int]
) -> None:
    given: dict[str, Any] = {"out": tmp_path / "out", "reporter": QUIET}
    cells = {"dsdm": {"method": {**DSDM, "steps": 2}, "saving.keep": [1]}}
    run_study(read(tmp_path, vary={"on": {"Small": NETWORKS["Small"]}}, cells=cells), lambda _: toy_dataset, **given)
    assert len(steps_taken) == 2
    study = read(tmp_path, vary={"on": dict(reversed(NETWORKS.items()))}, cells=cells)  # the new one stands first
    run_study(study, lambda _: toy_dataset, **given)
    assert len(steps_taken) == 2
    assert [*RunStore(tmp_path / "out" / "dsdm-onMLP").kept_sets()] == [0, 1]
    run_study(study, lambda _: toy_dataset, overwrite=True, **given)
    assert len(steps_taken) == 4


def test_a_dry_run_counts_a_set_once_that_several_networks_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(tmp_path / "cache"))
    sections = {"base": {**BASE, "data": {"name": "digits"}}, "cells": {"dsdm": {"method": DSDM}}}
    plan = written(tmp_path, **sections, vary={"network": NETWORKS})
    assert main(["compare", str(plan), "--out", str(tmp_path / "out"), "--json", "-q", "--dry-run"]) == 0
    first, second = json.loads(capsys.readouterr().out)["cells"]
    assert first["distill_seconds"] > 0 == second["distill_seconds"]
    assert first["evaluate_seconds"] > 0 < second["evaluate_seconds"]


@pytest.mark.parametrize("methods", [["random"], ["random", "random_mix"], ["random_mix"]])
def test_a_comparison_never_goes_on_over_two_versions_of_its_data(
    methods: list[str], toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"ipcs": [1], "seeds": [0], "out": tmp_path, "reporter": QUIET}
    compare(toy_dataset, [BASE], methods=["random"], **given)
    train = replace(toy_dataset.train, images=255 - toy_dataset.train.images)
    changed = LabelledDataset(replace(toy_dataset.spec, train_fingerprint=""), train, toy_dataset.test)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UsageError, match=r"random-ipc1-.*seed0: holds a run on other training data, .* they have changed"
    ):
        compare(changed, [BASE], methods=methods, **given)
    assert sorted(tmp_path.rglob("*")) == before
