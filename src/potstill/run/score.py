"""The stage that evaluates: a set, those kept on the way, the full data. Each network's score is a file.

`potstill.evaluate` is the same stage without a folder, so that Python and the command line give the same numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data.measure import split_fingerprint
from ..errors import RunError, UsageError, counted
from ..evaluation import Protocol, TrainingSet, evaluate_once, evaluation_seeds, find_protocol, matching_test
from ..files import write_atomically
from ..machine.runtime import Runtime
from ..recipe import Recipe
from ..scores import Score, Scores
from ..sets.synthetic import SyntheticSet
from ..spec import DatasetSpec, LabelledDataset, Split
from .engine.processes import settle_at_once, side_by_side, waves
from .environment import commit, device_name
from .progress import Reporter
from .signals import interruptible
from .store import RunStore, dump_json, score_name


@dataclass(frozen=True)
class Job:
    """What the networks of one evaluation are trained on, how, and what they are tested on.

    Attributes:
        facts: fields of `Score` that hold for all of them.
        settle: makes the runtime, from the network passes and the image side of the job.
    """

    train: TrainingSet
    spec: DatasetSpec
    test: Split
    network: str
    protocol: Protocol
    seeds: Sequence[int]
    facts: dict[str, Any]
    settle: Callable[..., Runtime]
    at_once: int | str = 1


def evaluate(
    synthetic: SyntheticSet,
    data: LabelledDataset | Split,
    *,
    network: str = "convnet",
    nets: int = 3,
    protocol: str | Protocol = "dsdm",
    epochs: int | None = None,
    seed: int = 0,
    at_once: int | str = 1,
    runtime: Runtime | None = None,
) -> Scores:
    """Score a synthetic set: the mean over `nets` networks trained on it from scratch, each at its last epoch.

    Args:
        synthetic: the set; it brings normalisation and factor.
        data: the data set that the set stands for, or its test split, never shown to a method. Class names of a data
            set are compared with the set's.
        network: an architecture name, see `potstill list networks`.
        protocol: one of `PROTOCOLS`, or one of your own; `epochs` overrides its length, and the row says so.
        at_once: networks trained at the same time, each in a process of its own, or "auto"; a script that asks for
            more than one needs `if __name__ == "__main__":` around its own work.
    Raises:
        UsageError: data that do not fit the set, an unknown name or an impossible number.
    """
    if not isinstance(synthetic, SyntheticSet):
        raise UsageError(f"cannot evaluate {type(synthetic).__name__}: give a SyntheticSet (of a run: run.synthetic)")
    _require_finite(synthetic)
    job = Job(
        synthetic,
        synthetic.spec,
        matching_test(synthetic.spec, data),
        network,
        find_protocol(protocol, epochs).suited(synthetic),
        evaluation_seeds(seed, network, nets),
        _facts(synthetic),
        Runtime.resolve if runtime is None else lambda **_: runtime,
        at_once,
    )
    return _evaluate("evaluate", job, None, Reporter(quiet=True))


def evaluate_set(
    synthetic: SyntheticSet,
    data: LabelledDataset | Split,
    recipe: Recipe,
    folder: RunStore,
    reporter: Reporter,
    *,
    step: int | None = None,
    only: int | None = None,
) -> Scores:
    """Score a set by the recipe's evaluation section; each network's score is a file, done ones are kept.

    Scores on other data than the set stands for (a corrected test split, say) lie apart: no row shows them.

    Args:
        step: of a set that was kept on the way; None for the final one.
        only: which of the networks to train, from 0; None for all.
    """
    _require_finite(synthetic)
    test = matching_test(synthetic.spec, data)
    place = folder.scores if step is None else folder.kept_scores(step)
    if isinstance(data, LabelledDataset) and data.spec.fingerprint != synthetic.spec.fingerprint:
        reporter.say(f"{data.spec.name}: not the data that this set was made from; their scores lie apart")
        place = place / f"on-{split_fingerprint(test)}"
    return _evaluate("evaluate", _job_on_set(synthetic, test, recipe), place, reporter, only=only)


def _require_finite(synthetic: SyntheticSet) -> None:
    """Raises UsageError for images of which every network would fail, with the advice to lower its rate."""
    if not synthetic.images.isfinite().all():
        raise UsageError("the set has NaN or infinite images: no network can be trained on it")


def missing_networks(recipe: Recipe, data: LabelledDataset, synthetic: SyntheticSet | None, scores: Path) -> list[int]:
    """Which networks, from 0, have no score in the folder by the recipe's evaluation section.

    Args:
        synthetic: what they are trained on; None for the whole training split.
    """
    if synthetic is None:
        job = _job_on_whole(data, recipe)
    else:
        job = _job_on_set(synthetic, matching_test(synthetic.spec, data), recipe)
    found = _finished(scores, job, {**job.facts, "test_hash": split_fingerprint(job.test)})
    return [i for i, seed in enumerate(job.seeds) if seed not in found]


def sets_to_score(recipe: Recipe, store: RunStore, *, curve: bool) -> Iterator[tuple[Path, Path]]:
    """Files of a finished run's sets, each with the folder of its scores: its last one, the same in few bits where the
    recipe asks for that, and for a curve those that were kept on the way."""
    yield store.distilled, store.scores
    if recipe.evaluation.stored_bits is not None:
        place = _write_in_few_bits(store.require_set(), recipe.evaluation.stored_bits, store)[1]
        yield place.distilled_in_few_bits, place.scores
    if curve:
        last = int(store.require_set().provenance["steps"])
        for step, path in store.kept_sets().items():
            if step < last:
                yield path, store.kept_scores(step)


def _write_in_few_bits(synthetic: SyntheticSet, bits: int, folder: RunStore) -> tuple[SyntheticSet, RunStore]:
    rounded, place = synthetic.quantised(bits), folder.in_few_bits(bits)
    write_atomically(place.distilled_in_few_bits, rounded.to_bytes())
    return rounded, place


def evaluate_in_few_bits(
    synthetic: SyntheticSet, data: LabelledDataset | Split, recipe: Recipe, folder: RunStore, reporter: Reporter
) -> tuple[SyntheticSet, Scores] | None:
    """The set with its stored numbers in the recipe's `evaluation.stored_bits`, and its scores by the same evaluator.

    Its file and scores lie in a folder of their own below `folder`. None where the recipe asks for no such set.
    """
    bits = recipe.evaluation.stored_bits
    if bits is None:
        return None
    rounded, place = _write_in_few_bits(synthetic, bits, folder)
    return rounded, evaluate_set(rounded, data, recipe, place, reporter)


def evaluate_kept(recipe: Recipe, data: LabelledDataset | Split, store: RunStore, reporter: Reporter) -> None:
    """Score the sets of a run that were kept on the way, and the one before the first step, like the final one.

    Their scores lie apart from the final set's, and a row never shows them.
    """
    last = int(store.require_set().provenance["steps"])
    for step, path in store.kept_sets().items():
        if step < last:
            reporter.say(f"{recipe.method_name} after {step} of {last} steps")
            evaluate_set(SyntheticSet.load(path), data, recipe, store, reporter, step=step)


def evaluate_full_data(
    data: LabelledDataset, recipe: Recipe, folder: RunStore, reporter: Reporter, *, only: int | None = None
) -> Scores:
    """Score the whole training split as if it were a set: the same networks and protocol.

    Args:
        only: see `evaluate_set`.
    """
    return _evaluate("full data", _job_on_whole(data, recipe), folder.scores, reporter, only=only)


def stored_scores(folder: Path) -> tuple[Score, ...]:
    """All scores that lie in `folder`, by their file names.

    Raises:
        DataError: a damaged one, or another kind of file; the message names it.
    """
    return tuple(Score.read(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith("."))


def _facts(synthetic: SyntheticSet) -> dict[str, Any]:
    return {
        "set_hash": synthetic.digest(),
        "recipe_hash": str(synthetic.provenance.get("recipe_hash", "")),
        "numbers_stored": synthetic.numbers_stored,
        "bytes_stored": synthetic.bytes_stored,
        "stored_bits": synthetic.stored_bits,
    }


def _job_on_set(synthetic: SyntheticSet, test: Split, recipe: Recipe) -> Job:
    return _job(synthetic, synthetic.spec, test, recipe, _facts(synthetic))


def _job_on_whole(data: LabelledDataset, recipe: Recipe) -> Job:
    images = data.train.images
    stored = {"numbers_stored": images.numel(), "bytes_stored": images.nbytes}
    return _job(data.train, data.spec, data.test, recipe, {"set_hash": data.spec.fingerprint, **stored})


def _job(train: TrainingSet, spec: DatasetSpec, test: Split, recipe: Recipe, facts: dict[str, Any]) -> Job:
    config = recipe.evaluation
    protocol = find_protocol(config.protocol, config.epochs).suited(train)
    seeds = evaluation_seeds(config.seed, config.network, config.nets)
    settle = recipe.runtime.resolve
    return Job(train, spec, test, config.network, protocol, seeds, facts, settle, config.at_once)


def _evaluate(stage_name: str, job: Job, folder: Path | None, reporter: Reporter, *, only: int | None = None) -> Scores:
    """A score for each seed, or for one; those of the same set on the same test data that lie in `folder` are kept."""
    epochs, nets, side = job.protocol.epochs, len(job.seeds), job.spec.shape[1]
    passes = 3 * len(job.train) * epochs  # a backward pass costs two forward ones
    runtime = job.settle(passes=passes * nets, side=side)
    facts = {**job.facts, "test_hash": split_fingerprint(job.test)}
    scores = {} if folder is None else _finished(folder, job, facts)
    missing = [seed for i, seed in enumerate(job.seeds) if seed not in scores and only in (None, i)]
    if folder is not None and missing:
        _check_writable(folder)
    at_once = settle_at_once(job.at_once, runtime, passes=passes * len(missing), side=side)
    together = min(at_once, len(missing))
    reporter.say(
        f"{stage_name}: {nets} x {job.network}, protocol {job.protocol.name}, {counted(epochs, 'epoch')} of "
        f"{len(job.train):,} images; {runtime.describe()}" + (f", {together} networks at once" if together > 1 else "")
    )
    train_and_score = partial(evaluate_once, job.train, job.spec, job.test, network=job.network, protocol=job.protocol)
    done = epochs * (nets - len(missing))
    with reporter.stage(stage_name, nets * epochs, done) as stage, interruptible("the scores"):
        for wave, share in waves(missing, at_once, runtime):
            ran = {"device": device_name(share), "runtime": share.describe(), "commit": commit()}
            work = [partial(train_and_score, seed=seed) for seed in wave]
            with closing(side_by_side(work, share, lambda epoch, loss: stage.advance(f"loss {loss:.3f}"))) as results:
                for result in results:
                    score = replace(result, **facts, **ran)
                    scores[score.seed] = score
                    if folder is not None:
                        write_atomically(_path(folder, job, score.seed), dump_json(score.to_json()))
    return Scores(tuple(scores[seed] for seed in job.seeds if seed in scores))


def _path(folder: Path, job: Job, seed: int) -> Path:
    return folder / score_name(job.network, job.protocol.name, job.protocol.epochs, seed)


def _finished(folder: Path, job: Job, facts: dict[str, Any]) -> dict[int, Score]:
    """Scores that were stored for this very set and these very test data, by their seeds."""
    found = {seed: Score.read(path) for seed in job.seeds if (path := _path(folder, job, seed)).exists()}
    same = (facts["set_hash"], facts["test_hash"])
    return {seed: score for seed, score in found.items() if (score.set_hash, score.test_hash) == same}


def _check_writable(folder: Path) -> None:
    """Refuse before hours of training what could not be kept after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RunError(f"{folder}: scores cannot be written here ({error.strerror}); use --out DIR") from error
