"""`potstill pretrain`: a recipe's pool of networks, into the cache."""

from __future__ import annotations

import argparse
from typing import Any

from . import options as shared


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(
        verbs, "pretrain", run, "train a recipe's pool of networks into the cache", takes_keys=True
    )
    shared.add_recipe(parser)
    shared.add_places(parser)
    shared.add_runtime(parser)


def run(options: argparse.Namespace) -> None:
    from ..run.pretrain import pretrain_pool

    recipe = shared.recipe_of(options)
    data = shared.data_of(options, recipe)
    pool = pretrain_pool(recipe, data, shared.reporter_of(options), cache=options.cache_dir)
    accuracies = [facts.get("train_accuracy", "") for facts in pool.metadata]
    result = {"members": list(pool.digests), "seconds": pool.seconds, "train_accuracy": accuracies}
    lines = [f"{digest}  train accuracy {accuracy}" for digest, accuracy in zip(pool.digests, accuracies, strict=False)]
    shared.show(options, result, "\n".join(lines))
