"""A comparison: every method under one recipe, failures as outcomes, finished work kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.cli import main
from potstill.errors import Interrupted, RunError, UsageError
from potstill.methods import Metrics
from potstill.methods.dsdm import DSDM
from potstill.report import collect, cost_curves, make_rows
from potstill.run import score as scoring
from potstill.run.compare import Outcome, compare
from potstill.run.progress import Reporter
from potstill.run.store import RunStore
from potstill.run.study import study_of
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset

SMALL: dict[str, Any] = {
    "ipc": 1,
    "methods": {"dsdm": {"steps": 2, "real_batch": 16}},
    "pool": {"members": 2, "pretrained": False},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
    "evaluation": {"nets": 2, "epochs": 1},
}


def compared(data: LabelledDataset, out: Path, **changes: Any) -> list[Outcome]:
    given: dict[str, Any] = {"methods": ["random", "dsdm"], "ipcs": [1], "seeds": [0], "reporter": Reporter(quiet=True)}
    return compare(data, [changes.pop("recipe", SMALL)], out=out, **{**given, **changes})


def break_dsdm(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DSDM.step
    monkeypatch.setattr(DSDM, "step", lambda *given: (plain(*given)[0], Metrics(float("nan"))))


def test_every_method_ipc_and_seed_gets_a_folder_and_scores(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    outcomes = compared(toy_dataset, tmp_path, ipcs=[1, 2], seeds=[0, 1])
    cells = [(o.ipc, o.cell, o.seed) for o in outcomes]
    assert cells == [(ipc, m, seed) for ipc in (1, 2) for m in ("random", "dsdm") for seed in (0, 1)]
    for outcome in outcomes:
        assert outcome.failure == "" and outcome.scores is not None and outcome.scores.n_nets == 2
        small = SyntheticSet.load(outcome.folder / "synthetic" / "distilled.safetensors")
        assert small.ipc == outcome.ipc and small.provenance["method"] == outcome.cell
    assert len({o.folder for o in outcomes}) == 8


def test_one_comparison_holds_several_factors_and_whole_images_once(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    """Gains of all of them are over the better Random row, whatever its factor."""
    methods = ["random", "random_mix", "dsdm"]
    outcomes = compared(toy_dataset, tmp_path, methods=methods, factors=[(2, 2), (1, 2)])
    names = ["random-ipc1-seed0"] + [f"{m}-ipc1-factor{f}-seed0" for m in methods[1:] for f in ("2", "1x2")]
    assert [o.folder.name for o in outcomes] == names and not any(o.failure for o in outcomes)
    rows = make_rows(collect(tmp_path))
    assert [(row.method, row.factor) for row in rows] == [
        ("random", (1, 1)),
        *((method, factor) for method in ("random_mix", "dsdm") for factor in ((1, 2), (2, 2))),
    ]
    best = max(row.mean or 0.0 for row in rows[:3])
    assert [row.gain for row in rows] == [None] * 3 + [pytest.approx((row.mean or 0.0) - best) for row in rows[3:]]
    assert compared(toy_dataset, tmp_path, methods=["dsdm"])[0].folder.name == "dsdm-ipc1-factor2-seed0"


def test_each_way_of_storing_has_its_undistilled_row(
    toy_colour: LabelledDataset, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    """dsdm_plus stores colour at half chroma, so random_mix is there in tiles and so; gray at IPC 5 is tiles."""
    given: dict[str, Any] = {"methods": ["random_mix", "dsdm_plus"], "seeds": [0]}
    study = study_of([SMALL], ipcs=[1], **given)
    names = ["random_mix-ipc1-factor2-seed0", "dsdm_plus-ipc1-seed0", "random_mix-suited-ipc1-seed0"]
    assert [cell.name for cell in study.cells] == names
    colour = study.on(dict.fromkeys(names, toy_colour)).cells
    stored = [cell.recipe.parameterisation for cell in colour]
    assert stored[0] == "tiles" and stored[1] == stored[2] and stored[1].startswith("half_chroma")
    more = study_of([SMALL], ipcs=[5], **given)
    gray = more.on({cell.name: toy_dataset for cell in more.cells}).cells
    assert [cell.name for cell in gray] == ["random_mix-ipc5-factor2-seed0", "dsdm_plus-ipc5-seed0"]


def test_all_sets_are_scored_by_the_same_networks(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    outcomes = compared(toy_dataset, tmp_path)
    seeds = [[score.seed for score in o.scores.scores] for o in outcomes if o.scores]
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 2


def test_a_failing_method_becomes_an_outcome_with_its_reason_and_the_others_go_on(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_dsdm(monkeypatch)
    dsdm, random = compared(toy_dataset, tmp_path, methods=["dsdm", "random"])
    assert dsdm.scores is None and "step 1: loss is nan" in dsdm.failure
    assert random.failure == "" and random.scores is not None


def test_a_mistake_in_the_code_of_a_method_is_not_the_end_of_the_others(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DSDM, "step", lambda *_: [][1])
    dsdm, random = compared(toy_dataset, tmp_path, methods=["dsdm", "random"])
    assert dsdm.failure == "IndexError: list index out of range"
    assert "in step" not in dsdm.failure
    assert "Traceback" in json.loads((dsdm.folder / "failure.json").read_text())["traceback"]
    assert random.scores is not None


def test_a_failure_stays_in_its_folder_until_the_run_is_taken_up_again(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_dsdm(patch)
        compared(toy_dataset, tmp_path)
    (dsdm,) = [row for row in make_rows(collect(tmp_path)) if row.method == "dsdm"]
    assert dsdm.failure.startswith("step 1: loss is nan") and dsdm.mean is None
    compared(toy_dataset, tmp_path)
    assert not list(tmp_path.rglob("failure.json"))


def test_an_evaluation_that_fails_is_noted_too(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "evaluate_once", training_fails)
        compared(toy_dataset, tmp_path)
    assert {row.failure for row in make_rows(collect(tmp_path))} == {"training loss is nan in epoch 1"}
    assert [o.failure for o in compared(toy_dataset, tmp_path)] == ["", ""]
    assert {row.failure for row in make_rows(collect(tmp_path))} == {""}


def test_a_run_that_another_process_holds_gets_no_note(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    compared(toy_dataset, tmp_path)
    with RunStore(tmp_path / "dsdm-ipc1-factor2-seed0").locked():
        outcomes = compared(toy_dataset, tmp_path)
    assert [bool(o.failure) for o in outcomes] == [False, True]
    assert "another process is working on this run" in outcomes[1].failure
    assert not list(tmp_path.rglob("failure.json"))


def test_missing_images_are_a_failure_of_the_methods_that_need_them_alone(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    """40 images per class: 11 mosaics of four want 44."""
    outcomes = compared(toy_dataset, tmp_path, methods=["random_mix", "random"], ipcs=[11])
    assert "has 40 images, 44 needed" in outcomes[0].failure
    assert outcomes[1].scores is not None


def test_finished_work_is_not_done_again(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compared(toy_dataset, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(DSDM, "step", lambda *_: pytest.fail("distilled again"))
        patch.setattr(scoring, "evaluate_once", lambda *_, **__: pytest.fail("scored again"))
        again = compared(toy_dataset, tmp_path)
    assert again == first


def test_only_what_failed_or_is_new_is_done_by_the_same_call(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_dsdm(patch)
        compared(toy_dataset, tmp_path)
    scored = []
    plain = scoring.evaluate_once
    monkeypatch.setattr(scoring, "evaluate_once", lambda *a, **k: scored.append(k["seed"]) or plain(*a, **k))
    outcomes = compared(toy_dataset, tmp_path)
    assert [o.failure for o in outcomes] == ["", ""]
    assert len(scored) == 2  # the networks of dsdm


def test_overwriting_distils_again(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(toy_dataset, tmp_path)
    steps = []
    plain = DSDM.step
    monkeypatch.setattr(DSDM, "step", lambda *given: steps.append(1) or plain(*given))
    compared(toy_dataset, tmp_path, overwrite=True)
    assert len(steps) == 2


def test_a_recipe_that_one_method_cannot_have_stops_before_any_work(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    recipe = {**SMALL, "method": {"steps": 2}}
    with pytest.raises(UsageError, match=r"'method\.steps' of method 'random'"):
        compared(toy_dataset, tmp_path, recipe=recipe, methods=["dsdm", "random"])
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_ends_the_comparison(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise Interrupted("interrupted after step 1")

    monkeypatch.setattr(DSDM, "step", interrupted)
    with pytest.raises(Interrupted):
        compared(toy_dataset, tmp_path, methods=["dsdm", "random"])
    assert not (tmp_path / "random-ipc1-seed0").exists()


def test_the_same_comparison_gives_the_same_sets(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    one, other = (compared(toy_dataset, tmp_path / name, methods=["dsdm"])[0] for name in "ab")
    images = [SyntheticSet.load(o.folder / "synthetic" / "distilled.safetensors").images for o in (one, other)]
    assert torch.equal(*images)


@pytest.mark.usefixtures("step_of_thirty_seconds")
def test_a_budget_is_for_each_run_and_its_row_says_where_it_ended(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    recipe = {**SMALL, "methods": {"dsdm": {"steps": 50, "real_batch": 16}}, "budget": {"minutes": 1.5}}
    compared(toy_dataset, tmp_path, recipe=recipe, seeds=[0, 1])
    random, dsdm = make_rows(collect(tmp_path))
    assert random.stopped == "" and dsdm.n == "2 x 2"
    assert dsdm.stopped.count("after 3 of 50 steps by its budget of 1.5 min") == 2
    assert dsdm.steps_done == 3


# --- the full data


def test_the_full_data_are_scored_by_the_same_networks_once(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    plain = scoring.evaluate_once
    monkeypatch.setattr(
        scoring, "evaluate_once", lambda train, *a, **k: trained.append((len(train), k)) or plain(train, *a, **k)
    )
    *others, full = compared(toy_dataset, tmp_path, methods=["random"], full_data_epochs=2)
    assert [(size, keys["protocol"].epochs) for size, keys in trained] == [(3, 1)] * 2 + [(120, 2)] * 2
    assert full.scores is not None and others[0].scores is not None
    assert [s.seed for s in full.scores.scores] == [s.seed for s in others[0].scores.scores]
    trained.clear()
    assert compared(toy_dataset, tmp_path, methods=["random"], full_data_epochs=2) == [*others, full]
    assert trained == []
    random, row = make_rows(collect(tmp_path))
    assert (row.method, row.mean, row.epochs, row.numbers_stored) == ("full data", full.scores.mean, 2, 120 * 64)
    assert random.share == pytest.approx(others[0].scores.mean / full.scores.mean)


def training_fails(*_: Any, **__: Any) -> Any:
    raise RunError("training loss is nan in epoch 1")


def test_full_data_that_fail_are_a_row_that_says_why(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.run.compare.evaluate_full_data", training_fails)
    outcomes = compared(toy_dataset, tmp_path, methods=["random"], full_data_epochs=2)
    assert [o.failure for o in outcomes] == ["", "training loss is nan in epoch 1"]
    assert [row.failure for row in make_rows(collect(tmp_path))] == ["", "training loss is nan in epoch 1"]


# --- accuracy against cost


def test_a_curve_scores_what_iterative_methods_kept_after_all_final_sets(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**SMALL, "saving": {"keep": [1]}}
    order: list[Path] = []
    plain = scoring.write_atomically
    monkeypatch.setattr(scoring, "write_atomically", lambda path, text: order.append(path) or plain(path, text))
    outcomes = compared(toy_dataset, tmp_path, recipe=recipe, methods=["dsdm", "random"], curve=True)
    assert [path.parent.name for path in order] == ["scores"] * 4 + ["000000"] * 2 + ["000001"] * 2
    (curve,) = cost_curves(collect(tmp_path))
    assert (curve.method, [point.step for point in curve.points]) == ("dsdm", [0, 1, 2])
    assert outcomes[0].scores is not None and curve.points[-1].mean == outcomes[0].scores.mean
    order.clear()
    assert compared(toy_dataset, tmp_path, recipe=recipe, methods=["dsdm", "random"], curve=True) == outcomes
    assert order == []


def test_a_curve_that_fails_keeps_the_scores_of_its_row(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.run.compare.evaluate_kept", training_fails)
    random, dsdm = compared(toy_dataset, tmp_path, curve=True)
    assert random.failure == "" and dsdm.scores is not None
    assert dsdm.failure == "training loss is nan in epoch 1"
    row = make_rows(collect(tmp_path))[1]
    assert row.mean == dsdm.scores.mean and row.failure == dsdm.failure


COMMAND = [
    "compare", "--dataset", "digits", "--ipc", "1", "--methods", "random,dsdm", "--nets", "1", "--epochs", "1", "-q",
    "--methods.dsdm.steps", "2", "--methods.dsdm.real_batch", "16", "--pool.members", "1", "--pool.pretrained", "false",
    "--device", "cpu", "--precision", "fp32", "--threads", "1", "--compile", "false",
]  # fmt: skip


@pytest.mark.parametrize("engine", [[], ["--engine", "serial"]])
def test_the_command_prints_rows_with_their_failures_as_one_json_document(
    engine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_dsdm(monkeypatch)
    assert main([*COMMAND, *engine, "--out", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    assert said.err == "potstill: 1 of 2 runs failed, see the table; the same call tries them again\n"
    document = json.loads(said.out)
    assert document["schema_version"] == 1
    rows = {row["method"]: row for row in document["rows"]}
    assert 0 <= rows["random"]["mean"] <= 1
    assert rows["dsdm"]["mean"] is None
    assert "loss is nan" in rows["dsdm"]["failure"] and rows["random"]["failure"] == ""


def test_the_command_prints_the_points_of_its_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*COMMAND, "--out", str(tmp_path), "--json"]
    assert main([*words, "--curve", "--keep-snapshots", "1"]) == 0
    (curve,) = json.loads(capsys.readouterr().out)["curves"]
    assert curve["method"] == "dsdm" and [point["step"] for point in curve["points"]] == [0, 1, 2]
    assert main(["report", str(tmp_path), "--format", "csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curves"] == [curve]


def test_the_command_takes_lists_of_ipcs_and_factors(tmp_path: Path) -> None:
    words = ["compare", "--dataset", "digits", "--methods", "random,random_mix", "--nets", "1", "--epochs", "1", "-q"]
    assert main([*words, "--ipc", "1,2", "--factors", "1,2x1", "--out", str(tmp_path)]) == 0
    mixes = {f"random_mix-ipc{ipc}-factor{factor}-seed0" for ipc in (1, 2) for factor in ("1", "2x1")}
    names = mixes | {"random-ipc1-seed0", "random-ipc2-seed0"}
    assert {p.name for p in tmp_path.iterdir()} == names | {"study.yaml"}


@pytest.mark.parametrize("words", [["--factors", "2x"], ["--factors", ","], ["--factors", "1x2x3"], ["--ipc", "ten"]])
def test_a_list_that_is_none_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--dataset", "digits", *words, "--out", str(tmp_path)])
    assert ended.value.code == 2 and repr(words[1]) in capsys.readouterr().err


def test_one_factor_and_a_list_of_them_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--dataset", "digits", "--factor", "2", "--factors", "1,3", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--factor and --factors: give one of them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_prints_one_table_and_the_reasons_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    break_dsdm(monkeypatch)
    assert main([*COMMAND, "--out", str(tmp_path), "--seeds", "2"]) == 1
    printed = capsys.readouterr().out
    assert "random" in printed
    words = set(printed.split())
    assert {"failed:", "nan;"} <= words
    assert len(re.findall(r"seed [01]:", printed)) == 2
    names = {f"{m}-seed{s}" for m in ("random-ipc1", "dsdm-ipc1-factor2") for s in (0, 1)}
    assert {p.name for p in tmp_path.iterdir()} == names | {"study.yaml"}


def test_a_comparison_scores_every_set_in_few_bits_too(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    recipe = {**SMALL, "evaluation": {"nets": 1, "epochs": 1, "stored_bits": 8}}
    for _ in range(2):  # again: what is done is kept
        outcomes = compared(toy_dataset, tmp_path, recipe=recipe)
        assert not any(outcome.failure for outcome in outcomes)
    rows = make_rows(collect(tmp_path))
    assert [(row.method, row.stored_bits) for row in rows] == [
        (method, bits) for bits in (32, 8) for method in ("random", "dsdm")
    ]
    exact, rounded = (row for row in rows if row.method == "dsdm")
    assert (exact.numbers_stored, exact.bytes_stored) == (3 * 64, 4 * 3 * 64)
    assert (rounded.numbers_stored, rounded.bytes_stored) == (3 * 64 + 2, 3 * 64 + 2 * 4)
    assert rounded.n == "1 x 1" and rounded.gain is not None
    compared(toy_dataset, tmp_path, overwrite=True)
    assert [row.stored_bits for row in make_rows(collect(tmp_path))] == [32, 32]
