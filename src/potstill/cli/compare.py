"""`potstill compare`: several methods under one recipe, or the cells of a study, one table."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import DataError, RunError, UsageError, printable
from ..files import SCHEMA_VERSION, expanded
from . import options as shared

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..run.study import Study


def add_parser(verbs: Any) -> None:
    text = "distil and score several methods under one recipe, or the cells of a file (compare STUDY.yaml); one table"
    parser = shared.add_verb(verbs, "compare", run, text, takes_keys=True)
    shared.add_recipe(parser)
    parser.add_argument("--ipc", "--ipcs", dest="ipcs", type=shared.integers, metavar="N,N", help="images per class")
    shared.add_factor(parser)
    parser.add_argument(
        "--methods", type=shared.names, metavar="A,B", help="methods to compare (default: random,random_mix,dsdm)"
    )
    parser.add_argument(
        "--factors",
        type=shared.factors,
        default=(),
        metavar="F,F",
        help="several factors, as 1,2 or 2,3x1 (default: --factor)",
    )
    parser.add_argument("--seeds", type=shared.count, metavar="N", help="sets per method: seeds SEED .. SEED+N-1")
    parser.add_argument(
        "--out", type=shared.place, required=True, metavar="DIR", help="folder for the runs; the same call goes on"
    )
    parser.add_argument("--overwrite", action="store_true", help="start every run anew")
    shared.add_budget(parser)
    shared.add_keep_snapshots(parser, "steps whose sets are kept for --curve")
    parser.add_argument(
        "--curve",
        action="store_true",
        help="also score the kept sets and those before the first step, for the report's figure of accuracy against "
        "core-minutes (each costs as much as a final set's scores)",
    )
    parser.add_argument(
        "--full-data",
        type=shared.count,
        metavar="EPOCHS",
        help="also train the evaluation networks on the whole training split, for EPOCHS epochs, and show each row's "
        "share of their accuracy (costs nets x EPOCHS passes over the split)",
    )
    shared.add_engine(parser)
    shared.add_dry_run(parser)
    shared.add_evaluation(parser)
    shared.add_places(parser)
    shared.add_runtime(parser)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ..report import collect, terminal_table
    from ..run.compare import estimates, run_study
    from ..run.engine.base import places
    from .report import results_of

    def load(recipe: Recipe) -> Any:
        return shared.data_of(options, recipe)

    study = _study(options)
    given: dict[str, Any] = {
        "out": options.out,
        "reporter": shared.reporter_of(options),
        "cache": options.cache_dir,
        "full_data_epochs": options.full_data,
        "curve": options.curve,
        "shards": options.shards,
    }
    with shared.engine_of(options) as engine:
        if options.dry_run:
            workers, threads = places(engine, (cell.recipe for cell in study.cells))
            shared.print_estimates(options, estimates(study, load, threads=threads, **given), workers)
            return
        outcomes = run_study(study, load, overwrite=options.overwrite, engine=engine, **given)
    failures = {outcome.folder: outcome.failure for outcome in outcomes if outcome.failure}
    try:
        # A run that another process holds is not ours to write a note into.
        records = [replace(run, failure=failures.get(run.folder, run.failure)) for run in collect(options.out)]
    except DataError as error:
        if not failures:
            raise
        raise RunError("; ".join(f"{folder.name}: {failure}" for folder, failure in failures.items())) from error
    if options.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, **results_of(records)}, indent=2))
    else:
        terminal_table(records)
        for folder in failures.keys() - {run.folder for run in records}:  # refused, so it has no row
            print(printable(f"{folder.name}: {failures[folder]}"))
    if failures:
        raise RunError(f"{len(failures)} of {len(outcomes)} runs failed, see the table; the same call tries them again")


def _study(options: argparse.Namespace) -> Study:
    from ..recipe import of_method, resolve
    from ..run.study import read_study, study_of

    # Not an argument of the parser, which would take the value of a key for it.
    file = options.keys.pop(0) if options.keys and not options.keys[0].startswith("--") else None
    layers = shared.layers_of(options)
    short = layers[-2]
    if file:
        given = {"--methods": options.methods, "--ipc": options.ipcs, "--factors": options.factors}
        given |= {"--seeds": options.seeds, "--config": options.config}
        if named := [flag for flag, value in given.items() if value]:
            raise UsageError(f"{named[0]} beside a study: its file says that; write it there, under vary or cells")
        return read_study(expanded(file), *layers)
    if options.factors and "factor" in short:
        raise UsageError("--factor and --factors: give one of them; --factors takes a list, as 1,2 or 2,3x1")
    methods = options.methods or ["random", "random_mix", "dsdm"]
    recipe = resolve(of_method(layers, methods[0]))
    seeds = range(recipe.seed, recipe.seed + (options.seeds or 1))
    return study_of(layers, methods=methods, ipcs=options.ipcs or [recipe.ipc], factors=options.factors, seeds=seeds)
