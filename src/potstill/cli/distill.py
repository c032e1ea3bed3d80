"""`potstill distill`: one run in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import options as shared

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..run.store import RunStore

#: The recipe for data of one's own, and keys beside which it is not taken.
OWN_DATA = "dsdm_plus/auto"
SAYS_HOW = {"method", "factor", "parameterisation", "fidelity"}


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(verbs, "distill", run, "distil a data set into a run folder", takes_keys=True)
    shared.add_recipe(parser)
    shared.add_key(parser, "--method", "method.name", metavar="NAME", help="see potstill list methods")
    shared.add_key(parser, "--ipc", "ipc", type=shared.whole, help="stored images per class")
    shared.add_factor(parser)
    parser.add_argument("--out", type=shared.place, metavar="DIR", help="the run's folder")
    parser.add_argument("--resume", nargs="?", const=True, metavar="DIR", help="go on with the run in DIR (or --out)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the folder")
    shared.add_budget(parser)
    shared.add_dry_run(parser)
    shared.add_keep_snapshots(parser, "steps whose sets are kept")
    shared.add_places(parser)
    shared.add_runtime(parser)


def run(options: argparse.Namespace) -> None:
    from ..run.distil import check_kept_steps, distill_run
    from ..run.estimate import estimate
    from ..run.search import settle
    from ..run.store import RunStore
    from ..run.study import Cell, Study

    if options.dry_run:
        recipe = asked(options)
        cell = Cell(options.out.name if options.out else recipe.method_name, recipe.method_name, recipe)
        given: dict[str, Any] = {"reporter": shared.reporter_of(options), "cache": options.cache_dir}
        place = options.out.parent if options.out else None
        shared.print_estimates(
            options, estimate(Study((cell,)), lambda r: shared.data_of(options, r), out=place, **given)
        )
        return
    folder = Path(options.resume) if isinstance(options.resume, str) else options.out
    if options.out not in (None, folder):
        raise UsageError(
            f"--out {options.out} beside --resume {folder}: a run goes on in its own folder; leave --out away"
        )
    if folder is None:
        raise UsageError(
            "no folder for the run: give one, as --resume DIR"
            if options.resume
            else "no folder for the run: add --out DIR"
        )
    store = RunStore(folder)
    recipe = _recipe(options, store)
    check_kept_steps(recipe)
    data, reporter = shared.data_of(options, recipe), shared.reporter_of(options)
    places: dict[str, Any] = {"cache": options.cache_dir, "overwrite": options.overwrite}
    recipe = settle(recipe, data, store, reporter, **places)
    synthetic = distill_run(recipe, data, store, reporter, resume=bool(options.resume), **places)
    result = {
        "run": str(store.root),
        "recipe_hash": synthetic.provenance["recipe_hash"],
        "images": list(synthetic.images.shape),
        "numbers_stored": synthetic.numbers_stored,
        **{key: synthetic.provenance[key] for key in ("search", "plan") if key in synthetic.provenance},
        **{k: v for k, v in store.read_json("times.json").items() if k != "schema_version"},
    }
    shared.show(options, result, f"{store.distilled}\nnext: potstill evaluate {store.root}")


def _recipe(options: argparse.Namespace, store: RunStore) -> Recipe:
    """What was asked for, over the run's own where one goes on."""
    from ..recipe import merge, resolve
    from ..run.distil import read_asked_recipe

    if options.resume and (store.config.exists() or isinstance(options.resume, str)):
        return resolve(read_asked_recipe(store).to_dict(), merge(*shared.layers_of(options)))
    return asked(options)


def asked(options: argparse.Namespace) -> Recipe:
    """The recipe; for data of one's own that of data never tuned on, where nothing is said of how to distil them."""
    from ..data import DATASETS
    from ..recipe import merge, read_recipe, resolve

    layers = shared.layers_of(options)
    said = merge(*layers)
    own = said.get("data", {}).get("name", "digits") not in DATASETS
    if own and not options.config and not SAYS_HOW & said.keys():
        shared.reporter_of(options).say(f"taking the recipe {OWN_DATA}; another by --config or --method")
        layers = [read_recipe(OWN_DATA), *layers]
    return resolve(*layers)
