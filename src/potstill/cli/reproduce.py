"""`potstill reproduce`: the paper's tables and figures, ours beside the published values."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Interrupted, RunError, UsageError, printable
from ..files import SCHEMA_VERSION
from . import options as shared

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..report.paper_tables import Filled
    from ..report.stored import StoredRun
    from ..run.estimate import Estimate
    from ..run.paper import PaperCell, PaperTable


def add_parser(verbs: Any) -> None:
    text = (
        "reproduce the paper: table1 to table4, figure3 to figure8, or all (reproduce table1 figure4 ...); "
        "ours beside the published values as HTML, Markdown, CSV, LaTeX and JSON"
    )
    parser = shared.add_verb(verbs, "reproduce", run, text, takes_keys=True)
    parser.add_argument(
        "--only",
        type=choices,
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="cells with these values: dataset, ipc, method, cell, network, factor; of a key given twice, either",
    )
    parser.add_argument("--seeds", type=shared.count, default=1, metavar="N", help="sets of each cell (default 1)")
    parser.add_argument(
        "--schedule", choices=("paper", "short"), default="paper", help="lengths: the published ones, or short ones"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/paper"),
        metavar="DIR",
        help="folder for runs, tables and the page (default runs/paper); the same call goes on",
    )
    parser.add_argument(
        "--merge",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="show the runs stored there as well: a reproduction of another machine or its runs.json, a folder of "
        "runs, a results.json",
    )
    shared.add_keep_snapshots(parser, "steps whose sets are kept, for --curve")
    parser.add_argument(
        "--curve",
        action="store_true",
        help="also score the sets that were kept on the way, of every cell as of figure4's: below the tables stands "
        "what a choice of the best on the test split, as the paper's code makes it, would give (labelled; no result)",
    )
    parser.add_argument("--collect", action="store_true", help="run nothing: tables and figures of what is stored")
    shared.add_engine(parser)
    shared.add_dry_run(parser)
    shared.add_evaluation(parser)
    shared.add_places(parser)
    shared.add_runtime(parser)


def choices(text: str) -> list[tuple[str, str]]:
    """`dataset=cifar10,ipc=10`."""
    pairs = [word.partition("=") for word in text.split(",") if word]
    if not pairs or any(not (key and sign and value) for key, sign, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: KEY=VALUE separated by commas, as dataset=cifar10,ipc=10")
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def run(options: argparse.Namespace) -> None:
    from ..run.engine.base import places
    from ..run.paper import choose, read_table, with_kept_steps
    from ..run.reproduce import estimates, reproduce

    def load(recipe: Recipe) -> Any:
        return shared.data_of(options, recipe)

    names = _names(options)
    layers = shared.layers_of(options)
    only: dict[str, list[str]] = {}
    for key, value in (pair for given in options.only for pair in given):
        only.setdefault(key, []).append(value)
    tables = {name: read_table(name, options.schedule, layers) for name in names}
    cells = choose((cell for table in tables.values() for cell in table.cells), only)
    if all(cell.missing for cell in cells):
        raise UsageError(f"{cells[0].name}: {cells[0].missing}")
    cells = with_kept_steps(cells, options.schedule, layers)
    given: dict[str, Any] = {
        "seeds": options.seeds,
        "curve": options.curve,
        "shards": options.shards,
        "reporter": shared.reporter_of(options),
        "cache": options.cache_dir,
    }
    if options.collect:
        _show(options, tables, layers, cells, {})
        return
    try:
        with shared.engine_of(options) as engine:
            if options.dry_run:
                workers, threads = places(engine, (cell.recipe for cell in cells if cell.recipe))
                found = estimates(cells, load, out=options.out, threads=threads, **given)
                shared.print_estimates(options, found, workers, _by_table(names, found))
                return
            result = reproduce(cells, load, out=options.out, engine=engine, **given)
    except Interrupted:
        if options.dry_run:
            raise
        _show(options, tables, layers, cells, None)
        raise
    _show(options, tables, layers, cells, result.failures)
    if result.failures:
        raise RunError(
            f"{len(result.failures)} of {result.tasks} tasks failed or cannot be run; the same call tries them again"
        )


def _by_table(names: Sequence[str], found: Sequence[Estimate]) -> list[str] | None:
    """Of several tables a line each, a run counting for the first that needs it; and what more workers would gain."""
    from ..run.ahead import span
    from ..run.estimate import ahead_of

    if len(names) == 1:
        return None
    heads = ("", "runs", "to do", "cannot be", "tasks", "pools", "sets", "networks", "MB of memory", "MB of disk")
    lines = []
    for name in names:
        of_table = [e for e in found if e.table == name]
        stages = ((e.pool_seconds, e.distill_seconds, e.evaluate_seconds) for e in of_table if e.to_do)
        sums = [sum(seconds) for seconds in zip(*stages, strict=True)] or [0.0, 0.0, 0.0]
        counts = (len(of_table), sum(e.to_do for e in of_table), sum(bool(e.failure) for e in of_table))
        numbers = (*counts, sum(e.tasks for e in of_table))
        memory, disk = max((e.memory_mb for e in of_table), default=0), sum(e.disk_mb for e in of_table)
        lines.append([name, *(f"{n:,}" for n in numbers), *map(span, sums), f"{memory:,}", f"{disk:,.0f}"])
    more = ", ".join(f"{n} in {span(ahead_of(found, n).left())}" for n in (2, 8, 64))
    return [
        *shared.aligned(heads, lines),
        f"A run counts for the first table that needs it. More workers like one here would be done so: {more}.",
    ]


def _names(options: argparse.Namespace) -> list[str]:
    """The tables that were asked for; not an argument of the parser, which would take the value of a key for one."""
    from ..run.paper import TABLES, read_text

    names = []
    while options.keys and not options.keys[0].startswith("--"):
        names.append(options.keys.pop(0))
    if not names:
        raise UsageError(f"nothing to reproduce: name one or more of {', '.join(TABLES)}, or all")
    chosen = list(TABLES) if "all" in names else list(dict.fromkeys(names))
    for name in chosen:
        read_text(name)
    return chosen


def _show(
    options: argparse.Namespace,
    tables: Mapping[str, PaperTable],
    layers: list[Any],
    cells: list[PaperCell],
    failures: dict[str, str] | None,
) -> None:
    """Write the tables, those of earlier calls under the same schedule as well, and print what was asked for.

    Args:
        tables: those that were asked for.
        failures: by what failed; None prints nothing.
    """
    from ..report.paper import fill
    from ..report.paper_figures import draw
    from ..report.paper_page import schedule_of, write_reproduction
    from ..report.paper_tables import Filled
    from ..report.stored import stored_in, with_further_scores
    from ..run.paper import TABLES, describe_schedule, read_table
    from ..run.reproduce import RUNS

    places = [*([options.out] if (options.out / RUNS).is_dir() else []), *options.merge]
    runs = with_further_scores([run for place in places for run in stored_in(place)])
    schedule = describe_schedule(options.schedule, layers)
    shown = [name for name in TABLES if name in tables or schedule_of(options.out, name) == schedule]
    filled = []
    for name in shown:
        table = tables.get(name) or read_table(name, options.schedule, layers)
        filled.append(Filled(table, tuple(fill(table, runs)), schedule))
    _tell_of_unused(options, layers, runs, filled)
    figures = {one.table.name: draw(one, [options.out, *options.merge]) for one in filled}
    page = write_reproduction(options.out, filled, figures, runs)
    if failures is not None:
        asked = [one for one in filled if one.table.name in tables]
        _print(options, asked, {cell.name for cell in cells}, failures, page)


def _tell_of_unused(
    options: argparse.Namespace, layers: list[Any], runs: list[StoredRun], filled: list[Filled]
) -> None:
    """Runs that no table shows are easily taken for lost."""
    from ..run.paper import SCHEDULES, TABLES, read_table

    say, used = shared.reporter_of(options).say, {run.name for one in filled for e in one.entries for run in e.runs}
    others = [run for run in runs if run.exact and run.name not in used]
    if others:  # all tables are resolved for a reason only
        stems = {cell.stem for name in TABLES for s in SCHEDULES for cell in read_table(name, s, layers).cells}
        others = [run for run in others if run.stem not in stems]
    if others:
        say(
            f"{others[0].source}: of no cell under these keys, like {len(others) - 1} more: made with other keys, or "
            "by another version"
        )
    for place in options.merge:
        mine = [run for run in runs if run.source.startswith(str(place))]
        if mine and not any(run.name in used for run in mine):
            say(f"{place}: none of its {len(mine)} runs is of a cell of {', '.join(one.table.name for one in filled)}")


def _print(
    options: argparse.Namespace, filled: list[Filled], chosen: set[str], failures: dict[str, str], page: Path
) -> None:
    from ..report.paper_tables import difference_text, ours_text, paper_text

    if options.json:
        tables = [one.to_json() for one in filled]
        document = {"schema_version": SCHEMA_VERSION, "tables": tables, "failures": failures, "page": str(page)}
        print(json.dumps(document, indent=2))
        return
    for one in filled:
        print(printable(f"{one.table.plan.title}. {one.counts}"))
        for entry in one.entries:
            if entry.cell.name in chosen and (entry.scores or options.only):
                name = ", ".join([entry.label, *map(str, entry.cell.draft.at.values())])
                value = ours_text(entry) if entry.scores else f"empty ({entry.empty_because})"
                paper, difference = paper_text(entry), difference_text(entry)
                print(printable(f"  {name:36s} ours {value}   paper {paper}   difference {difference}"))
    for name, why in failures.items():
        print(printable(f"{name}: {why}"))
    print(page)
