"""The Python entry points behind `potstill.distill`: a run in a folder, or one that leaves no files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import expanded
from ..learning.pool import Pool
from ..methods import METHODS
from ..networks import Frozen
from ..recipe import Recipe, read_recipe, resolve
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .distil import check_kept_steps, distill_run
from .progress import Reporter
from .search import settle
from .store import RunStore


@dataclass(frozen=True)
class Run:
    """What `distill` returns.

    Attributes:
        synthetic: the set, a torch `Dataset`.
        recipe: as it was resolved.
        folder: where the run's files are; None for a run without files.
    """

    synthetic: SyntheticSet
    recipe: Recipe
    folder: Path | None

    def __repr__(self) -> str:
        """One line, for a notebook."""
        method, where = self.recipe.method_name, self.folder or "no folder"
        return f"<Run of {method}, recipe {self.recipe.hash()}, in {where}: {self.synthetic!r}>"


def distill(
    data: LabelledDataset,
    *,
    method: str | None = None,
    ipc: int | None = None,
    factor: int | tuple[int, int] | None = None,
    parameterisation: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    cache: str | Path | None = None,
    recipe: Mapping[str, Any] | str | Path | None = None,
    pool: Frozen | Sequence[Frozen] | None = None,
    **method_keys: Any,
) -> Run:
    """Distil a data set into `ipc` stored images per class.

    Args:
        data: from `load_dataset`; only its training split is used.
        method: a name from `potstill list methods`; the recipe's, else "dsdm", where None.
        ipc, factor, seed: stored images per class, rows and columns of small images in each (one number for as many of
            both), and the root of all draws; the recipe's, else 10, (2, 2) and 0, where None.
        parameterisation: what else the images' budget holds (docs/parameterisations.md); "auto" for what does best in
            short trials on a hold-out of the training split.
        out: the run's folder; where None, files are temporary and nothing can be resumed.
        cache: folder of the pool cache; the user's cache folder where None.
        recipe: recipe keys, nested or dotted ("pool.members"), that the arguments go over; or a file of them, or the
            name of a shipped recipe.
        pool: modules with weights of their own, whose features are matched, in place of networks trained for it.
        method_keys: keys of the method, e.g. `steps=500`.
    Raises:
        UsageError: an unknown key, a value outside its range, data that were not loaded, or modules that cannot serve.
        RunError, Interrupted: see `run.distil.distill_run`.
    """
    if not isinstance(data, LabelledDataset):
        raise UsageError(
            f"cannot distil {data!r}: load it first, data = potstill.load_dataset(...)"
            if isinstance(data, (str, Path))
            else f"cannot distil a {type(data).__name__}: make it a data set by potstill.load_dataset(...)"
        )
    given = {"method.name": method, "ipc": ipc, "factor": factor, "parameterisation": parameterisation, "seed": seed}
    keys = {f"method.{key}": value for key, value in method_keys.items()}
    chosen = {key: value for key, value in given.items() if value is not None}
    if pool is not None:
        members = Pool.of(pool)
        chosen |= {"pool.network": members.network, "pool.members": len(members), "pool.pretrained": False}
    named = {"data.name": data.spec.name}  # over that of a file, whose other keys are meant
    told = (named, recipe or {}) if recipe is None or isinstance(recipe, Mapping) else (read_recipe(recipe), named)
    resolved = resolve(*told, chosen, keys).on(data)
    if pool is not None and not METHODS[resolved.method_name].needs_pool:
        drawing = ", ".join(name for name in METHODS if METHODS[name].needs_pool)
        raise UsageError(f"pool: method {resolved.method_name} draws from none; leave it out, or use one of {drawing}")
    check_kept_steps(resolved)
    reporter = Reporter(quiet=quiet)
    cache_folder = expanded(cache) if cache else None
    if out is not None:
        return _run(resolved, data, RunStore(out), reporter, cache_folder, resume, overwrite)
    with tempfile.TemporaryDirectory(prefix="potstill-") as folder:
        return replace(_run(resolved, data, RunStore(folder), reporter, cache_folder), folder=None)


def _run(
    recipe: Recipe,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    cache: Path | None,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    recipe = settle(recipe, data, store, reporter, cache=cache, overwrite=overwrite)
    synthetic = distill_run(recipe, data, store, reporter, cache=cache, resume=resume, overwrite=overwrite)
    return Run(synthetic, recipe, store.root)
