"""Runs that were kept without their folders tell what the folders told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill import load_dataset
from potstill.cli.main import main
from potstill.errors import DataError
from potstill.recipe import read_recipe, resolve
from potstill.report import collect, keep, make_rows, rows_to_json, to_markdown, write_report
from potstill.report.cost import curves_to_json
from potstill.report.stored import stored_in
from potstill.run.compare import compare
from potstill.run.progress import Reporter
from potstill.run.study import STUDY, read_study
from potstill.sets.synthetic import SyntheticSet

RESULTS = Path(__file__).parents[1] / "results"
KEYS: dict[str, Any] = {
    "data.name": "digits",
    "methods": {"m3d": {"real_batch": 4, "steps": 102}},
    "evaluation": {"nets": 2, "epochs": 1, "stored_bits": 8},
    "saving": {"keep": [40, 100]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random rows, which keep no set, and an iterative method, with scores of a set on the way and of 8 bits."""
    out = tmp_path_factory.mktemp("runs")
    given: dict[str, Any] = {"methods": ["random_mix", "m3d"], "ipcs": [1], "seeds": [0], "curve": True}
    compare(load_dataset("digits"), [KEYS], **given, out=out, reporter=Reporter(quiet=True))
    return out


def test_kept_runs_give_the_rows_curves_and_records_of_their_folders(runs: Path, tmp_path: Path) -> None:
    path = keep(runs, tmp_path / "kept", ["on a toaster"])
    before, after = collect(runs), collect(path.parent)
    assert [run.name for run in after] == [run.name for run in before]
    assert json.dumps(rows_to_json(after)) == json.dumps(rows_to_json(before))
    assert {row.bits for row in make_rows(after)} == {"", "8 bits"} and any(
        r.gain is not None for r in make_rows(after)
    )
    assert curves_to_json(after) == curves_to_json(before) and len(curves_to_json(after)) == 1
    assert [line["step"] for line in after[0].metrics] == [40, 100, 102]
    assert json.loads(path.read_text())["notes"] == ["on a toaster"]
    for one, other in zip(stored_in(runs), stored_in(path.parent), strict=True):
        assert one.to_json() == other.to_json()
    assert "m3d" in write_report(path.parent).read_text()


def test_what_is_kept_names_the_file_of_its_data_and_not_where_it_lay(tmp_path: Path) -> None:
    digits = load_dataset("digits")
    images, labels = digits.train.images[:40].permute(0, 2, 3, 1).numpy(), digits.train.labels[:40].numpy()
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    run = tmp_path / "runs" / "random"
    given = ["--dataset", str(tmp_path / "mine.npz"), "--method", "random", "--ipc", "1", "--out", str(run)]
    assert main(["distill", *given]) == 0
    kept = json.loads(keep(run, tmp_path / "kept").read_text())["runs"]["random"]["recipe"]
    assert kept["data"]["name"] == "mine.npz"
    assert resolve(kept).hash() == resolve(read_recipe(run / "config.yaml")).hash()


def test_what_a_step_made_is_kept_in_half_precision_and_the_study_beside_it(runs: Path, tmp_path: Path) -> None:
    out = keep(runs, tmp_path / "kept").parent
    files = {file.name for file in out.iterdir()}
    assert files == {"results.json", STUDY, "m3d-ipc1-factor2-seed0.fp16.safetensors"}
    half = SyntheticSet.load(out / "m3d-ipc1-factor2-seed0.fp16.safetensors")
    exact = SyntheticSet.load(runs / "m3d-ipc1-factor2-seed0" / "synthetic")
    assert not half.images.equal(exact.images) and half.images.allclose(exact.images, atol=1e-3)
    assert read_study(out / STUDY) == read_study(runs / STUDY)


def test_the_command_line_keeps_and_reads_what_it_kept(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    assert main(["report", str(runs), "--keep", str(kept), "--note", "one", "--note", "two"]) == 0
    assert json.loads((kept / "results.json").read_text())["notes"] == ["one", "two"]
    capsys.readouterr()
    assert main(["report", str(kept), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.strip() == to_markdown(collect(runs)).strip()
    assert main(["report", str(runs), "--note", "one"]) == 2
    assert "--note goes with --keep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "no 'runs'"),
        ('{"runs": [1]}', "no records of runs"),
        ('{"runs": {"a": {}}}', "no 'recipe'"),
        ('{"runs": {"a": {"recipe": {"ipc": 1}}}}', "data.name is None"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError) as refused:
        collect(tmp_path)
    message = str(refused.value)
    assert named in message and str(tmp_path / "results.json") in message and "\n" not in message


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
@pytest.mark.parametrize("path", sorted(RESULTS.rglob("results.json")), ids=lambda path: path.parent.name)
def test_the_committed_results_are_read_and_their_rows_say_what_they_said(path: Path) -> None:
    told = json.loads(path.read_text())["rows"]
    exact = {r["recipe_hash"]: r["mean"] for r in told if r.get("stored_bits") in (None, 32) and r["mean"] is not None}
    rows = [row for row in make_rows(collect(path.parent)) if row.mean is not None]
    assert rows
    for row in rows:
        if row.recipe_hash in exact and len([r for r in told if r["recipe_hash"] == row.recipe_hash]) == 1:
            assert row.mean == pytest.approx(exact[row.recipe_hash])
    assert re.search(r"\d\d\.\d\d", to_markdown(collect(path.parent)))


STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
@pytest.mark.parametrize(
    ("results", "studies"),
    [
        ("ablation_cifar10_ipc10", ["ablation_cifar10_ipc10"]),
        ("tuning/cifar10_ipc1", ["tuning_cifar10_ipc1"]),
        ("tuning/cifar10_ipc10", ["tuning_cifar10_ipc10", "tuning_cifar10_ipc10_b", "tuning_cifar10_ipc10_c"]),
    ],
)
def test_committed_results_of_a_study_are_of_the_recipes_that_it_names(results: str, studies: list[str]) -> None:
    plans = [read_study(STUDIES / f"{name}.yaml") for name in studies]
    cells = {cell.name: (cell.recipe, plan.holdout) for plan in plans for cell in plan.cells}
    found = collect(RESULTS / results)
    for run in found:
        recipe, holdout = cells[run.name]
        assert resolve(run.config).hash() == recipe.hash(), run.name
        assert {score.epochs for score in run.scores} == {recipe.evaluation.epochs}
        assert ((run.cell.get("holdout") or 0) == holdout and run.label == run.name) or run.name == "dsdm"
    assert len(found) > 3
