"""The stage that evaluates: a set, those kept on the way, the full data. Each network's score is a file."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation import Score, Scores, evaluate_once, evaluation_seeds, protocol_schedule
from ..files import write_atomically
from ..recipe import Recipe
from ..sets.synthetic import SyntheticSet
from ..spec import DatasetSpec, LabelledDataset, Split
from .engine.processes import settle_at_once, side_by_side, waves
from .environment import commit, device_name
from .progress import Reporter
from .signals import interruptible
from .store import SCHEMA_VERSION, RunStore, dump_json, score_name


def evaluate_set(
    synthetic: SyntheticSet,
    test: Split,
    recipe: Recipe,
    folder: RunStore,
    reporter: Reporter,
    *,
    step: int | None = None,
) -> Scores:
    """Score a set by the recipe's evaluation section; each network's score is a file, done ones are kept.

    Args:
        step: of a set that was kept on the way; None for the final one.
    """
    facts = {
        "set_hash": synthetic.digest(),
        "recipe_hash": synthetic.provenance.get("recipe_hash", ""),
        "numbers_stored": synthetic.numbers_stored,
    }
    place = folder.scores if step is None else folder.kept_scores(step)
    return _evaluate("evaluate", synthetic.decoded(), synthetic.spec, test, recipe, place, facts, reporter)


def evaluate_kept(recipe: Recipe, test: Split, store: RunStore, reporter: Reporter) -> None:
    """Score the sets of a run that were kept on the way, and the one before the first step, like the final one.

    Their scores lie apart from the final set's, and a row never shows them.
    """
    last = int(store.require_set().provenance["steps"])
    for step, path in store.kept_sets().items():
        if step < last:
            reporter.say(f"{recipe.method_name} after {step} of {last} steps")
            evaluate_set(SyntheticSet.load(path), test, recipe, store, reporter, step=step)


def evaluate_full_data(
    data: LabelledDataset, recipe: Recipe, folder: RunStore, reporter: Reporter, *, epochs: int
) -> Scores:
    """Score the whole training split as if it were a set: the same networks and protocol, `epochs` epochs."""
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, epochs=epochs))
    facts = {
        "set_hash": data.spec.fingerprint,
        "recipe_hash": "",
        "numbers_stored": data.train.images.numel(),
    }
    return _evaluate("full data", data.train, data.spec, data.test, recipe, folder.scores, facts, reporter)


def _evaluate(
    stage_name: str,
    train: Split,
    spec: DatasetSpec,
    test: Split,
    recipe: Recipe,
    folder: Path,
    facts: dict[str, Any],
    reporter: Reporter,
) -> Scores:
    """A score per network in `folder`; those of the same content (`facts["set_hash"]`) that lie there are kept."""
    config = recipe.evaluation
    epochs = protocol_schedule(config.protocol, config.epochs).epochs
    side, passes = spec.shape[1], 3 * len(train) * epochs
    runtime = recipe.runtime.resolve(passes=passes * config.nets, side=side)
    seeds = evaluation_seeds(config.seed, config.network, config.nets)
    paths = {seed: folder / score_name(config.network, config.protocol, epochs, seed) for seed in seeds}
    scores = {seed: _read_score(path, facts["set_hash"]) for seed, path in paths.items()}
    missing = [seed for seed, score in scores.items() if score is None]
    at_once = settle_at_once(config.at_once, runtime, passes=passes * len(missing), side=side)
    together = min(at_once, len(missing))
    reporter.say(
        f"{stage_name}: {config.nets} x {config.network}, protocol {config.protocol}, {epochs} epochs of "
        f"{len(train):,} images; {runtime.describe()}" + (f", {together} networks at once" if together > 1 else "")
    )
    train_and_score = partial(
        evaluate_once, train, spec, test, network=config.network, protocol=config.protocol, epochs=config.epochs
    )
    done = epochs * (config.nets - len(missing))
    with reporter.stage(stage_name, config.nets * epochs, done) as stage, interruptible("the scores"):
        for wave, share in waves(missing, at_once, runtime):
            ran = {"device": device_name(share), "runtime": share.describe(), "commit": commit()}
            work = [partial(train_and_score, seed=seed) for seed in wave]
            with closing(side_by_side(work, share, lambda epoch, loss: stage.advance(f"loss {loss:.3f}"))) as results:
                for score in results:
                    scores[score.seed] = score
                    record = {"schema_version": SCHEMA_VERSION, **score.to_json(), **facts, **ran}
                    write_atomically(paths[score.seed], dump_json(record))
    return Scores(tuple(score for score in scores.values() if score is not None))


def _read_score(path: Path, set_hash: str) -> Score | None:
    """A finished score of this very set, else None."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        names = Score.__dataclass_fields__
        return Score(**{k: record[k] for k in names}) if record["set_hash"] == set_hash else None
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged score ({error}); delete it to evaluate again") from error
