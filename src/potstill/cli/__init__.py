"""The command line: parse, call, print. Results go to stdout, progress and logs to stderr.

Known options are short names for recipe keys; any other key is given as `--section.key value`. Torch is imported
only once a verb runs, so that help and usage errors answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Interrupted, PotstillError, RunError, UsageError

if TYPE_CHECKING:
    from ..evaluation import Scores
    from ..recipe import Recipe
    from ..run.progress import Reporter
    from ..sets.synthetic import SyntheticSet
    from ..spec import LabelledDataset

EXIT_CODES = """exit codes: 0 done, 1 the run failed (of compare: one or more; a row says why),
2 usage or recipe error, 3 data missing or damaged, 4 a missing extra (named), 130 interrupted (resumable)"""

#: Option -> recipe key.
SHORT_KEYS = {
    "dataset": "data.name",
    "method": "method.name",
    "ipc": "ipc",
    "factor": "factor",
    "seed": "seed",
    "fidelity": "fidelity",
    "device": "runtime.device",
    "precision": "runtime.precision",
    "threads": "runtime.threads",
    "compile": "runtime.compile",
    "network": "evaluation.network",
    "nets": "evaluation.nets",
    "protocol": "evaluation.protocol",
    "epochs": "evaluation.epochs",
    "at_once": "evaluation.at_once",
    "keep_snapshots": "saving.keep",
    "budget_minutes": "budget.minutes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("potstill").setLevel(logging.WARNING if options.quiet else logging.INFO)
    try:
        if rest and not options.takes_keys:
            raise UsageError(f"unexpected argument {rest[0]!r}: see potstill {options.verb} --help")
        options.keys = rest
        options.run(options)
    except PotstillError as error:
        print(f"potstill: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("potstill: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="potstill",
        description="Distil a labelled data set into a tiny synthetic one that trains networks almost as well.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from .. import _version

    parser.add_argument("--version", action="version", version=f"potstill {_version.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _distill_parser(verbs)
    _evaluate_parser(verbs)
    _compare_parser(verbs)
    _pretrain_parser(verbs)
    _export_parser(verbs)
    _report_parser(verbs)
    _list_parser(verbs)
    return parser


def _verb(verbs: Any, name: str, run: Callable[[Any], None], text: str, *, takes_keys: bool) -> argparse.ArgumentParser:
    note = "Any recipe key can be set: --method.steps 2000 --pool.members 5 (keys: potstill list methods NAME)."
    parser = verbs.add_parser(
        name, help=text, description=text, epilog=f"{note if takes_keys else ''}\n{EXIT_CODES}", allow_abbrev=False
    )
    parser.set_defaults(run=run, takes_keys=takes_keys)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _add_recipe(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument(
        "--config", metavar="RECIPE", help="recipe file, or the name of a shipped one (potstill list recipes)"
    )
    parser.add_argument("--dataset", metavar="NAME|PATH", help="a known name, a folder of images or an .npz")
    if several:
        parser.add_argument(
            "--ipc", "--ipcs", dest="ipcs", type=_integers, metavar="N,N", help="stored images per class"
        )
    else:
        parser.add_argument("--ipc", type=int, help="stored images per class")
    parser.add_argument("--factor", type=_factor, metavar="F|R,C", help="partition of each stored image, 1..3 per axis")
    parser.add_argument("--seed", type=int, help="root of all random draws")
    parser.add_argument("--fidelity", metavar="NAME", help="paper, code or potstill: see docs/fidelity.md")


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, help="where data sets lie (default POTSTILL_DATA_DIR)")
    parser.add_argument("--cache-dir", type=Path, help="where pools are cached (default POTSTILL_CACHE_DIR)")
    parser.add_argument("--download", action="store_true", help="fetch a missing data set (needs the extra 'hub')")


def _add_runtime(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, help="threads on a CPU")
    parser.add_argument("--compile", choices=["auto", "true", "false"], help="use torch.compile")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", help="evaluation network (potstill list networks)")
    parser.add_argument("--nets", type=int, help="networks to train on the set")
    parser.add_argument("--protocol", help="dsdm, mnist, idc, dc or ncfm")
    parser.add_argument("--epochs", type=int, help="shorten or lengthen the protocol; the row says so")
    parser.add_argument(
        "--at-once",
        type=_count,
        metavar="N",
        help="networks to train at the same time (default: settled by the threads)",
    )


def _distill_parser(verbs: Any) -> None:
    parser = _verb(verbs, "distill", run_distill, "distil a data set into a run folder", takes_keys=True)
    _add_recipe(parser)
    parser.add_argument("--method", metavar="NAME", help="see potstill list methods")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder")
    parser.add_argument("--resume", nargs="?", const=True, metavar="DIR", help="go on with the run in DIR (or --out)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    parser.add_argument("--keep-snapshots", type=_integers, metavar="N,N", help="steps whose sets are kept")
    _add_places(parser)
    _add_runtime(parser)


def _evaluate_parser(verbs: Any) -> None:
    text = "train networks on a set and score them on real test data, last epoch"
    parser = _verb(verbs, "evaluate", run_evaluate, text, takes_keys=False)
    parser.add_argument("set", type=Path, help="run folder, distilled.safetensors, or a .pt of another code base")
    parser.add_argument("--dataset", metavar="NAME|PATH", help="the data set, where the set's file does not say")
    parser.add_argument("--factor", type=_factor, metavar="F|R,C", help="factor of a .pt set")
    parser.add_argument("--seed", type=int, help="of the evaluation networks")
    parser.add_argument("--out", type=Path, help="folder for the scores (default: the run folder)")
    parser.add_argument(
        "--eight-bit", action="store_true", help="also score the set rounded to 8 bits, as PNG keeps it"
    )
    _add_evaluation(parser)
    _add_places(parser)
    _add_runtime(parser)


def _compare_parser(verbs: Any) -> None:
    text = "distil and score several methods under one recipe; one table"
    parser = _verb(verbs, "compare", run_compare, text, takes_keys=True)
    _add_recipe(parser, several=True)
    parser.add_argument(
        "--methods", type=_names, default="random,random_mix,dsdm", metavar="A,B", help="methods to compare"
    )
    parser.add_argument(
        "--factors",
        type=_factors,
        default=(),
        metavar="F,F",
        help="several factors, as 1,2 or 2,3x1 (default: --factor)",
    )
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="sets per method: seeds SEED .. SEED+N-1")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the runs; the same call goes on"
    )
    parser.add_argument("--overwrite", action="store_true", help="start every run anew")
    parser.add_argument(
        "--budget-minutes",
        type=float,
        metavar="M",
        help="distilling time of each run, pool excluded; then its set is finished as it stands, also where a decay of "
        "the learning rate has not come to its end",
    )
    parser.add_argument("--keep-snapshots", type=_integers, metavar="N,N", help="steps whose sets are kept for --curve")
    parser.add_argument(
        "--curve",
        action="store_true",
        help="also score the kept sets and those before the first step, for the report's figure of accuracy against "
        "core-minutes (each costs as much as a final set's scores)",
    )
    parser.add_argument(
        "--full-data",
        type=_count,
        metavar="EPOCHS",
        help="also train the evaluation networks on the whole training split, for EPOCHS epochs, and show each row's "
        "share of their accuracy (costs nets x EPOCHS passes over the split)",
    )
    _add_evaluation(parser)
    _add_places(parser)
    _add_runtime(parser)


def _pretrain_parser(verbs: Any) -> None:
    text = "train a recipe's pool of networks into the cache"
    parser = _verb(verbs, "pretrain", run_pretrain, text, takes_keys=True)
    _add_recipe(parser)
    _add_places(parser)
    _add_runtime(parser)


def _export_parser(verbs: Any) -> None:
    parser = _verb(verbs, "export", run_export, "write a set in another format", takes_keys=False)
    parser.add_argument("set", type=Path, help="run folder or distilled.safetensors")
    parser.add_argument("--to", required=True, metavar="FORMAT", help="huggingface, folder, pt, pt-data or safetensors")
    parser.add_argument("--out", type=Path, help="where to (default: beside the set)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _report_parser(verbs: Any) -> None:
    parser = _verb(verbs, "report", run_report, "write report.html for a run or a folder of runs", takes_keys=False)
    parser.add_argument("folder", type=Path, help="run folder, or a folder of run folders")
    parser.add_argument("--format", choices=["html", "markdown", "csv"], default="html", help="html writes a file")


def _list_parser(verbs: Any) -> None:
    parser = _verb(verbs, "list", run_list, "what there is to choose from", takes_keys=False)
    parser.add_argument("kind", choices=["methods", "datasets", "networks", "recipes", "protocols"])
    parser.add_argument("name", nargs="?", help="one of them, with its keys")


# --- verbs


def run_distill(options: argparse.Namespace) -> None:
    from ..run.distil import distill_run
    from ..run.store import RunStore

    folder = Path(options.resume) if isinstance(options.resume, str) else options.out
    if folder is None:
        raise UsageError("no folder for the run: add --out DIR")
    store = RunStore(folder)
    recipe = _recipe(options, resumed=store if options.resume else None)
    reporter = _reporter(options)
    data = _data(options, recipe.data)
    synthetic = distill_run(
        recipe,
        data,
        store,
        reporter,
        cache=options.cache_dir,
        resume=bool(options.resume),
        overwrite=options.overwrite,
    )
    _preview(store, synthetic)
    result = {
        "run": str(store.root),
        "recipe_hash": recipe.hash(),
        "images": list(synthetic.images.shape),
        "numbers_stored": synthetic.numbers_stored,
        **{k: v for k, v in store.read_json("times.json").items() if k != "schema_version"},
    }
    _print(options, result, f"{store.distilled}\nnext: potstill evaluate {store.root}")


def run_evaluate(options: argparse.Namespace) -> None:
    from ..run.score import evaluate_set
    from ..run.store import RunStore

    reporter = _reporter(options)
    store, recipe, synthetic, data = _set_to_evaluate(options)
    folder = RunStore(options.out) if options.out else store
    scores = evaluate_set(synthetic, data.test, recipe, folder, reporter)
    result = _scores_json(scores, synthetic)
    text = str(scores)
    if options.eight_bit:
        from ..sets.export import quantise

        rounded = evaluate_set(quantise(synthetic), data.test, recipe, RunStore(folder.root / "eight_bit"), reporter)
        difference = rounded.mean - scores.mean
        result["eight_bit"] = {**_scores_json(rounded, synthetic), "difference": difference}
        text += f"\n8-bit: {rounded}; difference {100 * difference:+.2f}"
    _print(options, result, text)


def run_compare(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from ..report import collect, terminal_table
    from ..report.cost import curves_to_json
    from ..report.tables import rows_to_json
    from ..run.compare import compare

    if options.factor and options.factors:
        raise UsageError("--factor and --factors: give one of them; --factors takes a list, as 1,2 or 2,3x1")
    layers = _layers(options)
    recipe = _resolve(layers, {"method.name": options.methods[0]})
    outcomes = compare(
        _data(options, recipe.data),
        layers,
        methods=options.methods,
        ipcs=options.ipcs or [recipe.ipc],
        factors=options.factors,
        seeds=range(recipe.seed, recipe.seed + options.seeds),
        out=options.out,
        reporter=_reporter(options),
        cache=options.cache_dir,
        overwrite=options.overwrite,
        full_data_epochs=options.full_data,
        curve=options.curve,
    )
    failures = {outcome.folder: outcome.failure for outcome in outcomes if outcome.failure}
    # A run that another process or recipe holds is not ours to write a note into.
    records = [replace(run, failure=failures.get(run.folder, run.failure)) for run in collect(options.out)]
    if options.json:
        document = {"schema_version": 1, "rows": rows_to_json(records), "curves": curves_to_json(records)}
        print(json.dumps(document, indent=2))
    else:
        terminal_table(records)
    if failures:
        raise RunError(f"{len(failures)} of {len(outcomes)} runs failed, see the table; the same call tries them again")


def run_pretrain(options: argparse.Namespace) -> None:
    from ..run.distil import pretrain_pool

    recipe = _recipe(options)
    pool = pretrain_pool(recipe, _data(options, recipe.data), _reporter(options), cache=options.cache_dir)
    accuracies = [facts.get("train_accuracy", "") for facts in pool.metadata]
    result = {"members": list(pool.digests), "seconds": pool.seconds, "train_accuracy": accuracies}
    lines = [f"{digest}  train accuracy {accuracy}" for digest, accuracy in zip(pool.digests, accuracies, strict=False)]
    _print(options, result, "\n".join(lines))


def run_export(options: argparse.Namespace) -> None:
    from ..run.store import RunStore
    from ..sets.export import export
    from ..sets.read import read_set

    synthetic = read_set(options.set)
    beside = options.set if options.set.is_dir() else options.set.parent
    destination = options.out or beside / f"export-{options.to}"
    scores = [
        RunStore(options.set).read_json(str(p.relative_to(options.set))) for p in options.set.glob("scores/*.json")
    ]
    written = export(synthetic, destination, options.to, overwrite=options.overwrite, facts={"scores": scores})
    _print(options, {"written": str(written), "format": options.to}, str(written))


def run_report(options: argparse.Namespace) -> None:
    from ..report import collect, write_report
    from ..report.cost import curves_to_json
    from ..report.tables import rows_to_json, to_csv, to_markdown

    if options.format == "html":
        path = write_report(options.folder)
        _print(options, {"report": str(path)}, str(path))
        return
    records = collect(options.folder)
    text = to_markdown(records) if options.format == "markdown" else to_csv(records)
    _print(options, {"rows": rows_to_json(records), "curves": curves_to_json(records)}, text)


def run_list(options: argparse.Namespace) -> None:
    from .listing import describe, names

    if options.name is None:
        found = names(options.kind)
        _print(options, {options.kind: found}, "\n".join(f"{name:28s}{text}".rstrip() for name, text in found.items()))
    else:
        record = describe(options.kind, options.name)
        _print(options, record, record["text"])


# --- between options and recipes


def _layers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Recipe layers from a parsed command line, weakest first."""
    from ..recipe import parse_assignments, read_recipe

    short = {
        key: getattr(options, name) for name, key in SHORT_KEYS.items() if getattr(options, name, None) is not None
    }
    if "runtime.compile" in short:
        short["runtime.compile"] = {"true": True, "false": False}.get(short["runtime.compile"], "auto")
    base = [read_recipe(options.config)] if getattr(options, "config", None) else []
    return [*base, short, parse_assignments(options.keys)]


def _resolve(layers: Sequence[dict[str, Any]], extra: dict[str, Any] | None = None) -> Recipe:
    from ..recipe import resolve

    return resolve(*layers, extra or {})


def _recipe(options: argparse.Namespace, resumed: Any = None) -> Recipe:
    if resumed is not None and (resumed.config.exists() or isinstance(options.resume, str)):
        from ..recipe import merge
        from ..run.distil import read_run_recipe

        return _resolve([read_run_recipe(resumed).to_dict(), merge(*_layers(options))])
    return _resolve(_layers(options))


def _data(options: argparse.Namespace, config: Any) -> LabelledDataset:
    from dataclasses import asdict

    from ..data import load_dataset

    keys = asdict(config)
    return load_dataset(keys.pop("name"), data_dir=options.data_dir, download=options.download, **keys)


def _set_to_evaluate(options: argparse.Namespace) -> tuple[Any, Recipe, SyntheticSet, LabelledDataset]:
    """The store, the recipe (the run's own, or defaults), the set, and the data it is scored on."""
    from ..run.distil import read_run_recipe
    from ..run.store import RunStore
    from ..sets.read import read_set

    store = RunStore(options.set)
    if store.config.exists():
        base = read_run_recipe(store).to_dict()
        recipe = _resolve([base, *_layers(options)])
        synthetic = store.require_set()
        return store, _with_evaluation_seed(recipe, options), synthetic, _data(options, recipe.data)
    recipe = _resolve(_layers(options))
    if options.dataset is None and options.set.suffix == ".pt":
        raise UsageError(f"{options.set}: a .pt set does not name its data set; add --dataset NAME (and --factor)")
    synthetic = read_set(options.set) if options.dataset is None else None
    if synthetic is not None:
        recipe = _resolve([{"data.name": synthetic.spec.name}, *_layers(options)])
    data = _data(options, recipe.data)
    synthetic = synthetic or read_set(options.set, data.spec, factor=options.factor)
    _check_same_data(synthetic, data)
    folder = RunStore(options.set if options.set.is_dir() else options.set.with_suffix(".scores"))
    return folder, _with_evaluation_seed(recipe, options), synthetic, data


def _check_same_data(synthetic: SyntheticSet, data: LabelledDataset) -> None:
    theirs, ours = synthetic.spec, data.spec
    if (theirs.shape, theirs.num_classes) != (ours.shape, ours.num_classes):
        raise UsageError(
            f"the set has shape {theirs.shape} and {theirs.num_classes} classes, "
            f"{ours.name!r} has {ours.shape} and {ours.num_classes}: name the right --dataset"
        )


def _with_evaluation_seed(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    from dataclasses import replace

    if options.seed is None:
        return recipe
    return replace(recipe, evaluation=replace(recipe.evaluation, seed=options.seed))


def _scores_json(scores: Scores, synthetic: SyntheticSet) -> dict[str, Any]:
    return {**scores.to_json(), "recipe_hash": synthetic.provenance.get("recipe_hash", "")}


def _preview(store: Any, synthetic: SyntheticSet) -> None:
    from ..report import save_preview
    from ..sets.synthetic import SyntheticSet

    initial = SyntheticSet.load(store.initial) if store.metrics.exists() and store.metrics.stat().st_size else None
    save_preview(store.preview, synthetic, initial)


def _reporter(options: argparse.Namespace) -> Reporter:
    from ..run.progress import Reporter

    return Reporter(quiet=options.quiet)


def _print(options: argparse.Namespace, record: dict[str, Any], text: str) -> None:
    print(json.dumps({"schema_version": 1, **record}, indent=2) if options.json else text)


# --- option types


def _factor(text: str) -> list[int]:
    """`2` or `1,2`."""
    numbers = _integers(text)
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: one number, or rows,columns")
    return [numbers[0], numbers[-1]]


def _factors(text: str) -> list[tuple[int, int]]:
    """`1,2` or `2,3x1`: square ones, or rows x columns."""
    pairs = [word.split("x") for word in text.split(",") if word]
    if not pairs or any(len(pair) > 2 or not all(map(str.isdigit, pair)) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: factors separated by commas, each a number or ROWSxCOLUMNS")
    return [(int(pair[0]), int(pair[-1])) for pair in pairs]


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers separated by commas") from None


def _names(text: str) -> list[str]:
    names = [word.strip() for word in text.split(",") if word.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r}: names separated by commas")
    return names


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: need a whole number of at least 1")
    return int(text)
