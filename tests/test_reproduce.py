"""The paper's tables and figures: what is shipped, and the command that fills them from runs of any machine."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.cli import main
from potstill.cli.options import print_estimates
from potstill.cli.reproduce import _by_table
from potstill.errors import Interrupted, UsageError
from potstill.machine import runtime as runtimes
from potstill.methods import METHODS
from potstill.recipe import Recipe
from potstill.report.paper import fill
from potstill.report.paper_page import render_page
from potstill.report.paper_tables import Filled, to_markdown
from potstill.report.stored import RECORDS, StoredRun
from potstill.run import paper, timing
from potstill.run.distil import check_kept_steps
from potstill.run.estimate import Estimate
from potstill.run.paper import SCHEDULES, TABLES, choose, read_table, rounds, with_kept_steps
from potstill.run.progress import Reporter
from potstill.run.reproduce import RUNS, Progress, estimates
from potstill.run.spread import Spread
from potstill.run.study import parse_plan, read_study
from potstill.spec import DatasetSpec, LabelledDataset, Split

RESULTS = Path(__file__).parents[1] / "results"
#: Seconds rather than days: digits, one step, one small network.
TINY_KEYS = """--data.name digits --evaluation.protocol mnist --pool.members 1 --pool.epochs 1
    --pool.network mlp:width=8 --network mlp:width=8 --epochs 1 --nets 1 --threads 1 --device cpu --precision fp32
    --compile false"""
TINY = TINY_KEYS.split()
#: A table of two cells, one of which has no method.
SMALL = """
title: "Small $ <b>table</b>"
about: Two cells.
notes:
  - on: {cell: random, ipc: 1}
    text: Not what it seems.
base: {data.name: digits, factor: [1, 1]}
vary: {ipc: [1, 2]}
cells:
  random: {method: random, paper: [14.4±2.0, 26.0]}
  alchemy: {method: alchemy, label: "=alchemy", paper: [null, 99.0]}
"""

#: A set with one on its way that a figure shows, and networks on the whole data.
ALL_KINDS = """
title: All kinds
draw: steps
base: {data.name: digits, factor: [1, 1], ipc: 1}
cells:
  dm: {method: {name: dm, steps: 2}, saving: {keep: [1]}, paper: 14.4}
  whole: {whole: true, paper: 99.0}
"""

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Reproduce into `tmp_path/out` with tiny keys: exit code, stdout, stderr."""
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(tmp_path / "cache"))

    def run(*words: str, out: str = "out") -> tuple[int, str, str]:
        code = main(["reproduce", *words, "--out", str(tmp_path / out), *TINY])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Table 4 is the small one."""
    text_of, small = paper.read_text, getattr(request, "param", SMALL)
    monkeypatch.setattr(paper, "read_text", lambda name: small if name == "table4" else text_of(name))
    paper.read_plan.cache_clear()
    yield
    paper.read_plan.cache_clear()


def cells_of(out: Path, table: str) -> list[dict[str, Any]]:
    return json.loads((out / f"{table}.json").read_text())["cells"]


# --- what is shipped


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_a_method_that_exists_resolves_in_less_than_a_second(name: str, schedule: str) -> None:
    paper.read_plan.cache_clear()
    started = time.process_time()
    table = read_table(name, schedule)
    assert time.process_time() - started < 1
    assert {cell.name: cell.missing for cell in table.cells if cell.method in METHODS and cell.missing} == {}
    assert all(f"no method {cell.method}" in cell.missing for cell in table.cells if cell.method not in METHODS)
    assert table.plan.title and table.plan.about


@pytest.mark.parametrize(
    ("table", "label", "at", "mean", "std"),
    [
        ("table1", "dsdm", {"dataset": "cifar10", "ipc": 10}, 66.5, 0.3),
        ("table1", "random", {"dataset": "cifar100", "ipc": 50}, 15.0, 0.4),
        ("table1", "dc", {"dataset": "mnist", "ipc": 1}, 91.7, 0.5),
        ("table1", "cafe_dsa", {"dataset": "svhn", "ipc": 50}, 82.3, 0.4),
        ("table1", "kcenter", {"dataset": "fashion_mnist", "ipc": 10}, 54.7, 1.5),
        ("table1", "idm", {"dataset": "cifar100", "ipc": 1}, 20.1, 0.3),
        ("table1", "dd", {"dataset": "mnist", "ipc": 10}, 79.5, 8.1),
        ("table1", "m3d", {"dataset": "svhn", "ipc": 10}, 83.3, 0.7),
        ("table1", "whole", {"dataset": "cifar10"}, 84.8, 0.1),
        ("table2", "herding", {"ipc": 20}, 72.9, None),
        ("table3", "dsdm", {"ipc": 50, "network": "ResNet-10"}, 70.8, None),
        ("table3", "dm", {"ipc": 10, "network": "DenseNet-121"}, 48.9, None),
        ("table4", "prototypes", {"ipc": 50}, 68.8, None),
        ("table4", "diversity", {"ipc": 10}, 66.2, None),
        ("figure5", "M", {"ipc": 50, "pool.members": 10}, 75.8, 0.3),
        ("figure6", "lambda_1", {"ipc": 50, "method.covariance_weight": 0.01}, 72.2, None),
    ],
)
def test_the_papers_numbers_stand_in_its_cells(table: str, label: str, at: Any, mean: float, std: float | None) -> None:
    (cell,) = [cell for cell in read_table(table).cells if cell.label == label and cell.draft.at == at]
    assert (cell.draft.paper, cell.draft.paper_std) == (mean, std)


def test_table_1_has_each_cell_that_the_paper_fills_and_none_of_its_dashes() -> None:
    cells = read_table("table1").cells
    count = {label: sum(cell.label == label for cell in cells) for label in dict.fromkeys(c.label for c in cells)}
    assert count == dict.fromkeys(count, 15) | {"dd": 2, "dc": 14, "idm": 6, "whole": 5}


def test_the_known_errors_of_the_papers_tables_are_footnoted() -> None:
    noted = {cell.name for name in TABLES for cell in read_table(name).cells if cell.notes}
    assert (
        "table1: random, dataset cifar100, ipc 10" in noted and "table1: random, dataset cifar10, ipc 10" not in noted
    )
    assert {f"table3: {m}, ipc 10, network DenseNet-121" for m in ("dsa", "dm", "m3d")} <= noted
    assert "table4: diversity, ipc 10" in noted and "table4: diversity, ipc 50" not in noted
    assert "figure6: lambda_1, ipc 50, method.covariance_weight 0.01" in noted


def test_the_published_schedule_is_the_papers_and_the_short_one_says_what_it_is() -> None:
    (cell,) = choose(read_table("table4").cells, {"cell": ["dsdm"], "ipc": ["10"]})
    assert cell.recipe and cell.recipe.method.steps == 10_000 and cell.recipe.pool.members == 10
    assert cell.recipe.pool.training().epochs == 20 and cell.recipe.evaluation.nets == 5
    (dc,) = choose(read_table("table1").cells, {"method": ["dc"], "dataset": ["mnist"], "ipc": ["50"]})
    assert dc.recipe and dc.recipe.method.steps == 50_000
    assert "not the published one" in paper.describe_schedule("short")
    assert "Set over it: method.steps=7" in paper.describe_schedule("short", [{"method.steps": 7}])


def test_keys_of_one_method_leave_the_others_alone() -> None:
    over = [{"methods.dm.steps": 7}, {"ipc": 3}]
    found = {cell.label: cell.recipe for cell in read_table("figure8", "short", over).cells}
    assert found["dm"] and found["dsdm"] and (found["dm"].method.steps, found["dsdm"].method.steps) == (7, 2000)
    assert found["dm"].ipc == 3
    with pytest.raises(UsageError, match="unknown method 'alchemy'"):
        read_table("figure8", "short", [{"methods.alchemy.steps": 7}])


def test_a_value_on_other_data_has_no_difference_to_the_papers() -> None:
    cells = [read_table("table4", over=over).cells[0] for over in ([], [{"data.name": "digits"}], [{"ipc": 3}])]
    assert [cell.comparable for cell in cells] == [True, False, False]


def test_tables_that_share_a_set_share_its_run_and_keep_what_any_figure_wants() -> None:
    only = {"cell": ["dsdm"], "ipc": ["10"], "dataset": ["cifar10"], "network": ["convnet"]}
    names = ("table1", "table3", "table4", "figure4", "figure7", "figure8")
    cells = [cell for name in names for cell in choose(read_table(name).cells, only)]
    assert len({cell.stem for cell in cells}) == 1
    kept = with_kept_steps(cells, "paper", [])
    assert all(cell.recipe and 2000 in cell.recipe.saving.keep for cell in kept)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sets_are_kept_at_steps_that_their_schedule_comes_to(schedule: str) -> None:
    for cell in with_kept_steps(read_table("figure4", schedule).cells, schedule, []):
        assert cell.recipe and 100 in cell.recipe.saving.keep
        check_kept_steps(cell.recipe)


def test_a_set_is_scored_by_one_network_after_another() -> None:
    cells = choose(read_table("table3").cells, {"cell": ["dsdm"], "ipc": ["10"]})
    jobs = [(cell, cell.cell(0)) for cell in (*cells, *cells)]
    assert [[item.terms[0] for item, _ in group] for group in rounds(jobs)] == [
        ["convnet"],
        ["resnet10"],
        ["densenet121_k12"],
    ]


# --- studies say more than they did


def test_values_have_names_and_go_by_ipc_and_a_null_is_no_cell(tmp_path: Path) -> None:
    text = """
    vary: {data: {small: {data.name: digits}, large: {data.name: mnist, seed: 3}}, ipc: [1, 10]}
    cells:
      a: {method: {name: dsdm, steps: {1: 5, 10: 7}}, factor: [2, 2], paper: [[50±1, 60], [null, unknown]]}
    """
    (tmp_path / "s.yaml").write_text(text)
    cells = read_study(tmp_path / "s.yaml").cells
    assert [(c.recipe.data.name, c.recipe.ipc, c.recipe.seed, c.recipe.method.steps, c.paper) for c in cells] == [
        ("digits", 1, 0, 5, 50.0),
        ("digits", 10, 0, 7, 60.0),
        ("mnist", 10, 3, 7, None),
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("vary: {ipc: [1, 2]}\ncells: {a: {paper: [1.0]}}", "1 values where ipc has 2"),
        ("cells: {a: {paper: 60 or so}}", "need an accuracy in percent"),
        ("notes: {a: b}\ncells: {a: {}}", "notes="),
        ("cells: {a: {whole: 3}}", "whole=3"),
        ("vary: {ipc: {few: 1}}\ncells: {a: {}}", "vary.ipc.few: expected keys and values"),
    ],
)
def test_a_plan_that_is_none_is_refused_in_one_line(text: str, named: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_plan(text, "mine.yaml")
    assert str(refused.value).startswith("mine.yaml: ") and named in str(refused.value)


def test_an_ipc_of_which_nothing_is_said_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("base: {ipc: 3}\ncells: {a: {factor: {1: [1, 1], 2: [2, 2]}}}")
    with pytest.raises(UsageError, match="ipc=3: a key says its value for IPC 1, 2 only"):
        read_study(tmp_path / "s.yaml")


# --- what is asked for


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "nothing to reproduce: name one or more of table1"),
        (["table9"], "'table9': nothing of that name in the paper"),
        (["table1", "--only", "ipc=7"], "no such cell; there are: ipc 1, 10, 50"),
        (["table1", "--only", "colour=red"], "unknown key; known are dataset, ipc, method"),
        (["table4", "--method.stepz", "3"], "did you mean method.steps"),
        (["table4", "--collect", "--merge", "nowhere"], "nowhere: holds no runs"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(words: list[str], named: str, call: Call) -> None:
    code, _, said = call(*words)
    assert code in (2, 3) and named in said and len(said.splitlines()) == 1


def test_only_takes_either_value_of_a_key_that_is_given_twice() -> None:
    cells = choose(read_table("table1").cells, {"dataset": ["cifar10"], "ipc": ["1", "10"], "method": ["dsdm", "dm"]})
    assert len(cells) == 4


def test_cells_are_chosen_by_a_factor_that_is_one_number() -> None:
    cells = read_table("table1", over=[{"factor": 3}]).cells
    assert {cell.facts["factor"] for cell in cells} == {"3"}


def test_a_table_of_many_runs_is_filled_without_hashing_a_recipe_for_each_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[Recipe] = []
    table, told = read_table("figure8"), Recipe.hash
    runs = [StoredRun(f"run{i}", "here", exact=True) for i in range(20)]
    monkeypatch.setattr(Recipe, "hash", lambda recipe: hashed.append(recipe) or told(recipe))
    assert not any(entry.scores for entry in fill(table, runs))
    assert len(hashed) <= len(table.cells)


def test_a_dry_run_counts_tasks_names_what_cannot_run_and_writes_nothing(
    small: None, call: Call, tmp_path: Path
) -> None:
    code, told, _ = call("table4", "--dry-run", "--seeds", "2", "--json", "-q")
    record = json.loads(told)
    assert code == 0 and [cell["stands"] for cell in record["cells"][1:]] == ["new"] * 4
    assert "no method alchemy" in record["cells"][0]["stands"]
    assert record["seconds"] > 0 and record["disk_mb"] > 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_dry_run_of_table_1_times_each_shape_once_whatever_method_data_ipc_and_length(
    bf16: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five image sets of two shapes, three IPCs, three methods: 45 cells. With bf16 units short work stays in fp32."""

    def load(recipe: Recipe) -> LabelledDataset:
        shape = (1, 28, 28) if "mnist" in recipe.data.name else (3, 32, 32)
        labels = torch.arange(3).repeat_interleave(200)
        split = Split(torch.zeros(600, *shape, dtype=torch.uint8), labels)
        mean = (0.5,) * shape[0]
        name, classes = recipe.data.name, ("a", "b", "c")
        return LabelledDataset(DatasetSpec(name, shape, classes, mean, mean, True, fingerprint=name), split, split)

    monkeypatch.setattr(runtimes, "has_bf16", lambda _: bf16)
    monkeypatch.setattr(timing, "time_passes", lambda *_: timing.Timed(1e-3, 0.01, 10**8))
    monkeypatch.setattr(timing, "time_compiled", lambda *_: (30.0, 0.05))
    cells = choose(read_table("table1").cells, {"method": ["herding", "dm", "dsdm"]})
    found = estimates(cells, load, out=None, reporter=Reporter(), cache=tmp_path)
    kinds = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert len(found) == 45 and all(e.stands == "new" and e.seconds and e.disk_mb and e.memory_mb for e in found)
    small, compiling, large = "convnet on 1x28x28", "what compiling gains, on convnet on 1x28x28", "convnet on 3x32x32"
    passes = 1 + bf16
    assert kinds[:-1] == [*[small] * passes, compiling, *[large] * passes]
    # Of each data set one pool.
    assert len([e for e in found if e.pool_seconds]) == 5


def test_a_dry_run_of_several_tables_has_a_line_for_each_and_each_reason_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hour: dict[str, Any] = {"distill_seconds": 3600.0, "evaluate_seconds": 60.0, "nets": 2, "method": "dm"}
    found = [Estimate(name, "new", table="table1", **hour) for name in "ab"]
    found += [Estimate(f"{table}: c", "fails: no data", table=table) for table in ("table1", "table2")]
    assert _by_table(["table1"], found) is None
    print_estimates(argparse.Namespace(json=False), found, 1, _by_table(["table1", "table2"], found))
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:9] == ["table1", "3", "2", "1", "6", "0", "s", "2.0", "h"]
    assert shown[2].split()[:5] == ["table2", "1", "0", "1", "0"]
    assert "2 in 61 min" in shown[3] and shown[4] == "fails: table1: c and 1 more: no data"
    assert shown[5].startswith("4 cells, about 2.0 h (2.0 core-hours, 6 tasks)")


def test_what_is_ahead_is_told_at_the_pace_so_far(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    cells = [Estimate(name, "new", evaluate_seconds=60.0) for name in "abc"] + [Estimate("d", "finished")]
    progress = Progress(Reporter(), 1, cells)
    assert capsys.readouterr().err == "=== 3 cells, about 3 min\n"
    now[0] += 120
    progress.tick("a")
    progress.tick("d")
    assert capsys.readouterr().err == "=== 1 of 3 cells done after 2 min, about 4 min left\n"


# --- a whole run


def test_a_table_fills_and_what_fails_is_seen_beside_the_rest(small: None, call: Call, tmp_path: Path) -> None:
    code, told, said = call("table4", "-q", "--seeds", "2")
    assert code == 1 and "1 of 5 tasks failed or cannot be run" in said
    assert "table4: =alchemy, ipc 2: this version of potstill has no method alchemy" in told
    one, two, none = cells_of(tmp_path / "out", "table4")
    assert (one["paper"], one["paper_std"], one["n_sets"], one["n_nets"]) == (14.4, 2.0, 2, 1)
    assert one["difference"] == pytest.approx(100 * one["mean"] - 14.4) and one["recipe_hash"].count(",") == 1
    assert one["made_by"] == "no steps" and one["hardware"] and one["evaluate_seconds"] > 0
    assert two["mean"] is not None and none["mean"] is None and "alchemy" in none["empty_because"]
    text = (tmp_path / "out" / "table4.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2].startswith(f"| random | {100 * one['mean']:.2f} +- ") and "14.4 +- 2.0 \\[1\\]" in rows[2]
    assert rows[3] == "| \\=alchemy |  | – |  | – | 99.0 | – |"
    assert "\\[1\\] Not what it seems." in text and "no method alchemy (1 cell)" in text


@pytest.mark.parametrize("small", [ALL_KINDS], indirect=True)
def test_an_engine_does_all_networks_of_a_reproduction_together(
    small: None, call: Call, tmp_path: Path, monkeypatch: Any
) -> None:
    def scores(out: str) -> dict[str, float]:
        places = sorted((tmp_path / out / RUNS).glob("*/scores/**/*.json"))
        return {p.relative_to(tmp_path / out).as_posix(): json.loads(p.read_text())["accuracy"] for p in places}

    plain, after = Spread.__call__, list[dict[str, float]]()
    monkeypatch.setattr(Spread, "__call__", lambda spread: (plain(spread), after.append(scores("spread")))[0])
    code, told, _ = call("table4", "-q")
    assert code == 0, told
    code, _, said = call("table4", "--engine", "serial", out="spread")
    assert code == 0 and after == [scores("spread")] == [scores("out")] and len(after[0]) == 4
    assert "=== 3 cells, about" in said and "networks 4/4" in said and "in all about" in said
    assert "3 of 3 cells done" in said


def test_the_sets_on_the_way_of_any_table_are_scored_where_asked_for(
    call: Call, tmp_path: Path, monkeypatch: Any
) -> None:
    words = ["table1", "--only", "method=dm,ipc=1", "--methods.dm.steps", "2", "-q"]
    assert call(*words, "--keep-snapshots", "1", "--curve")[0] == 0
    (cell,) = [c for c in cells_of(tmp_path / "out", "table1") if c["mean"] is not None and c["dataset"] == "digits"][
        :1
    ]
    assert cell["test_selected"]["of"] == 3 and cell["test_selected"]["mean"] >= cell["mean"]


def test_names_are_plain_text_in_every_form(small: None, call: Call, tmp_path: Path) -> None:
    call("table4", "-q", "--collect")
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "table4.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["cell"] for row in rows] == ["random", "random", "'=alchemy"]
    assert "Small \\$ \\textless{}b\\textgreater{}table" in (out / "table4.tex").read_text(encoding="utf-8")
    assert "Small $ &lt;b&gt;table&lt;/b&gt;" in (out / "index.html").read_text(encoding="utf-8")
    assert "Small $ &lt;b>table" in (out / "results.md").read_text(encoding="utf-8")


def test_the_same_call_goes_on_and_does_nothing_again(small: None, call: Call, tmp_path: Path) -> None:
    def stamps() -> dict[str, int]:
        found = (tmp_path / "out" / RUNS).rglob("*.json*")
        return {str(p): p.stat().st_mtime_ns for p in found if "scores" in str(p) or p.name == "times.json"}

    call("table4", "--only", "cell=random,ipc=1", "-q")
    first = stamps()
    assert len(cells_of(tmp_path / "out", "table4")) == 3 and len(first) == 2
    call("table4", "--only", "cell=random", "-q")
    assert len(stamps()) == 4 and first.items() <= stamps().items()


def test_what_is_interrupted_shows_what_there_is(small: None, call: Call, tmp_path: Path, monkeypatch: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted("interrupted after step 3")

    call("table4", "--only", "cell=random,ipc=1", "-q")
    (tmp_path / "out" / "table4.md").unlink()
    monkeypatch.setattr("potstill.run.reproduce.run_study", stop)
    code, told, said = call("table4", "--only", "cell=random", "-q")
    assert (code, told, said) == (130, "", "potstill: interrupted after step 3\n")
    assert "1 of 3 cells are measured" in (tmp_path / "out" / "table4.md").read_text()


def test_a_dry_run_knows_that_a_sets_own_steps_have_scored_it(call: Call) -> None:
    keys = ["--methods.dd.steps", "1", "--methods.dd.inner", "2", "--methods.dd.epochs", "1"]
    keys += ["--evaluation.epochs", "null"]
    words = ["table1", "--only", "method=dd", "-q", *keys]
    assert call(*words)[0] == 0
    (task,) = json.loads(call(*words, "--dry-run", "--json")[1])["cells"]
    assert task["stands"] == "finished"


@pytest.mark.parametrize("where", ["timing.Timings.set_of", "timing.Timings.scores_of", "estimate.missing_networks"])
def test_an_interrupted_dry_run_ends_at_once(where: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted("interrupted")

    monkeypatch.setattr(f"potstill.run.{where}", stop)
    only = "method=whole" if where.startswith("estimate") else "method=random,ipc=1"
    code, told, said = call("table1", "--only", only, "--dry-run", "-q")
    assert (code, told, said) == (130, "", "potstill: interrupted\n")


@pytest.mark.parametrize(
    "small",
    ["vary: {dataset: {a: {data.name: svhn}, b: {data.name: digits}}}\ncells: {random: {method: random, ipc: 1}}"],
    indirect=True,
)
def test_data_that_are_missing_end_their_own_cells_only(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "-q"]
    assert main(["reproduce", "table4", *TINY[2:], *words]) == 1
    said = capsys.readouterr()
    assert "table4: random, dataset a: svhn" in said.out and "1 of 2 tasks failed" in said.err
    assert [cell["mean"] is None for cell in cells_of(tmp_path / "out", "table4")] == [True, False]


def test_the_whole_data_are_a_cell(call: Call, tmp_path: Path) -> None:
    code, told, _ = call("table1", "--only", "method=whole,dataset=digits", "-q")
    assert code == 0 and "whole, mnist" in told and "whole, cifar100" in told
    cells = [cell for cell in cells_of(tmp_path / "out", "table1") if cell["cell"] == "whole"]
    assert {cell["made_by"] for cell in cells} == {"the whole training split"} and cells[0]["n_nets"] == 1


#: And two networks of the pool; keys that come later win.
TWO_STEPS = ["--method.steps", "2", "--method.real_batch", "8", "--saving.keep", "[1]", "--pool.members", "2"]


def run_tiny(out: Path, *names: str) -> int:
    return main(["reproduce", *names, "--only", "ipc=10", "--out", str(out), "-q", *TINY, *TWO_STEPS])


def assert_drawn(out: Path, *names: str) -> None:
    for name in names:
        assert (out / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(names) and "<script" not in page and "http" not in page.partition("<body>")[2]


def test_an_ablation_and_the_figures_of_its_sets_run_from_beginning_to_end(tmp_path: Path, call: Call) -> None:
    out = tmp_path / "out"
    assert run_tiny(out, "table4", "figure4", "figure8") == 0
    assert [cell["mean"] is not None for cell in cells_of(out, "table4")] == [True, False] * 4
    assert_drawn(out, "figure4", "figure8")
    runs = {run["name"]: run for run in json.loads((out / RECORDS).read_text())["runs"]}
    (name,) = [cell["runs"][0] for cell in cells_of(out, "figure4") if cell["cell"] == "dm" and cell["ipc"] == 10]
    assert set(runs[name]["kept"]) == {"0", "1"} and runs[name]["steps"] == 2 and runs[name]["recipe"]["ipc"] == 10


@pytest.mark.slow
def test_the_figures_over_a_key_are_drawn_from_what_is_stored(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_tiny(out, "figure5", "figure6", "--methods.dsdm.covariance_weight", "1") == 0
    assert main(["reproduce", "figure5", "figure6", "--collect", "--merge", str(out), "--out", str(tmp_path / "again"),
                 "-q", *TINY, "--methods.dsdm.covariance_weight", "1", *TWO_STEPS]) == 0  # fmt: skip
    assert_drawn(tmp_path / "again", "figure5", "figure6")
    for name in ("figure5.svg", "figure6.svg"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_features_are_measured_once_and_drawn_from_what_is_stored(tmp_path: Path, call: Call) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "out"
    assert run_tiny(out, "figure3", "figure7") == 0
    stamp = (out / "figure7-features.json").stat().st_mtime_ns
    assert run_tiny(out, "figure3", "figure7") == 0 and (out / "figure7-features.json").stat().st_mtime_ns == stamp
    assert_drawn(out, "figure3", "figure7")
    networks = json.loads((out / "figure3-features.json").read_text())["cells"][0]["networks"]
    assert [len(network["distilled"]) for network in networks] == [40, 40]
    assert networks[0]["loss"] == pytest.approx(networks[0]["prototype"] + networks[0]["covariance"])
    embedded = json.loads((out / "figure7-features.json").read_text())["cells"]
    assert [(c["cell"], len(c["networks"][0]["distilled"])) for c in embedded] == [("dm", 10), ("dsdm", 40)]


def test_the_best_set_on_the_way_is_told_and_is_no_result(small: None, call: Call, tmp_path: Path) -> None:
    call("table4", "--only", "ipc=1,cell=random", "-q")
    file = tmp_path / "out" / RECORDS
    record = json.loads(file.read_text())
    (score,) = record["runs"][0]["scores"]
    record["runs"][0]["steps"] = 8
    record["runs"][0]["kept"] = {"4": [score | {"accuracy": 0.9}], "6": [score | {"accuracy": 0.7}]}
    file.write_text(json.dumps(record))
    code, _, said = call("table4", "--collect", "--merge", str(file), "-q", out="other")
    assert code == 0, said
    (cell, *_) = cells_of(tmp_path / "other", "table4")
    assert cell["mean"] == score["accuracy"]
    assert cell["test_selected"] == {"mean": 0.9, "std": None, "step": 4, "of": 3}
    for name in ("table4.md", "index.html"):
        text = (tmp_path / "other" / name).read_text()
        assert "best on test, not a result" in text and "90.00, step 4, of 3" in text and "no result of ours" in text
    assert "not a result" not in (tmp_path / "out" / "table4.md").read_text()


@pytest.mark.parametrize(
    ("table", "augment", "shown"),
    [("table2", None, "dsa (= dc)"), ("table2", "time_shift_gain_mask", "dsa"), ("table1", None, "dsa")],
)
def test_dsa_stands_as_dc_where_its_table_is_of_sound(table: str, augment: str | None, shown: str) -> None:
    over = [{"methods": {"dsa": {"augment": augment}}}] if augment else []
    cells = read_table(table, "paper", over)
    filled = Filled(cells, tuple(fill(cells, [])), "")
    labels = {label for panel in filled.panels for label, _ in panel.rows}
    assert {label for label in labels if label.startswith("dsa")} == {shown}
    assert f"| {shown} |" in to_markdown(filled) and f"<td>{shown}</td>" in render_page([filled], {})
    same = {record["same_as"] for record in filled.to_json()["cells"] if record["cell"] == "dsa"}
    assert same == {"dc" if "=" in shown else ""}


# --- runs of several machines


def test_rows_of_two_machines_merge_and_a_copy_of_the_records_is_enough(
    small: None, call: Call, tmp_path: Path
) -> None:
    call("table4", "--only", "ipc=1,cell=random", "-q", out="here")
    call("table4", "--only", "cell=random", "--seeds", "2", "-q", out="there")
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "there" / RECORDS, tmp_path / "copy")
    code, _, _ = call("table4", "--collect", "--merge", str(tmp_path / "copy"), "-q", out="here")
    one, two, _ = cells_of(tmp_path / "here", "table4")
    assert code == 0 and (one["n_sets"], two["n_sets"]) == (2, 2)


def test_seeds_are_sets_of_each_cell_of_table_1_wherever_they_were_made(call: Call, tmp_path: Path) -> None:
    """Three sets of two cells, scored by two networks each; one machine made the first set, an engine the others."""
    words = ["table1", "--only", "ipc=1,ipc=10,method=random", "--evaluation.nets", "2", "-q"]
    assert call(*words, "--only", "dataset=digits", out="here")[0] == 0
    assert call(*words, "--seeds", "3", "--engine", "serial", out="there")[0] == 0
    runs = sorted(path.name for path in (tmp_path / "there" / RUNS).iterdir() if path.is_dir())
    stems = {name.rpartition("-seed")[0] for name in runs}
    assert {re.sub("-[0-9a-f]{12}$", "", stem) for stem in stems} == {"digits-ipc1-random", "digits-ipc10-random"}
    assert runs == sorted(f"{stem}-seed{i}" for stem in stems for i in range(3))
    for path in (tmp_path / "there" / RUNS).glob("*-seed0"):
        shutil.rmtree(path)
    assert call("table1", "--collect", "--merge", str(tmp_path / "there"), "-q", out="here")[0] == 0
    made = [cell for cell in cells_of(tmp_path / "here", "table1") if cell["mean"] is not None]
    assert {(c["cell"], c["ipc"], c["n_sets"], c["n_nets"]) for c in made} == {("random", ipc, 3, 2) for ipc in (1, 10)}
    scores = [json.loads(p.read_text())["accuracy"] for o in ("here", "there") for p in
              (tmp_path / o / RUNS).glob("digits-ipc1-*/scores/*.json")]  # fmt: skip
    (mean,) = {cell["mean"] for cell in made if cell["ipc"] == 1}
    assert len(scores) == 6 and mean == pytest.approx(sum(scores) / 6)


def test_every_latex_table_has_as_many_cells_in_a_row_as_columns_and_nothing_unescaped(tmp_path: Path) -> None:
    assert main(["reproduce", "all", "--collect", "--out", str(tmp_path), "-q"]) == 0
    for name in TABLES:
        text = (tmp_path / f"{name}.tex").read_text(encoding="utf-8")
        assert text.count("\\begin{") == text.count("\\end{") and text.count("{") == text.count("}")
        bare = text.replace("$\\pm$", "")
        assert text.isascii() and not re.search(r"(?<!\\)[%$#_^~]", bare), name
        columns = 0
        for line in text.splitlines():
            if found := re.fullmatch(r"\\begin\{tabular\}\{(lr+)\}", line):
                columns = len(found[1])
            if line.endswith(r"\\"):
                assert len(re.split(r"(?<!\\)&", line)) == columns > 1, line
                assert not line.startswith(("[", "*"))  # which would belong to the line break before


def test_records_that_say_different_things_of_a_cell_are_refused_by_name(
    small: None, call: Call, tmp_path: Path
) -> None:
    call("table4", "--only", "ipc=1,cell=random", "-q")
    other = tmp_path / "other.json"
    for change, named in [({"accuracy": 0.123}, "accuracies"), ({"set_hash": "f" * 24}, "sets "), (None, "recipes ")]:
        record = json.loads((tmp_path / "out" / RECORDS).read_text())
        (run,) = record["runs"]
        run["scores"][0].update(change or {})
        run |= {} if change else {"recipe_hash": "000000000000"}
        other.write_text(json.dumps(record))
        code, _, said = call("table4", "--collect", "--merge", str(other), "-q")
        assert code == 2 and said.startswith("potstill: table4: random, ipc 1: ") and named in said
        assert str(other) in said and str(tmp_path / "out" / RUNS) in said and len(said.splitlines()) == 1


def test_runs_of_no_cell_are_told(small: None, call: Call, tmp_path: Path) -> None:
    call("table4", "--only", "ipc=1,cell=random", "-q")
    record = json.loads((tmp_path / "out" / RECORDS).read_text())
    record["runs"][0]["name"] = "digits-ipc1-random-000000000000-seed0"
    (tmp_path / "old.json").write_text(json.dumps(record))
    code, _, said = call("table4", "--collect", "--merge", str(tmp_path / "old.json"))
    assert code == 0 and "of no cell under these keys" in said and "none of its 1 runs is of a cell of table4" in said


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": [{"name": 3}]}', '{"rows": []}'])
def test_a_file_of_no_records_is_refused_in_one_line(content: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    code, _, said = call("table4", "--collect", "--merge", str(tmp_path / "odd.json"), "-q")
    assert code == 3 and "odd.json" in said and len(said.splitlines()) == 1


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
def test_committed_results_fill_the_cells_that_they_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [RESULTS / "cifar10_ipc10", RESULTS / "cross_architecture_cifar10_ipc10" / "dsdm_resnet10_1500.json"]
    words = [word for place in places for word in ("--merge", str(place))]
    assert main(["reproduce", "table1", "table3", "table4", "--collect", *words, "--out", str(tmp_path), "-q"]) == 0
    capsys.readouterr()
    found = {(c["cell"], c["ipc"], c["dataset"]): c for c in cells_of(tmp_path, "table1") if c["mean"] is not None}
    assert {label for label, *_ in found} == {"random", "herding", "kcenter", "dsdm"}
    assert not found["dsdm", 10, "cifar10"]["of_schedule"] and found["random", 10, "cifar10"]["of_schedule"]
    text = (tmp_path / "table4.md").read_text()
    assert "| dsdm | 62.82 +- 0.24 \\* |" in text and "Made or scored otherwise than this schedule says" in text
    ours = found["dsdm", 10, "cifar10"]
    assert round(100 * ours["mean"], 2) == 62.82 and round(ours["difference"], 2) == -3.68
    assert ours["made_by"] == "2,000 steps; 3 networks of 6 epochs (fast); real batch 256" and ours["epochs"] == 1500
    others = {(c["cell"], c["network"]): c["mean"] for c in cells_of(tmp_path, "table3") if c["ipc"] == 10}
    networks = {network: mean for (cell, network), mean in others.items() if cell == "dsdm"}
    assert others["dsdm_plus", "convnet"] == pytest.approx(0.6897, abs=1e-4)  # there in tiles
    assert networks["resnet10"] == pytest.approx(0.618) and networks["densenet121_k12"] is None
    ablation = {c["cell"]: c["mean"] for c in cells_of(tmp_path, "table4") if c["ipc"] == 10}
    assert ablation["dsdm"] == ours["mean"] and ablation["pretrained"] is None


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
def test_a_run_of_the_schedules_own_keys_takes_the_cell_from_a_shorter_one(tmp_path: Path) -> None:
    places = [RESULTS / name for name in ("cifar10_ipc10", "dsdm_cifar10_ipc10_paper_schedule")]
    for order in (places, places[::-1]):
        words = [word for place in order for word in ("--merge", str(place))]
        assert main(["reproduce", "table1", "--collect", *words, "--out", str(tmp_path), "-q"]) == 0
        found = {(c["cell"], c["ipc"]): c for c in cells_of(tmp_path, "table1") if c["mean"] is not None}
        assert found["dsdm", 10]["of_schedule"] and found["dsdm", 10]["n_nets"] == 5
        assert found["dsdm", 10]["mean"] == pytest.approx(0.66258)
        assert found["herding", 10]["mean"] == pytest.approx(0.4349, abs=1e-4)  # a shorter one where there is no other


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
def test_a_run_of_other_keys_is_not_of_the_schedule_whatever_its_length(tmp_path: Path) -> None:
    record = json.loads((RESULTS / "dsdm_cifar10_ipc10_paper_schedule" / "results.json").read_text())
    record["runs"]["dsdm-ipc10-seed0"]["recipe"]["method"]["covariance_weight"] = 0.0
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert main(["reproduce", "table3", "--collect", "--merge", str(tmp_path), "--out", str(tmp_path), "-q"]) == 0
    found = {c["cell"]: c for c in cells_of(tmp_path, "table3") if c["mean"] is not None}
    assert not found["dsdm"]["of_schedule"] and found["dsdm_plus"]["of_schedule"]


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
def test_a_set_is_of_a_cell_that_stores_samples_as_it_does(tmp_path: Path) -> None:
    """Table 1 has dsdm_plus at half chroma on CIFAR-10, Table 3 in tiles; their recipes have a factor of 2 both."""
    words = [word for name in ("cifar10_ipc10", "lead_cifar10_ipc10") for word in ("--merge", str(RESULTS / name))]
    assert main(["reproduce", "table1", "table3", "--collect", *words, "--out", str(tmp_path), "-q"]) == 0
    found = {
        table: [c for c in cells_of(tmp_path, table) if c["cell"] == "dsdm_plus" and c["mean"] is not None]
        for table in ("table1", "table3")
    }
    ((chroma,), (tiles,)) = found.values()
    assert chroma["mean"] == pytest.approx(0.7400, abs=1e-4) and tiles["mean"] == pytest.approx(0.6897, abs=1e-4)
    assert chroma["made_by"].startswith("stored as half_chroma:luma=16,chroma=8; 3,000 steps; 10 networks")
    assert (chroma["factor"], tiles["factor"]) == ("half_chroma:luma=16,chroma=8", "2")


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
def test_a_value_of_fewer_epochs_than_the_schedules_is_not_of_it(tmp_path: Path) -> None:
    """Random takes no steps, so its networks' epochs alone tell: 300 here, 1500 in Table 2."""
    words = ["--merge", str(RESULTS / "speech_ipc10_field"), "--out", str(tmp_path), "-q"]
    assert main(["reproduce", "table2", "--collect", *words]) == 0
    assert {c["cell"]: c["of_schedule"] for c in cells_of(tmp_path, "table2") if c["ipc"] == 10}["random"] is False
    assert main(["reproduce", "table2", "--collect", *words, "--evaluation.epochs", "300"]) == 0
    assert {c["cell"]: c["of_schedule"] for c in cells_of(tmp_path, "table2") if c["ipc"] == 10}["random"] is True


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the results of the repository")
def test_two_recipes_of_one_cell_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--merge", str(RESULTS / "cifar10_ipc10"), "--merge", str(RESULTS / "cifar10_ipc10_one_run")]
    assert main(["reproduce", "table3", "--collect", *words, "--out", str(tmp_path), "-q"]) == 2
    assert "table3: dsdm_plus, ipc 10, network ConvNet-3: " in capsys.readouterr().err


def test_the_page_opens_in_a_browser(small: None, call: Call, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    call("table4", "figure6", "-q", "--collect")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    page = (tmp_path / "out" / "index.html").as_uri()
    done = subprocess.run([*words, "--dump-dom", page], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.count("<table>") == page_tables(tmp_path / "out" / "index.html") > 2
    assert "Figure 6: the weights" in done.stdout


def page_tables(page: Path) -> int:
    return page.read_text(encoding="utf-8").count("<table>")
