"""Features of one class of distilled sets and of its real data, in networks of the pool: what Figures 3 and 7 draw.

Measured once and stored beside the tables, in two dimensions by t-SNE; drawing needs neither data nor networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingExtra
from ..files import SCHEMA_VERSION, write_atomically
from ..learning.augment import Draw
from ..learning.extractor import Extractor
from ..learning.pool import Pool
from ..matching.features import match_covariances, match_prototypes
from ..networks import build_network
from ..recipe import Recipe
from ..seeding import generator
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .paper import PaperCell, read_plan
from .pretrain import pretrain_pool
from .progress import Reporter
from .store import RunStore

#: The file of a figure's measurements, by the figure's name.
FEATURES = "{}-features.json"
#: The class that is shown, and real samples of it at most.
CLASS, REAL = 0, 1000
#: Networks of the pool that a figure looks through.
NETWORKS = {"networks": 6, "embedding": 1}


def measure(
    table: str,
    cells: Sequence[PaperCell],
    load: Callable[[Recipe], LabelledDataset],
    *,
    runs: Path,
    out: Path,
    reporter: Reporter,
    cache: Path | None = None,
) -> None:
    """Measure the finished sets (seed 0) of a figure's cells and store it in `out`, unless it is there for these sets.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    stores = [(cell, RunStore(runs / cell.cell(0).name)) for cell in cells if cell.recipe]
    found = [(cell, SyntheticSet.load(store.distilled)) for cell, store in stores if store.distilled.exists()]
    path, sets = out / FEATURES.format(table), [synthetic.digest() for _, synthetic in found]
    if not found or _sets_of(path) == sets:
        return
    reporter.say(f"--- features for {table}")
    measured = []
    for cell, synthetic in found:
        assert cell.recipe
        data = load(cell.recipe)
        pool = pretrain_pool(cell.recipe, data, reporter, cache=cache)
        measured.append(_measured(cell, cell.recipe, synthetic, data, pool, NETWORKS[read_plan(table).draw]))
    record = {"schema_version": SCHEMA_VERSION, "sets": sets, "cells": measured}
    write_atomically(path, json.dumps(record) + "\n")


def _sets_of(path: Path) -> list[str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sets"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _measured(
    cell: PaperCell, recipe: Recipe, synthetic: SyntheticSet, data: LabelledDataset, pool: Pool, networks: int
) -> dict[str, Any]:
    """One set: under each network the loss of the class, and where its samples and the real ones lie in the plane.

    Points of several networks share one plane, without real samples; those of one network lie beside the real ones.
    """
    runtime = recipe.runtime.resolve(passes=networks * REAL, side=data.spec.shape[1])
    runtime.start()
    extractor = Extractor(build_network(pool.network, data.spec, 0), data.spec, runtime)
    real, distilled = _class_of(data), synthetic.samples()[synthetic.classes.index(CLASS)]
    still = _no_draw()
    members = pool.members[:networks]
    features = [[extractor.embed(weights, x[None], still).cpu() for x in (real, distilled)] for weights in members]
    shown = [own for _, own in features] if len(members) > 1 else [torch.cat([features[0][0], features[0][1]], 1)]
    points = iter(plane(torch.cat(shown, 1)[0]).tolist())
    alone = len(members) == 1
    return {
        "cell": cell.label,
        "at": cell.draft.at,
        "class": data.spec.classes[CLASS],
        "recipe_hash": recipe.hash(),
        "networks": [
            {
                "member": name,
                **_losses(recipe, theirs, own),
                "real": [next(points) for _ in range(theirs.shape[1])] if alone else [],
                "distilled": [next(points) for _ in range(own.shape[1])],
            }
            for name, (theirs, own) in zip(pool.digests, features, strict=False)
        ],
    }


def _class_of(data: LabelledDataset) -> Tensor:
    """At most REAL training samples of the class, spread evenly over its order."""
    places = (data.train.labels == CLASS).nonzero().flatten()
    return data.train.images[places[:: max(1, -(-len(places) // REAL))]]


def _no_draw() -> Draw:
    """An augmentation that does nothing."""
    return Draw((), Draw.row(generator(0, "features")))


def _losses(recipe: Recipe, real: Tensor, distilled: Tensor) -> dict[str, float]:
    """The prototype and covariance terms of Eq. (9) for one class."""
    weight = float(getattr(recipe.method, "covariance_weight", 50.0))
    prototype = float(match_prototypes(real, distilled))
    covariance = weight * float(match_covariances(real, distilled)) if distilled.shape[1] > 1 else 0.0
    return {"loss": prototype + covariance, "prototype": prototype, "covariance": covariance}


def plane(features: Tensor) -> Tensor:
    """t-SNE of `(N, D)` features, `(N, 2)`; the same features give the same points on one machine.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise MissingExtra("t-SNE, for Figures 3 and 7,", "figures") from None
    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(features.double().numpy())
    return torch.from_numpy(points)
