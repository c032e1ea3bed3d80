"""What a stage works on: the data that a recipe names, and the set that an evaluation is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data import DATASETS, load_dataset
from ..errors import UsageError
from ..recipe import Recipe, resolve
from ..sets.parameterisations import Factor
from ..sets.read import check_told, read_set
from ..sets.synthetic import SyntheticSet
from ..spec import DatasetSpec, LabelledDataset
from .distil import read_run_recipe
from .store import RunStore


def load_data(recipe: Recipe, *, data_dir: Path | None = None, download: bool = False) -> LabelledDataset:
    """The data set of the recipe's `data` section, see `data.load_dataset`."""
    keys = asdict(recipe.data)
    del keys["fingerprint"]
    return load_dataset(keys.pop("name"), data_dir=data_dir, download=download, **keys)


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a set, the data it is scored on, the recipe that says how, and where the scores go."""

    synthetic: SyntheticSet
    data: LabelledDataset
    recipe: Recipe
    folder: RunStore


def find_subject(
    path: Path,
    layers: Sequence[Mapping[str, Any]] = (),
    *,
    dataset: str | None = None,
    factor: Factor | None = None,
    normalised: bool | None = None,
    seed: int | None = None,
    out: Path | None = None,
    data_dir: Path | None = None,
    download: bool = False,
) -> Subject:
    """The set in a run folder, which brings its recipe, or in a file, which is scored by the default one.

    Args:
        layers: recipe layers over the run's own, or over the defaults.
        dataset: where the set's file does not say which, or to score it on other data of the same kind.
        factor, normalised: of a `.pt` file, see `read_pt`; its normalisation is that of the data.
        seed: of the evaluation networks; the recipe's where None.
        out: where scores go; the run's folder, or a folder beside the file, where None.
    Raises:
        UsageError: a set of unknown or other data, or told to be other than it is.
        DataError: no set there, or a damaged one.
    """
    named = {} if dataset is None else {"data.name": dataset}
    scoring = {} if seed is None else {"evaluation.seed": seed}
    run = RunStore(path)
    if run.config.exists():
        recipe = resolve(read_run_recipe(run).to_dict(), named, *layers, scoring)
        synthetic, data = run.require_set(), load_data(recipe, data_dir=data_dir, download=download)
        check_told(run.distilled, synthetic, factor, normalised)
        folder = run.root
    else:
        found = read_set(path, factor=factor, normalised=normalised) if dataset is None else None
        recipe = resolve(_data_of(path, found.spec) if found else named, *layers, scoring)
        data = load_data(recipe, data_dir=data_dir, download=download)
        synthetic = found or read_set(path, data.spec, factor=factor, normalised=normalised)
        folder = path if path.is_dir() else path.with_suffix(".scores")
    return Subject(synthetic, data, recipe, RunStore(out or folder))


def _data_of(path: Path, spec: DatasetSpec) -> Mapping[str, Any]:
    """What a recipe says of the data that the set in `path` stands for: a known name, or the place its run recorded.

    Raises:
        UsageError: data of one's own, and the set no longer lies in its run's folder.
    """
    if spec.name in DATASETS:
        return {"data.name": spec.name}
    file = path.resolve() / "distilled.safetensors" if path.is_dir() else path.resolve()
    for run in map(RunStore, file.parents):
        if file in (run.distilled, *run.kept_sets().values()) and run.config.exists():
            return {"data": read_run_recipe(run).to_dict()["data"]}
    raise UsageError(f"{path}: stands for {spec.name!r}, data of your own: say where they are with --dataset PATH")
