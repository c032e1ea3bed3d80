"""Options that several verbs share, what they mean for a recipe, and how results are printed.

An option that is a short name for a recipe key says so where it is added (`add_key`), and nowhere else; any other key
is given as `--section.key value`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable
from ..files import SCHEMA_VERSION, expanded

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..run.engine.base import Engine
    from ..run.estimate import Estimate
    from ..run.progress import Reporter
    from ..spec import LabelledDataset

EXIT_CODES = """exit codes: 0 done, 1 the run failed (of compare: one or more; a row says why),
2 usage or recipe error, 3 data missing or damaged, 4 a missing extra (named), 130 interrupted (resumable)"""
KEYS_NOTE = "Any recipe key can be set: --method.steps 2000 --pool.members 5 (all of them: potstill list keys)."
#: Before the recipe key in the parsed options.
_KEY = "recipe key "


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, *, takes_keys: bool = False
) -> argparse.ArgumentParser:
    """A verb with the options that all have; `run` is called with what was parsed."""
    parser = verbs.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"{KEYS_NOTE if takes_keys else ''}\n{EXIT_CODES}",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_keys=takes_keys)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def add_key(parser: argparse.ArgumentParser, flag: str, key: str, **details: Any) -> None:
    """An option that sets the recipe key `key`."""
    if not {"choices", "action"} & details.keys():
        details.setdefault("metavar", flag.strip("-").upper())
    parser.add_argument(flag, dest=_KEY + key, default=argparse.SUPPRESS, **details)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        action="append",
        default=[],
        help="recipe file, or the name of a shipped one (potstill list recipes); of several, later ones win key by key",
    )
    add_key(parser, "--dataset", "data.name", metavar="NAME|PATH", help="a known name, a folder of images or an .npz")
    add_key(parser, "--size", "data.size", type=whole, help="side that images of a folder are brought to")
    add_key(parser, "--mirror", "data.mirror", type=truth, metavar="true|false", help="mirror images keep their label")
    add_key(parser, "--seed", "seed", type=whole, help="root of all random draws")
    add_key(parser, "--fidelity", "fidelity", metavar="NAME", help="paper, code or potstill: see docs/fidelity.md")


def add_factor(parser: argparse.ArgumentParser) -> None:
    text = "rows and columns of small images in each stored one"
    add_key(parser, "--factor", "factor", type=factor, metavar="F|R,C", help=text)


def add_budget(parser: argparse.ArgumentParser) -> None:
    text = (
        "distilling time of a run, pool excluded; then its set is finished as it stands, also where a decay of the "
        "learning rate has not come to its end. With --parameterisation auto half of it is the search's"
    )
    add_key(parser, "--budget-minutes", "budget.minutes", type=number, metavar="M", help=text)
    text = "settle the steps before the run to as many as the budget holds, instead of cutting the run where it ends"
    add_key(parser, "--budget-plan", "budget.plan", action="store_const", const=True, help=text)


def add_keep_snapshots(parser: argparse.ArgumentParser, text: str) -> None:
    add_key(parser, "--keep-snapshots", "saving.keep", type=integers, metavar="N,N", help=text)


def add_told(parser: argparse.ArgumentParser) -> None:
    """What the user says of a set whose file does not say it: a `.pt` of another code base."""
    parser.add_argument("--dataset", metavar="NAME|PATH", help="the data set, where the set's file does not say")
    add_key(parser, "--size", "data.size", type=whole, help="side that images of a folder were brought to")
    parser.add_argument("--factor", type=factor, metavar="F|R,C", help="factor of a .pt set")
    text = "whether a .pt set holds normalised images (default: as scripts of its form do)"
    parser.add_argument("--normalised", type=truth, metavar="true|false", help=text)
    text = "constants that a .pt set and its test data are normalised by: measured, or common (DC, DSA and DM)"
    add_key(parser, "--normalisation", "data.normalisation", choices=["measured", "common"], help=text)


def told_of(options: argparse.Namespace) -> dict[str, Any]:
    if _KEY + "data.normalisation" in options and options.set.suffix not in (".pt", ".pth"):
        raise UsageError(f"--normalisation: {options.set} brings its own; leave it out, it is for .pt sets")
    return {"factor": tuple(options.factor) if options.factor else None, "normalised": options.normalised}


def add_data_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=place, help="where data sets lie (default POTSTILL_DATA_DIR)")
    parser.add_argument("--download", action="store_true", help="fetch a missing data set (needs the extra 'hub')")


def add_places(parser: argparse.ArgumentParser) -> None:
    add_data_places(parser)
    parser.add_argument("--cache-dir", type=place, help="where pools are cached (default POTSTILL_CACHE_DIR)")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    add_key(parser, "--device", "runtime.device", help="auto, cpu, cuda, cuda:N or mps")
    add_key(parser, "--precision", "runtime.precision", choices=["auto", "fp32", "bf16"])
    add_key(parser, "--threads", "runtime.threads", type=whole, help="threads on a CPU")
    add_key(parser, "--compile", "runtime.compile", type=auto_or_truth, metavar="auto|true|false", help="torch.compile")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    text = "networks to train at the same time (default: settled by the threads)"
    add_key(parser, "--network", "evaluation.network", help="evaluation network (potstill list networks)")
    add_key(parser, "--nets", "evaluation.nets", type=whole, help="networks to train on the set")
    add_key(parser, "--protocol", "evaluation.protocol", help="see potstill list protocols")
    add_key(parser, "--epochs", "evaluation.epochs", type=whole, help="of the protocol; the row says so")
    add_key(parser, "--at-once", "evaluation.at_once", type=count, metavar="N", help=text)
    text = "also score the set with its stored numbers (not the decoded samples) rounded to N bits each, 1 to 8"
    add_key(parser, "--stored-bits", "evaluation.stored_bits", type=whole, choices=range(1, 9), metavar="N", help=text)
    text = "the same as --stored-bits 8"
    add_key(parser, "--eight-bit", "evaluation.stored_bits", action="store_const", const=8, help=text)


def layers_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Recipe layers from a parsed command line, weakest first: recipe files, short options, single keys."""
    from ..recipe import parse_assignments, read_recipe

    short = {name.removeprefix(_KEY): value for name, value in vars(options).items() if name.startswith(_KEY)}
    files = [read_recipe(source) for source in getattr(options, "config", [])]
    return [*files, short, parse_assignments(options.keys)]


def recipe_of(options: argparse.Namespace) -> Recipe:
    from ..recipe import resolve

    return resolve(*layers_of(options))


def data_of(options: argparse.Namespace, recipe: Recipe) -> LabelledDataset:
    """The data that a recipe names.

    Raises:
        UsageError: results would go among them, and be read as data by the next call.
    """
    from ..data.own.folder import would_read
    from ..run.inputs import load_data

    source, out = expanded(recipe.data.name), getattr(options, "out", None)
    if out and source.is_dir() and would_read(source, out):
        raise UsageError(f"{out}: in the data folder {source} it would be read as data; use --out elsewhere")
    return load_data(recipe, data_dir=options.data_dir, download=options.download)


def reporter_of(options: argparse.Namespace) -> Reporter:
    from ..run.progress import Reporter

    return Reporter(quiet=options.quiet)


def show(options: argparse.Namespace, record: dict[str, Any], text: str) -> None:
    """Print a result: as JSON where that was asked for, as text elsewhere."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **record}, indent=2) if options.json else text)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    text = "say what it would take (tasks, time by timing a few steps, memory, disk) and run nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="who does pools, sets and networks: serial, processes, or ray (RAY_ADDRESS or a local cluster); "
        "default: one run after another",
    )
    parser.add_argument("--workers", type=count, metavar="N", help="tasks at once (default: one per core or GPU)")
    text = "distil the classes of a set in N parts, where the method's classes are independent (needs an engine)"
    parser.add_argument("--shards", type=count, default=1, metavar="N", help=text)


def engine_of(options: argparse.Namespace) -> AbstractContextManager[Engine | None]:
    """What --engine and --workers ask for; None within the block where they ask for nothing."""
    from ..run.engine.find import find_engine

    if options.engine is None and options.shards > 1:
        raise UsageError(f"--shards {options.shards} without an engine: add --engine serial, processes or ray")
    if options.engine is None and options.workers:
        raise UsageError(f"--workers {options.workers} without an engine: add --engine processes or ray")
    return find_engine(options.engine, options.workers) if options.engine else nullcontext()


def print_estimates(
    options: argparse.Namespace, found: Sequence[Estimate], workers: int = 1, lines: Sequence[str] | None = None
) -> None:
    """What each cell would take, or `lines` instead; why some cannot be run; and what all take by so many workers."""
    from ..run.ahead import span
    from ..run.estimate import ahead_of, core_seconds

    heads = ("cell", "stands", "pool, s", "distil, s", "evaluate, s", "memory, MB", "disk, MB")
    cells = [
        (e.cell, _stands(e), *(f"{s:,.0f}" for s in (e.pool_seconds, e.distill_seconds, e.evaluate_seconds)),
         f"{e.memory_mb:,}", f"{e.disk_mb:,.1f}")
        for e in found if not e.failure
    ]  # fmt: skip
    shown = [*(aligned(heads, cells) if lines is None else lines), *_failing(found)]
    seconds, cores = ahead_of(found, workers).left(), core_seconds(found)
    memory, disk = sum(sorted(e.memory_mb for e in found)[-workers:]), sum(e.disk_mb for e in found)
    total = (
        f"{len(found)} cells, about {span(seconds)}{f' by {workers} workers' if workers > 1 else ''} "
        f"({cores / 3600:,.1f} core-hours, {sum(e.tasks for e in found):,} tasks), {memory:,} MB of memory and "
        f"{disk:,.0f} MB of disk; estimated, nothing was run"
    )
    record = {
        "cells": [e.to_json() for e in found],
        "seconds": seconds,
        "workers": workers,
        "core_seconds": cores,
        "memory_mb": memory,
        "disk_mb": disk,
    }
    show(options, record, "\n".join([*shown, total]))


def aligned(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines of columns, the first of them to the left, like words, and numbers to the right."""
    table = [heads, *lines]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    words = [all(not line[i][:1].isdigit() for line in table) for i in range(len(heads))]
    return [
        "  ".join(
            text.ljust(width) if word else text.rjust(width)
            for text, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in table
    ]


def _failing(found: Sequence[Estimate]) -> list[str]:
    """Each reason once, with the first of its cells."""
    names: dict[str, list[str]] = {}
    for e in found:
        if e.failure:
            names.setdefault(e.failure, []).append(e.cell)
    return [
        printable(f"fails: {cells[0]}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''}: {why}")
        for why, cells in names.items()
    ]


def _stands(found: Estimate) -> str:
    return f"{found.stands}, {found.planned:,} steps planned" if found.planned else found.stands


# --- types of option values


def place(text: str) -> Path:
    try:
        return expanded(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def factor(text: str) -> list[int]:
    """`2` or `1,2`."""
    numbers = integers(text)
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: one number, or rows,columns")
    return [numbers[0], numbers[-1]]


def factors(text: str) -> list[list[int]]:
    """`1,2` or `2,3x1`: square ones, or rows x columns."""
    words = [word for word in text.split(",") if word]
    if not words or not all(re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?", word, re.ASCII) for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r}: factors separated by commas, each a number or ROWSxCOLUMNS, from 1 on"
        )
    pairs = [word.split("x") for word in words]
    return [[int(pair[0]), int(pair[-1])] for pair in pairs]


def integers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers separated by commas") from None


def names(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: names separated by commas")
    return found


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: need a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: need a number") from None


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: need a whole number of at least 1")
    return int(text)


def truth(text: str) -> bool:
    """`true` or `false`, also as Python writes them."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: use true or false")
    return text.lower() == "true"


def auto_or_truth(text: str) -> bool | str:
    return "auto" if text == "auto" else truth(text)
