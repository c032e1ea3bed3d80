"""`potstill compare`: several methods under one recipe, one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import RunError, UsageError
from ..files import SCHEMA_VERSION
from . import options as shared


def add_parser(verbs: Any) -> None:
    text = "distil and score several methods under one recipe; one table"
    parser = shared.add_verb(verbs, "compare", run, text, takes_keys=True)
    shared.add_recipe(parser)
    parser.add_argument("--ipc", "--ipcs", dest="ipcs", type=shared.integers, metavar="N,N", help="images per class")
    shared.add_factor(parser)
    parser.add_argument(
        "--methods", type=shared.names, default="random,random_mix,dsdm", metavar="A,B", help="methods to compare"
    )
    parser.add_argument(
        "--factors",
        type=shared.factors,
        default=(),
        metavar="F,F",
        help="several factors, as 1,2 or 2,3x1 (default: --factor)",
    )
    parser.add_argument(
        "--seeds", type=shared.count, default=1, metavar="N", help="sets per method: seeds SEED .. SEED+N-1"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the runs; the same call goes on"
    )
    parser.add_argument("--overwrite", action="store_true", help="start every run anew")
    shared.add_key(
        parser,
        "--budget-minutes",
        "budget.minutes",
        type=float,
        metavar="M",
        help="distilling time of each run, pool excluded; then its set is finished as it stands, also where a decay of "
        "the learning rate has not come to its end",
    )
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
    shared.add_evaluation(parser)
    shared.add_places(parser)
    shared.add_runtime(parser)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ..recipe import resolve
    from ..report import collect, terminal_table
    from ..run.compare import compare
    from .report import results_of

    layers = shared.layers_of(options)
    if options.factors and "factor" in layers[-2]:
        raise UsageError("--factor and --factors: give one of them; --factors takes a list, as 1,2 or 2,3x1")
    recipe = resolve(*layers, {"method.name": options.methods[0]})
    outcomes = compare(
        shared.data_of(options, recipe),
        layers,
        methods=options.methods,
        ipcs=options.ipcs or [recipe.ipc],
        factors=options.factors,
        seeds=range(recipe.seed, recipe.seed + options.seeds),
        out=options.out,
        reporter=shared.reporter_of(options),
        cache=options.cache_dir,
        overwrite=options.overwrite,
        full_data_epochs=options.full_data,
        curve=options.curve,
    )
    failures = {outcome.folder: outcome.failure for outcome in outcomes if outcome.failure}
    # A run that another process or recipe holds is not ours to write a note into.
    records = [replace(run, failure=failures.get(run.folder, run.failure)) for run in collect(options.out)]
    if options.json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, **results_of(records)}, indent=2))
    else:
        terminal_table(records)
    if failures:
        raise RunError(f"{len(failures)} of {len(outcomes)} runs failed, see the table; the same call tries them again")
