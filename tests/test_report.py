"""Reports from run folders that the tests write themselves: rows, tables, pictures, curves and the page."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from potstill.errors import DataError, UsageError
from potstill.report import (
    CostCurve,
    Row,
    before_after,
    collect,
    cost_curves,
    cost_figure,
    image_grid,
    loss_curves,
    make_rows,
    read_run,
    render_report,
    rows_to_json,
    save_preview,
    terminal_table,
    to_csv,
    to_latex,
    to_markdown,
    write_report,
)
from potstill.report.cost import CostPoint
from potstill.report.curves import smooth, smoothing_window
from potstill.report.words import describe_protocol
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import DatasetSpec

MakeRun = Callable[..., Path]


def make_set(
    shape: tuple[int, int, int] = (1, 8, 8),
    *,
    classes: tuple[str, ...] = ("a", "b", "c"),
    ipc: int = 2,
    factor: tuple[int, int] = (1, 1),
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    fingerprint: str = "f1",
) -> SyntheticSet:
    spec = DatasetSpec(
        name="toy",
        shape=shape,
        classes=classes,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        mirror=False,
        fingerprint=fingerprint,
        value_range=value_range,
    )
    images = torch.rand(len(classes), ipc, *shape, generator=torch.Generator().manual_seed(seed))
    low, high = value_range
    return SyntheticSet(images * (high - low) + low, spec, factor)


def make_metrics(steps: int) -> list[dict[str, Any]]:
    """Terms as a method logs them: falling, noisy, one of them zero at first and one throughout."""
    return [
        {
            "step": step,
            "loss": 10 / step + step % 3,
            "terms": {
                "prototype": 8 / step,
                "covariance": 2 / step + step % 3,
                "history": 0.0 if step < 3 else 0.5,
                "calibration": 0.0,
            },
            "notes": {"spread": -1 + step / steps, "network": float(step % 2), "accuracy": 0.9},
            "seconds": 0.1 * step,
        }
        for step in range(1, steps + 1)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder below tmp_path / "runs", finished and scored unless told otherwise."""

    def make(
        name: str,
        method: str = "dsdm",
        *,
        accuracies: Sequence[float] = (),
        seed: int = 0,
        distilled: SyntheticSet | None = None,
        initial: SyntheticSet | None = None,
        metrics: Sequence[dict[str, Any]] = (),
        protocol: str = "dsdm",
        epochs: int = 50,
        set_hash: str | None = None,
        environment: dict[str, Any] | None = None,
        times: dict[str, Any] | None = None,
        failure: str = "",
        kept: dict[int, Sequence[float]] | None = None,
        bytes_stored: int | None = None,
        cell: dict[str, Any] | None = None,
        keys: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "scores").mkdir(parents=True)
        (folder / "synthetic").mkdir()
        steps = {} if method.startswith("random") else {"steps": 20}
        config = {
            "data": {"name": "toy"},
            "method": {"name": method, **steps, **(keys or {})},
            "ipc": 2,
            "factor": [1, 1],
            "seed": seed,
            "pool": {"members": 3, "network": "convnet", "pretrained": True},
            "evaluation": {"network": "convnet", "protocol": protocol, "nets": len(accuracies), "epochs": epochs},
            **recipe,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "env.json").write_text(json.dumps(environment or {"torch": "2.13.0", "device": "cpu"}))
        if times:
            (folder / "times.json").write_text(json.dumps(times))
        if failure:
            (folder / "failure.json").write_text(json.dumps({"schema_version": 1, "reason": failure}))
        if cell:
            (folder / "cell.json").write_text(json.dumps(cell))
        if metrics:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        for file, content in (("distilled", distilled), ("initial", initial)):
            if content is not None:
                (folder / "synthetic" / f"{file}.safetensors").write_bytes(content.to_bytes())
        (folder / "state" / "kept").mkdir(parents=True)
        for step, shares in (kept or {}).items():
            if step:
                (folder / "state" / "kept" / f"{step:06d}.safetensors").write_bytes(b"")
            (folder / "scores" / "kept" / f"{step:06d}").mkdir(parents=True)
            for i, accuracy in enumerate(shares):
                score = {"network": "convnet", "protocol": protocol, "epochs": epochs, "seed": 100 + i}
                path = folder / "scores" / "kept" / f"{step:06d}" / f"{i}.json"
                path.write_text(json.dumps({**score, "accuracy": accuracy, "set_hash": f"set-{name}-{step}"}))
        for i, accuracy in enumerate(accuracies):
            score = {
                "schema_version": 1,
                "network": "convnet",
                "protocol": protocol,
                "epochs": epochs,
                "seed": 100 + i,
                "accuracy": accuracy,
                "train_loss": 0.5,
                "seconds": 3.0,
                "recipe_hash": f"recipe-{method}-{seed}",
                "set_hash": set_hash or f"set-{name}",
                "bytes_stored": bytes_stored,
                "device": "a processor",
                "commit": "0123abc",
            }
            (folder / "scores" / f"{i}.json").write_text(json.dumps(score))
        return folder

    return make


@pytest.fixture
def collection(make_run: MakeRun) -> Path:
    """Both Random rows and two seeds of DSDM."""
    start = make_set(factor=(2, 2))
    made = [make_set(factor=(2, 2), seed=s) for s in (1, 2)]
    make_run("a-random", "random", accuracies=(0.50, 0.54), distilled=make_set(seed=5))
    make_run("b-mix", "random_mix", accuracies=(0.60, 0.62), distilled=start, initial=start)
    for seed, accuracies in ((0, (0.70, 0.74)), (1, (0.72, 0.80))):
        folder = make_run(
            f"dsdm-{seed}",
            accuracies=accuracies,
            seed=seed,
            distilled=made[seed],
            initial=start,
            metrics=make_metrics(20),
            times={
                "pool_seconds": (30.0, 0.0)[seed],
                "distill_seconds": (100.0, 120.0)[seed],
                "peak_memory_mb": (1800, 1750)[seed],
            },
            environment={"torch": "2.13.0", "command": "potstill distill --dataset toy --out runs/x"},
        )
    return folder.parent


def row_of(rows: Sequence[Row], method: str) -> Row:
    (row,) = [row for row in rows if row.method == method]
    return row


# --- rows


def test_runs_that_differ_in_seed_only_are_pooled(collection: Path):
    row = row_of(make_rows(collect(collection)), "dsdm")
    # Four networks .70 .74 .72 .80: mean .74, squared deviations 16 + 0 + 4 + 36 e-4 over 3.
    assert row.mean == pytest.approx(0.74)
    assert row.std == pytest.approx(math.sqrt(56e-4 / 3))
    assert (row.n_sets, row.n_nets, row.n) == (2, 2, "2 x 2")
    # Set means .72 and .76; within the sets 8e-4 and 32e-4 with one degree of freedom each.
    assert row.std_sets == pytest.approx(math.sqrt(8e-4))
    assert row.std_nets == pytest.approx(math.sqrt(20e-4))
    assert row.pool_seconds == 30
    assert row.distill_seconds == pytest.approx(110)
    assert row.peak_memory_mb == 1800
    assert row.numbers_stored == 3 * 2 * 64
    assert row.factor == (2, 2)
    assert row.recipe_hash == "recipe-dsdm-0, recipe-dsdm-1"
    assert (row.device, row.commit) == ("a processor", "0123abc")
    assert row.runs == ("dsdm-0", "dsdm-1")


def test_gain_is_over_the_better_random_row(collection: Path):
    rows = make_rows(collect(collection))
    assert row_of(rows, "dsdm").gain == pytest.approx(0.74 - 0.61)
    assert row_of(rows, "random").gain is None
    assert row_of(rows, "random_mix").gain is None


def test_gain_counts_from_plain_random_where_that_is_better(make_run: MakeRun):
    make_run("r", "random", accuracies=(0.9,), distilled=make_set())
    make_run("m", "random_mix", accuracies=(0.5,), distilled=make_set())
    folder = make_run("d", accuracies=(0.8,), distilled=make_set())
    assert row_of(make_rows(collect(folder.parent)), "dsdm").gain == pytest.approx(-0.1)


@pytest.mark.parametrize("other", [{"epochs": 51}, {"protocol": "idc"}, {"ipc": 3}])
def test_random_under_other_terms_gives_no_gain(make_run: MakeRun, other: dict[str, Any]):
    make_run("r", "random", accuracies=(0.5,), distilled=make_set(), **other)
    folder = make_run("d", accuracies=(0.8,), distilled=make_set())
    assert row_of(make_rows(collect(folder.parent)), "dsdm").gain is None


def test_random_on_other_content_under_the_same_name_gives_no_gain(make_run: MakeRun):
    make_run("r", "random", accuracies=(0.5,), distilled=make_set(fingerprint="f2"))
    folder = make_run("d", accuracies=(0.8,), distilled=make_set())
    assert row_of(make_rows(collect(folder.parent)), "dsdm").gain is None


def test_rows_of_other_epochs_are_not_pooled(make_run: MakeRun):
    folder = make_run("d", accuracies=(0.8, 0.6), distilled=make_set())
    score = json.loads((folder / "scores" / "0.json").read_text())
    (folder / "scores" / "long.json").write_text(json.dumps({**score, "epochs": 60, "accuracy": 0.9}))
    rows = make_rows(collect(folder))
    assert [(row.epochs, row.mean, row.n) for row in rows] == [(50, pytest.approx(0.7), "1 x 2"), (60, 0.9, "1 x 1")]


def test_a_single_network_has_no_deviation(make_run: MakeRun):
    (row,) = make_rows([read_run(make_run("d", accuracies=(0.8,), distilled=make_set()))])
    assert (row.std, row.std_sets, row.std_nets) == (None, None, None)


def test_runs_with_other_method_keys_are_rows_of_their_own(make_run: MakeRun):
    make_run("d1", accuracies=(0.8,), distilled=make_set())
    folder = make_run("d2", accuracies=(0.6,), distilled=make_set(), init={"kind": "real"})
    assert [row.mean for row in make_rows(collect(folder.parent))] == [0.8, 0.6]


def test_a_copied_folder_counts_once(make_run: MakeRun):
    make_run("d", accuracies=(0.8, 0.6), distilled=make_set(), set_hash="same")
    folder = make_run("d copy", accuracies=(0.8, 0.6), distilled=make_set(), set_hash="same")
    (row,) = make_rows(collect(folder.parent))
    assert row.n == "1 x 2"


def test_unequal_numbers_of_networks_are_shown_as_a_range(make_run: MakeRun):
    make_run("d0", accuracies=(0.8, 0.6), distilled=make_set(), seed=0)
    folder = make_run("d1", accuracies=(0.8, 0.6, 0.7), distilled=make_set(), seed=1)
    (row,) = make_rows(collect(folder.parent))
    assert (row.n, row.n_nets) == ("2 x 2-3", 2)


def test_a_run_without_scores_is_a_row_without_numbers(make_run: MakeRun):
    (row,) = make_rows([read_run(make_run("d", distilled=make_set()))])
    assert (row.mean, row.network, row.epochs, row.n) == (None, None, None, "1 x 0")


def test_a_failed_run_is_a_row_that_says_why(make_run: MakeRun):
    """After the others of its data set and IPC, also where it came to no set of its own."""
    make_run("r", "random", accuracies=(0.5,), distilled=make_set())
    folder = make_run("d", failure="step 1: loss is nan")
    rows = make_rows(collect(folder.parent))
    assert [(row.method, row.mean, row.failure) for row in rows] == [
        ("random", 0.5, ""),
        ("dsdm", None, "step 1: loss is nan"),
    ]


def test_a_failed_seed_is_told_in_the_row_of_the_others(make_run: MakeRun):
    make_run("d0", accuracies=(0.8, 0.6), distilled=make_set(), seed=0)
    folder = make_run("d1", initial=make_set(), failure="no space left", seed=1)
    (row,) = make_rows(collect(folder.parent))
    assert (row.n, row.failure) == ("1 x 2", "seed 1: no space left")


def cut_short(seed: int = 0) -> SyntheticSet:
    facts = {"steps": "7", "steps_planned": "20", "budget_minutes": "2.5"}
    return replace(make_set(seed=seed), provenance=facts)


def test_a_run_cut_short_by_its_budget_is_a_row_that_says_so(make_run: MakeRun):
    budget = {"budget": {"minutes": 2.5}}
    make_run("whole", accuracies=(0.9,), distilled=make_set(), metrics=make_metrics(20))
    make_run("d0", accuracies=(0.8,), distilled=make_set(), seed=0, metrics=make_metrics(20), **budget)
    folder = make_run("d1", accuracies=(0.7,), distilled=cut_short(), seed=1, metrics=make_metrics(7), **budget)
    rows = make_rows(collect(folder.parent))
    assert [(row.mean, row.budget_minutes, row.steps_done, row.steps_planned) for row in rows] == [
        (pytest.approx(0.75), 2.5, 7, 20),  # one budget, one row
        (0.9, None, 20, 20),
    ]
    assert [row.stopped for row in rows] == ["seed 1: after 7 of 20 steps by its budget of 2.5 min", ""]
    assert "| stopped seed 1: after 7 of 20 steps by its budget of 2.5 min |" in to_markdown(rows)
    page = " ".join(parse(render_report(collect(folder))).text.split())
    assert "stopped after 7 of 20 steps by its budget of 2.5 min" in page
    assert "20 steps, or as many as 2.5 minutes allow, against 3 pre-trained networks" in page


def test_runs_of_one_planned_budget_are_a_row_whatever_steps_it_came_to(make_run: MakeRun):
    for seed, steps in enumerate((20, 21)):
        given = {"budget": {"minutes": 2.5, "plan": True, "planned": steps}, "keys": {"steps": steps}}
        folder = make_run(f"d{seed}", accuracies=(0.7,), distilled=make_set(seed=seed), seed=seed, **given)
    (row,) = make_rows(collect(folder.parent))
    assert (row.n, row.budget_minutes, row.stopped) == ("2 x 1", 2.5, "")
    page = " ".join(parse(render_report(collect(folder.parent))).text.split())
    assert "20 and 21 steps, planned for 2.5 minutes, against" in page


def test_random_rows_come_first(collection: Path):
    assert [row.method for row in make_rows(collect(collection))] == ["random", "random_mix", "dsdm"]


def add_full_data(folder: Path, accuracies: Sequence[float], *, epochs: int = 20, fingerprint: str = "f1") -> None:
    """Scores of the whole training split beside the runs in `folder`."""
    (folder / "full_data" / "scores").mkdir(parents=True, exist_ok=True)
    for i, accuracy in enumerate(accuracies):
        score = {"schema_version": 1, "network": "convnet", "protocol": "dsdm", "epochs": epochs, "seed": 100 + i}
        score |= {"accuracy": accuracy, "set_hash": fingerprint, "numbers_stored": 7680, "device": "a processor"}
        (folder / "full_data" / "scores" / f"{epochs}-{fingerprint}-{i}.json").write_text(json.dumps(score))


def test_the_full_data_are_a_row_that_others_are_a_share_of(collection: Path):
    add_full_data(collection, (0.90, 0.86))
    rows = make_rows(collect(collection))
    assert [row.method for row in rows] == ["random", "random_mix", "dsdm", "full data"]
    full = rows[-1]
    assert (full.mean, full.epochs, full.n) == (pytest.approx(0.88), 20, "1 x 2")
    assert (full.ipc, full.factor, full.numbers_stored) == (None, None, 7680)
    assert (full.share, full.gain) == (None, None)
    assert [row.share for row in rows[:3]] == [pytest.approx(v / 0.88) for v in (0.52, 0.61, 0.74)]
    assert row_of(make_rows([read_run(collection / "dsdm-0")]), "dsdm").share == pytest.approx(0.72 / 0.88)


def test_full_data_of_other_content_or_protocol_are_no_yardstick(collection: Path, make_run: MakeRun):
    add_full_data(collection, (0.9,), fingerprint="f2")
    assert all(row.share is None for row in make_rows(collect(collection)))
    add_full_data(collection, (0.9,))
    make_run("idc", accuracies=(0.5,), protocol="idc", distilled=make_set())
    shares = {(row.method, row.protocol): row.share for row in make_rows(collect(collection))}
    assert shares[("dsdm", "idc")] is None and shares[("dsdm", "dsdm")] == pytest.approx(0.74 / 0.9)


def test_the_longest_training_on_the_full_data_is_the_yardstick(collection: Path):
    """Not the better one: that would be a choice by the test split."""
    add_full_data(collection, (0.9,), epochs=10)
    add_full_data(collection, (0.8,), epochs=30)
    rows = make_rows(collect(collection))
    assert row_of(rows, "dsdm").share == pytest.approx(0.74 / 0.8)
    assert [row.epochs for row in rows if row.method == "full data"] == [10, 30]


# --- tables


def test_markdown_shows_percent_with_n(collection: Path):
    text = to_markdown(collect(collection))
    assert "| 52.00 +- 2.83 (1 x 2) | – |" in text
    assert "| 74.00 +- 4.32 (2 x 2) | +13.00 | 2.83 | 4.47 |" in text
    assert "at the last epoch" in text
    assert "Throughout: data set toy, IPC 2, network convnet, protocol dsdm, epochs 50, device a processor" in text


def test_every_format_has_the_peak_memory(collection: Path):
    records = collect(collection)
    assert "peak memory, MB" in to_markdown(records) and "| 1,800 |" in to_markdown(records)
    peaks = [record["peak_memory_mb"] for record in csv.DictReader(io.StringIO(to_csv(records)))]
    assert peaks == ["", "", "1800.0"]
    assert [record["peak_memory_mb"] for record in rows_to_json(records)] == [None, None, 1800]
    assert "1,800" in parse(render_report(records)).text


def test_every_format_has_the_bytes_where_scores_have_them(collection: Path, make_run: MakeRun):
    assert "bytes stored" not in to_markdown(collect(collection))
    make_run("narrow", "dm", accuracies=(0.6,), distilled=make_set(), bytes_stored=98_304)
    records = collect(collection)
    for text in (to_markdown(records), to_latex(records), parse(render_report(records)).text):
        assert "bytes stored" in text and "98,304" in text
    (row,) = [record for record in csv.DictReader(io.StringIO(to_csv(records))) if record["method"] == "dm"]
    assert row["bytes_stored"] == "98304"
    assert [record["bytes_stored"] for record in rows_to_json(records)].count(98_304) == 1


def test_a_study_is_shown_by_its_cells_beside_the_papers_values(make_run: MakeRun):
    """Against a hold-out no difference is taken: the paper's value is on the test split."""
    for name, cell, accuracy in (
        ("a", {"label": "whole loss", "paper": 66.5}, 0.67),
        ("b", {"label": "no history", "paper": 65.0}, 0.6425),
        ("c", {"label": "on a hold-out", "paper": 65.0, "holdout": 30}, 0.6),
    ):
        folder = make_run(name, accuracies=(accuracy,), distilled=make_set(), cell=cell)
    records = collect(folder.parent)
    text = to_markdown(records)
    assert "| cell | method | accuracy, % | paper, % | over paper, points | scored on |" in text
    assert "| whole loss | dsdm | 67.00 (1 x 1) | 66.5 | +0.50 | – |" in text
    assert "| no history | dsdm | 64.25 (1 x 1) | 65 | -0.75 | – |" in text
    assert "| on a hold-out | dsdm | 60.00 (1 x 1) | 65 | – | 30 held-out training images |" in text
    assert "Accuracy on the test split or held-out training images at the last epoch" in text
    held_out = [record for record in records if record.cell.get("holdout")]
    assert "Accuracy on held-out training images at the last epoch" in to_markdown(held_out)
    assert "over paper, points" in to_latex(records)
    differences = [record["over_paper"] for record in rows_to_json(records)]
    assert differences == [pytest.approx(0.005), pytest.approx(-0.0075), None]
    assert [row["over_paper"] != "" for row in csv.DictReader(io.StringIO(to_csv(records)))] == [True, True, False]
    page = " ".join(parse(render_report(records)).text.split())
    assert "whole loss: 67.00 % of the test images right, 0.50 points above the 66.5 % of the paper." in page
    assert "no history: 64.25 % of the test images right, 0.75 points below the 65 % of the paper." in page
    assert "on a hold-out: 60.00 % of the held-out images right." in page
    assert "whole loss: 2 stored images per class" in page


def test_sound_is_told_in_samples(make_run: MakeRun):
    plain = make_set()
    sound = replace(plain, spec=replace(plain.spec, modality="sound"))
    folder = make_run("d", accuracies=(0.8,), distilled=sound, cell={"label": "d", "holdout": 30})
    add_full_data(folder.parent, (0.9,))
    records = collect(folder.parent)
    assert [row.modality for row in make_rows(records)] == ["sound", "sound"]
    assert "30 held-out training samples" in to_markdown(records)
    page = " ".join(parse(render_report(records)).text.split())
    assert "dsdm on toy, 2 samples per class" in page and "2 stored samples per class" in page
    assert "% of the held-out samples right" in page and "% of the test samples right" in page


@pytest.mark.parametrize(
    ("method", "augment", "modality", "name"),
    [
        ("dsa", "color_crop_cutout_flip_scale_rotate", "sound", "dsa (= dc)"),
        ("dsa", None, "sound", "dsa (= dc)"),  # the method's own default
        ("dsa", "time_shift_gain_mask", "sound", "dsa"),
        ("dsa", "color_crop_cutout_flip_scale_rotate", "image", "dsa"),
        ("dsa", "none", "image", "dsa (= dc)"),
        ("dsa", "sparkle", "sound", "dsa"),  # an operation of another version
        ("cafe_dsa", None, "sound", "cafe_dsa (= cafe)"),
        ("dc", "none", "sound", "dc"),
    ],
)
def test_dsa_is_shown_as_dc_where_nothing_is_augmented(
    make_run: MakeRun, method: str, augment: str | None, modality: str, name: str
):
    plain = make_set()
    distilled = replace(plain, spec=replace(plain.spec, modality=modality, mirror=False))
    facts = {"accuracies": (0.8,), "kept": {10: (0.5,)}, "metrics": make_metrics(20)}
    keys = {} if augment is None else {"augment": augment}
    folder = make_run("d", method, distilled=distilled, keys=keys, **facts)
    records = collect(folder.parent)
    assert f"| {name} | 80.00 (1 x 1) |" in to_markdown(records)
    page = render_report(records)
    text = " ".join(parse(page).text.split())
    assert f"{name} on toy" in text and f"{name}: 80.00 % of the test" in text
    assert page.count(f"<figcaption>{name}</figcaption>") == 2  # pictures and losses
    (row,) = rows_to_json(records)
    assert row["method"] == method and bool(row["same_as"]) == ("=" in name)
    assert [curve.same_as for curve in cost_curves(records)] == [row["same_as"]]


def test_a_run_of_dsa_on_known_sound_is_shown_as_dc_before_it_has_a_set(make_run: MakeRun):
    """A failed run has a row too."""
    folder = make_run("d", "dsa", failure="no room", data={"name": "mini_speech_commands"})
    records = collect(folder.parent)
    assert [row.name for row in make_rows(records)] == ["dsa (= dc)"]
    assert records[0].modality == "sound"


def test_every_format_has_the_share_of_the_full_data(collection: Path):
    assert "share of full data" not in to_markdown(collect(collection))
    add_full_data(collection, (0.90, 0.86))
    records = collect(collection)
    text = to_markdown(records)
    assert "| dsdm | 74.00 +- 4.32 (2 x 2) | +13.00 | 84.09 |" in text
    assert "| full data | 88.00 +- 2.83 (1 x 2) | – | – |" in text
    shares = [record["share"] for record in csv.DictReader(io.StringIO(to_csv(records)))]
    assert shares == [str(record["share"] or "") for record in rows_to_json(records)]
    page = " ".join(parse(render_report(records)).text.split())
    assert "dsdm: 74.00 % of the test images right, 13.00 points above the better Random row" in page
    assert "84.1 % of what the full data give." in page
    assert "The networks of the row full data were trained on the whole training split instead" in page
    assert "Protocol dsdm: 20 epochs" in page


def test_every_format_tells_failures_and_is_without_the_column_where_there_are_none(
    collection: Path, make_run: MakeRun
):
    assert "note" not in to_markdown(collect(collection))
    make_run("dm", "dm", failure="step 1: loss is nan; lower the rate")
    records = collect(collection)
    assert "| failed: step 1: loss is nan; lower the rate |" in to_markdown(records)
    failures = [record["failure"] for record in csv.DictReader(io.StringIO(to_csv(records)))]
    assert failures == [record["failure"] for record in rows_to_json(records)]
    assert sorted(failures) == ["", "", "", "step 1: loss is nan; lower the rate"]
    text = " ".join(parse(render_report(records)).text.split())
    assert "failed: step 1: loss is nan; lower the rate" in text
    assert "dm: failed: step 1: loss is nan; lower the rate." in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_terminal_keeps_the_reason_of_a_failure_whole(collection: Path, make_run: MakeRun, width: int):
    make_run("dm", "dm", failure=f"{'far/' * 20}run: another process is working on this run")
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    terminal_table(collect(collection), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    note = prose_at_the_end(text, "failed:")
    assert "far/" * 20 in note and note.endswith("anotherprocessisworkingonthisrun")


def prose_at_the_end(table: str, start: str) -> str:
    """The last column's text from `start` on, without its blanks."""
    lines = table.splitlines()
    (row,) = [i for i, line in enumerate(lines) if start in line]
    place = lines[row].index(start)
    whole = "".join(line[place:].strip() for line in lines[row:] if not line[:1].strip() or line == lines[row])
    return whole.replace(" ", "")


def test_markdown_escapes_what_would_break_the_table(make_run: MakeRun):
    text = to_markdown(collect(make_run("d", data={"name": "a|b <i>"}, accuracies=(0.5,))))
    assert "a\\|b &lt;i>" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_csv_reads_back(collection: Path):
    records = list(csv.DictReader(io.StringIO(to_csv(collect(collection)))))
    rows = make_rows(collect(collection))
    assert [float(record["mean"]) for record in records] == [row.mean for row in rows]
    assert [record["gain"] for record in records] == ["", "", str(rows[2].gain)]
    assert records[2]["nets_per_set"] == "2 2"
    assert records[2]["recipe_hash"] == "recipe-dsdm-0, recipe-dsdm-1"


def test_json_has_every_field_and_nulls(collection: Path):
    records = json.loads(json.dumps(rows_to_json(collect(collection))))
    assert records[0]["gain"] is None
    assert records[2]["n_sets"] == records[2]["n_nets"] == 2
    assert {"method", "dataset", "ipc", "factor", "std", "numbers_stored", "device", "commit"} <= set(records[2])


def test_tables_of_rows_equal_tables_of_their_runs(collection: Path):
    records = collect(collection)
    assert to_markdown(make_rows(records)) == to_markdown(records)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_table_never_cuts_a_cell(collection: Path, width: int):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    terminal_table(collect(collection), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "74.00 +- 4.32 (2 x 2)" in text
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert ("want of width" in " ".join(text.split())) == (width < 200)


def test_markup_in_a_name_is_text_in_the_terminal(make_run: MakeRun):
    console = Console(file=io.StringIO(), width=200, color_system=None)
    terminal_table(collect(make_run("d", data={"name": "[red]x[/]"})), console)
    assert "[red]x[/]" in console.file.getvalue()  # type: ignore[attr-defined]


# --- pictures


def pixel(grid: Image.Image, right: int, down: int) -> Any:
    return grid.getpixel((right, down))


def test_small_digits_are_enlarged_to_48_pixels_and_colour_to_64():
    digits = image_grid(make_set((1, 8, 8)), names=False)
    colour = image_grid(make_set((3, 32, 32)), names=False)
    assert digits.size == (2 * (48 + 2), 3 * (48 + 2))
    assert colour.size == (2 * (64 + 2), 3 * (64 + 2))


def test_pixels_are_enlarged_without_smoothing():
    synthetic = make_set((3, 2, 2), ipc=1, classes=("a",))
    grid = image_grid(synthetic, scale=5, names=False)
    expected = tuple((synthetic.images[0, 0, :, 1, 0] * 255).round().int().tolist())
    assert {pixel(grid, x, y) for x in range(5) for y in range(5, 10)} == {expected}


def test_values_are_clamped_to_the_value_range():
    synthetic = make_set((1, 2, 2), ipc=1, classes=("a",), value_range=(-1.0, 1.0))
    synthetic.images[0, 0, 0] = torch.tensor([[-3.0, 0.0], [3.0, math.nan]])
    grid = image_grid(synthetic, scale=1, names=False)
    shades = [pixel(grid, x, y)[0] for y in range(2) for x in range(2)]
    assert shades == [0, 128, 255, 0]


def test_a_grid_shows_the_first_images_of_each_class():
    synthetic = make_set((1, 8, 8), ipc=12)
    assert image_grid(synthetic, names=False).width == 10 * 50
    assert image_grid(synthetic, per_class=3, max_classes=2, names=False).size == (3 * 50, 2 * 50)


def test_names_of_any_kind_fit_beside_the_images():
    synthetic = make_set(classes=("x" * 500, "two\nlines", "ÅΩ漢"))
    assert image_grid(synthetic).width < 400


def test_two_channels_are_averaged_to_gray():
    synthetic = make_set((2, 4, 4), ipc=1, classes=("a",))
    shade = pixel(image_grid(synthetic, scale=1, names=False), 0, 0)
    assert len(set(shade)) == 1


@pytest.mark.parametrize("wrong", [{"per_class": 0}, {"scale": 0}, {"max_classes": 0}])
def test_a_grid_of_nothing_is_refused(wrong: dict[str, int]):
    with pytest.raises(UsageError, match="need at least 1"):
        image_grid(make_set(), **wrong)


def test_before_and_after_stand_side_by_side():
    one, other = make_set(seed=1), make_set(seed=2)
    both = before_after(one, other)
    assert both.width > image_grid(one).width + image_grid(other, names=False).width
    assert both.height > image_grid(one).height


def test_a_preview_is_a_png(tmp_path: Path):
    path = save_preview(tmp_path / "new" / "preview.png", make_set())
    with Image.open(path) as image:
        assert image.format == "PNG"
    before = path.read_bytes()
    save_preview(path, make_set())
    assert path.read_bytes() == before


def test_a_view_shows_what_is_stored_or_what_it_decodes_to():
    tiled = replace(make_set((1, 8, 8)), parameterisation=(2, 2))
    stored, decoded = (image_grid(tiled, names=False, per_class=8, view=view) for view in ("stored", "decoded"))
    assert decoded.width == 4 * stored.width  # four samples in each stored image
    assert stored.tobytes() == image_grid(tiled, names=False).tobytes() != decoded.tobytes()
    with pytest.raises(UsageError, match="view='both': use one of stored, decoded"):
        image_grid(tiled, view="both")


def test_a_preview_shows_both_views_where_they_differ(tmp_path: Path):
    whole, tiled = make_set((1, 8, 8)), replace(make_set((1, 8, 8)), parameterisation=(2, 2))

    def width(**sets: Any) -> int:
        with Image.open(save_preview(tmp_path / "preview.png", **sets)) as preview:
            return preview.width

    decoded = image_grid(tiled, view="decoded").width
    assert width(distilled=tiled) > width(distilled=whole) + decoded
    assert width(distilled=tiled, initial=tiled) > width(distilled=whole, initial=whole) + decoded


# --- curves


def test_curves_are_the_same_text_each_time():
    assert loss_curves(make_metrics(150)) == loss_curves(make_metrics(150))


def test_curves_are_one_well_formed_svg_with_the_terms_that_were_logged():
    svg = loss_curves(make_metrics(20))
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "accuracy" not in svg and "network" not in svg  # notes are no terms
    for word in ("loss", "prototype", "covariance", "history", "log spread ratio"):
        assert word in svg
    assert "calibration" not in svg  # zero throughout: nothing to draw on a logarithmic axis
    assert "currentColor" in svg and "#010203" not in svg


def test_without_spread_there_is_one_panel():
    metrics = [{k: v for k, v in line.items() if k != "notes"} for line in make_metrics(20)]
    assert "spread" not in loss_curves(metrics)


@pytest.mark.parametrize(
    "metrics", [[], make_metrics(1), [{"step": 1, "loss": math.nan, "terms": {"covariance": None}, "notes": None}]]
)
def test_curves_of_hardly_anything_are_still_a_picture(metrics: list[dict[str, Any]]):
    assert "<svg" in loss_curves(metrics)


def test_drawing_leaves_matplotlib_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    loss_curves(make_metrics(5))
    assert dict(matplotlib.rcParams) == before


def test_the_moving_median_ignores_single_outliers():
    values = [1.0] * 100
    values[40] = 1e6
    curve = smooth(list(range(100)), values, 5)
    assert set(curve.median) == {1.0}
    assert len(curve.steps) == 100


def test_short_runs_are_not_smoothed_and_long_ones_are_thinned():
    assert smoothing_window(20) == 1
    assert smoothing_window(3000) == 75
    curve = smooth(list(range(3000)), [1.0] * 3000, 75)
    assert len(curve.steps) == 200 and curve.steps[0] == 0 and curve.steps[-1] == 2999


# --- accuracy against cost


@pytest.fixture
def costly(make_run: MakeRun) -> Path:
    """Two seeds of DSDM with two threads, scored at steps 0, 10 and 20; a step takes .1 s; dm without a pool."""
    shared: dict[str, Any] = {"metrics": make_metrics(20), "initial": make_set(), "distilled": make_set()}
    times = {"pool_seconds": 60.0, "pool_core_seconds": 60.0}
    for seed in (0, 1):
        kept = {0: (0.4, 0.5), 10: (0.6 + 0.1 * seed, 0.6 + 0.1 * seed)}
        environment = {"threads": 2}
        make_run(
            f"d{seed}", accuracies=(0.8, 0.9), seed=seed, kept=kept, times=times, environment=environment, **shared
        )
    make_run("random", "random", accuracies=(0.5,), distilled=make_set())
    return make_run("dm", "dm", accuracies=(0.7,), kept={0: (0.45,)}, times={"pool_seconds": 0.0}, **shared).parent


def test_a_curve_counts_core_minutes_from_nothing(costly: Path):
    dm, dsdm = cost_curves(collect(costly))
    assert (dsdm.method, dsdm.runs, dsdm.epochs) == ("dsdm", ("d0", "d1"), 50)
    # The pool took 60 core-seconds, 20 steps 2 s on two threads.
    assert [point.core_minutes for point in dsdm.points] == [
        pytest.approx(v / 60) for v in (60, 60 + 2 * 1.0, 60 + 2 * 2.0)
    ]
    assert [(p.step, p.mean, p.n_sets, p.n_nets) for p in dsdm.points] == [
        (0, pytest.approx(0.45), 2, 2),
        (10, pytest.approx(0.65), 2, 2),
        (20, pytest.approx(0.85), 2, 2),
    ]
    assert dsdm.points[1].std == pytest.approx(math.sqrt(4 * 0.05**2 / 3))
    assert [(p.step, p.core_minutes) for p in dm.points] == [(0, 0), (20, pytest.approx(2 / 60))]


def test_a_curve_counts_the_work_of_cores_where_runs_tell_it_and_says_what_it_counts(costly: Path, make_run: MakeRun):
    told = {"pool_core_seconds": 60.0, "distill_core_seconds": 14.0}
    for name, device in (("core", "cpu"), ("gpu", "cuda")):
        lines = [{**line, "core_seconds": 0.7 * line["step"]} for line in make_metrics(20)]
        times = {**told, "core_seconds_of": device}
        shared = {"initial": make_set(), "distilled": make_set(), "kept": {0: (0.4,), 10: (0.6,)}, "times": times}
        make_run(
            name, "m3d", cell={"label": name}, accuracies=(0.8,), metrics=lines, environment={"threads": 2}, **shared
        )
    curves = {curve.runs[0]: curve for curve in cost_curves(collect(costly))}
    assert [point.core_minutes for point in curves["core"].points] == [
        pytest.approx(v / 60) for v in (60, 60 + 7, 60 + 14)
    ]
    units = ["minutes of the clock x threads", "core-minutes", "GPU minutes"]
    assert [curves[name].unit for name in ("d0", "core", "gpu")] == units
    text = " ".join(parse(render_report(collect(costly))).text.split())
    for unit in units:  # each in a figure of its own
        assert text.count(f"{unit} from nothing (pool and distilling)") == 1


def test_scores_on_the_way_change_no_row(costly: Path):
    rows = make_rows(collect(costly))
    assert [(row.method, row.mean, row.n) for row in rows] == [
        ("random", 0.5, "1 x 1"),
        ("dm", 0.7, "1 x 1"),
        ("dsdm", pytest.approx(0.85), "2 x 2"),
    ]


def test_the_pool_of_an_older_run_is_counted_by_the_runs_threads(costly: Path):
    for seed in (0, 1):
        (costly / f"d{seed}" / "times.json").write_text('{"pool_seconds": 60.0}')
    (dsdm,) = [curve for curve in cost_curves(collect(costly)) if curve.method == "dsdm"]
    assert dsdm.points[0].core_minutes == 2


def test_the_page_has_a_figure_of_accuracy_against_cost_where_there_is_one(costly: Path, make_run: MakeRun):
    page = render_report(collect(costly))
    text = " ".join(parse(page).text.split())
    assert "Accuracy against cost" in text
    assert "toy, IPC 2: convnet, protocol dsdm, 50 epochs" in text
    assert text.count("minutes of the clock x threads from nothing (pool and distilling)") == 1
    assert render_report(collect(costly)) == page
    make_run("plain", "random_mix", accuracies=(0.5,), distilled=make_set())
    assert "Accuracy against cost" not in render_report([read_run(costly / "plain")])


def test_the_figure_is_one_well_formed_svg_with_the_methods():
    points = tuple(CostPoint(step, 1.0 + step, 0.5, std, 1, 1) for step, std in ((0, None), (10, 0.1)))
    curve = CostCurve("dsdm", "toy", 2, "convnet", "dsdm", 50, ("d0",), points)
    svg = cost_figure([curve, curve], ["dsdm", "dm"])
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "dsdm" in svg and "accuracy, %" in svg and "#010203" not in svg
    assert cost_figure([curve, curve], ["dsdm", "dm"]) == svg


# --- page


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order; keeps attributes and text."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def test_the_page_of_a_collection_says_it_all(collection: Path):
    path = write_report(collection)
    assert path == collection / "report.html"
    page = parse(path.read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for part in (
        "3 methods on toy, 2 images per class",
        "dsdm: 74.00 % of the test images right, 13.00 points above the better Random row (random_mix, 61.00 %).",
        "74.00 ± 4.32 (2 × 2)",
        "dsdm: before",
        "dsdm: after 20 steps",
        "each a mosaic of 2 × 2 smaller ones",
        "20 steps against 3 pre-trained networks (convnet)",
        "Protocol dsdm: 50 epochs (the protocol's own number is 1,500), batches of 64, SGD at rate 0.01",
        "potstill distill --dataset toy --out runs/x",
        "torch: 2.13.0",
    ):
        assert part in text, part
    assert "not evaluated" not in text
    # Random, Random mosaic, and DSDM's two; the second seed adds none.
    assert page.text.count("loss terms, weighted") == 1
    assert sum(name == "src" for name, _ in page.attributes) == 4


@pytest.mark.parametrize(("method", "told"), [("dsdm", True), ("dm", False), ("of_a_later_version", False)])
def test_the_pool_is_named_where_it_was_used(make_run: MakeRun, method: str, told: bool):
    """DM draws networks of its own, though its recipe has a pool section as all have."""
    page = render_report([read_run(make_run("a", method, accuracies=[0.5]))])
    assert ("pre-trained networks" in page) is told


def test_a_protocol_that_starts_a_new_optimiser_says_so():
    assert describe_protocol("dc", 1001) == (
        "Protocol dc: 1,001 epochs, batches of 256, SGD at rate 0.01, momentum 0.9, weight decay 0.0005, "
        "rate times 0.1 at 50% of the epochs by a new optimiser, augmentation color, crop, cutout, flip, scale, rotate "
        "(mirroring only where the label keeps), one of them per batch, no CutMix."
    )


def test_the_page_needs_nothing_from_elsewhere(collection: Path):
    text = write_report(collection).read_text(encoding="utf-8")
    page = parse(text)
    assert not re.search(r"https?:|//\w", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))
    assert not page.tags & {"script", "link", "iframe", "object"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert (value or "").startswith(("data:", "#"))


def test_ids_on_the_page_are_unique_and_references_meet_them(collection: Path, make_run: MakeRun):
    make_run("e", accuracies=(0.7,), distilled=make_set(), metrics=make_metrics(20), init={"kind": "real"})
    text = write_report(collection).read_text(encoding="utf-8")
    ids = [value for name, value in parse(text).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_the_page_is_the_same_text_each_time(collection: Path):
    first = write_report(collection).read_bytes()
    assert write_report(collection).read_bytes() == first


def test_names_are_escaped(make_run: MakeRun):
    synthetic = make_set(classes=("<script>alert(1)</script>", '"&', "c"))
    folder = make_run(
        "<b>",
        accuracies=(0.5,),
        distilled=synthetic,
        environment={"command": "<script>", "note": "</pre><script>"},
        init={"kind": "<img src=x>"},
    )
    text = write_report(folder).read_text(encoding="utf-8")
    page = parse(text)
    assert "script" not in page.tags
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_an_unfinished_run_says_what_is_missing(make_run: MakeRun):
    folder = make_run("d", initial=make_set(), metrics=make_metrics(7))
    text = " ".join(parse(write_report(folder).read_text(encoding="utf-8")).text.split())
    assert "d: not finished (step 7 of 20): there is no distilled set yet." in text
    assert "d: not evaluated yet: there are no scores." in text
    assert "dsdm: before the first step" in text
    assert "Nothing has been evaluated yet." in text


def test_a_bare_config_is_enough_for_a_page(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("{data: {name: toy}, method: {name: new_method, steps: 5}, ipc: 1}")
    text = " ".join(parse(write_report(tmp_path).read_text(encoding="utf-8")).text.split())
    assert "new_method on toy, 1 image per class" in text
    assert "There are no synthetic images yet." in text
    assert "No run has logged a step." in text


def test_an_unknown_protocol_is_named_as_such(make_run: MakeRun):
    folder = make_run("d", accuracies=(0.5,), protocol="future")
    assert "does not know the protocol" in render_report(collect(folder))


def test_many_classes_are_cut_and_the_page_says_so(make_run: MakeRun):
    folder = make_run("d", distilled=make_set(classes=tuple(f"class{i}" for i in range(30)), ipc=1))
    text = " ".join(render_report(collect(folder)).split())
    assert "The first 20 of 30 classes: class0" in text
    assert "class20" not in text


# --- damaged and missing files


def test_a_folder_without_runs_names_what_was_expected(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no run; expected a config\.yaml"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        collect(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a run folder"):
        read_run(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_run_inside_a_collection_may_stand_beside_other_folders(collection: Path):
    (collection / "notes").mkdir()
    (collection / "todo.txt").write_text("x")
    assert len(collect(collection)) == 4


def test_a_half_written_last_line_is_dropped(make_run: MakeRun):
    folder = make_run("d", metrics=make_metrics(5))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "loss": 0.\xc3')
    assert [line["step"] for line in read_run(folder).metrics] == [1, 2, 3, 4, 5]


def test_a_whole_last_line_without_newline_is_kept(make_run: MakeRun):
    folder = make_run("d", metrics=make_metrics(5))
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    assert len(read_run(folder).metrics) == 5


@pytest.mark.parametrize("line", ['{"step": 2, "lo', "[2]", '{"loss": 1.0}', '{"step": "two"}'])
def test_a_damaged_line_amid_the_metrics_is_named(make_run: MakeRun, line: str):
    folder = make_run("d", metrics=make_metrics(3))
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: "):
        read_run(folder)


@pytest.mark.parametrize("file", ["env.json", "times.json", "scores/0.json"])
def test_damaged_json_is_named_with_its_line(make_run: MakeRun, file: str):
    folder = make_run("d", accuracies=(0.5,), times={"pool_seconds": 1.0})
    (folder / file).write_text('{\n"a": 1,\n"b": }')
    with pytest.raises(DataError, match=rf"{file}, line 3: not valid JSON"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"accuracy": 52.0}, "accuracy is 52.0; expected a share"),
        ({"accuracy": math.nan}, "expected a share"),
        ({"accuracy": True}, "accuracy is True"),
        ({"epochs": None}, "epochs is None"),
        ({"schema_version": 2}, "schema_version 2"),
    ],
)
def test_a_score_with_impossible_values_is_refused(make_run: MakeRun, change: dict[str, Any], complaint: str):
    folder = make_run("d", accuracies=(0.5,))
    path = folder / "scores" / "0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=complaint):
        read_run(folder)


def test_scores_of_two_sets_in_one_run_are_refused(make_run: MakeRun):
    folder = make_run("d", accuracies=(0.5, 0.6))
    path = folder / "scores" / "1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "set_hash": "older"}))
    with pytest.raises(DataError, match="scores of 2 different sets"):
        read_run(folder)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: [", "not valid YAML .*line 2"),
        ("[" * 20_000, "nested too deeply"),
        ("a: &a [1]\nb: *a", "aliases such as"),
        ("- 1", "data.name is None"),
        ("{data: {name: x}, method: dsdm, ipc: 1}", "method.name is None"),
        ("{data: {name: x}, method: {name: y}, ipc: many}", "ipc is 'many'"),
        ("{data: {name: x}, method: {name: y}, ipc: 1, factor: 2}", "factor is 2"),
    ],
)
def test_a_damaged_recipe_is_named(tmp_path: Path, text: str, complaint: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_run(tmp_path)


def test_a_damaged_set_is_named(make_run: MakeRun):
    folder = make_run("d", distilled=make_set())
    (folder / "synthetic" / "distilled.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"distilled\.safetensors"):
        write_report(folder)


# --- sets in few bits


def few_bits(folder: Path, accuracy: float, bits: int = 8) -> None:
    """What `evaluate --stored-bits` leaves beside the scores of the exact set of a run."""
    rounded = SyntheticSet.load(folder / "synthetic").quantised(bits)
    score = json.loads((folder / "scores" / "0.json").read_text())
    place = folder / f"stored_bits_{bits}"
    (place / "scores").mkdir(parents=True)
    (place / "distilled.safetensors").write_bytes(rounded.to_bytes())
    stored = {"bytes_stored": rounded.bytes_stored, "set_hash": rounded.digest(), "accuracy": accuracy}
    (place / "scores" / "0.json").write_text(json.dumps({**score, **stored}))


def test_a_set_in_few_bits_has_a_row_with_its_own_numbers_and_bytes(make_run: MakeRun) -> None:
    exact = make_set()  # 3 classes x 2 images of 1 x 8 x 8
    for name, accuracy in (("random", 0.5), ("dsdm", 0.8)):
        folder = make_run(name, name, accuracies=(accuracy,), distilled=exact, bytes_stored=exact.bytes_stored)
        few_bits(folder, accuracy - 0.1)
    rows = make_rows(collect(folder.parent))
    told = [(r.method, r.stored_bits, r.mean, r.numbers_stored, r.bytes_stored) for r in rows]
    assert told == [
        ("random", 32, 0.5, 384, 1536),
        ("dsdm", 32, 0.8, 384, 1536),
        ("random", 8, pytest.approx(0.4), 384 + 2, 384 + 8),
        ("dsdm", 8, pytest.approx(0.7), 384 + 2, 384 + 8),
    ]
    assert [row.gain for row in rows] == [None, pytest.approx(0.3), None, pytest.approx(0.3)]
    text = to_markdown(rows)
    assert "| dsdm, 8 bits |" in text and "| 392 |" in text and "same data set, IPC, bits, network" in text


def test_a_gain_is_counted_from_no_random_row_of_another_width(make_run: MakeRun) -> None:
    make_run("random", accuracies=(0.5,), method="random", distilled=make_set())
    folder = make_run("dsdm", accuracies=(0.8,), distilled=make_set())
    few_bits(folder, 0.7, bits=4)
    gains = {row.stored_bits: row.gain for row in make_rows(collect(folder.parent)) if row.method == "dsdm"}
    assert gains == {32: pytest.approx(0.3), 4: None}


def test_the_page_tells_rows_of_one_name_apart_by_their_bits(make_run: MakeRun) -> None:
    folder = make_run("dsdm", accuracies=(0.8,), distilled=make_set(), failure="out of luck")
    few_bits(folder, 0.7)
    rows = make_rows(collect(folder))
    assert [row.failure for row in rows] == ["out of luck", ""]
    page = render_report(collect(folder))
    assert "dsdm (32 bits a number): 80.00 %" in page and "dsdm (8 bits a number): 70.00 %" in page
