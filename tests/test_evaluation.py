"""The evaluator: its protocols, its arithmetic, and that it looks at the test split once, after the last epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.errors import DataError, RunError, UsageError
from potstill.evaluation import (
    PROTOCOLS,
    Protocol,
    Scheduled,
    Score,
    Scores,
    evaluate_once,
    evaluation_seeds,
    find_protocol,
    samples_of,
)
from potstill.evaluation import evaluate as evaluating
from potstill.evaluation import protocols as protocol_module
from potstill.learning.fit import Schedule, accuracy, fit
from potstill.machine import runtime as runtimes
from potstill.machine.runtime import Runtime
from potstill.networks import Backbone, build_network
from potstill.recipe import resolve
from potstill.run import score as stage
from potstill.run.progress import Reporter
from potstill.run.score import evaluate, evaluate_set, stored_scores
from potstill.run.store import RunStore
from potstill.seeding import derive
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import DatasetSpec, LabelledDataset, Split

# --- protocols


def schedule_of(protocol: str, epochs: int | None = None) -> Schedule:
    found = find_protocol(protocol, epochs)
    assert isinstance(found, Scheduled)
    return found.schedule


#: Name: epochs, batch, optimiser, momentum, weight decay; rates at epochs; augmentation, one of all, CutMix.
PUBLISHED = {
    "dsdm": (
        (1500, 64, "sgd", 0.9, 5e-4),
        {0: 0.01, 750: 0.01, 999: 0.01, 1000: 0.002, 1249: 0.002, 1250: 0.0004, 1499: 0.0004},
        ("color_crop_flip_scale_rotate", False, 0.5),
    ),
    "mnist": (
        (1500, 64, "sgd", 0.9, 5e-4),
        {0: 0.01, 750: 0.01, 999: 0.01, 1000: 0.002, 1249: 0.002, 1250: 0.0004, 1499: 0.0004},
        ("color_crop_scale_rotate", False, 0.0),
    ),
    "speech": (
        (1500, 64, "sgd", 0.9, 5e-4),
        {0: 0.01, 750: 0.01, 999: 0.01, 1000: 0.002, 1249: 0.002, 1250: 0.0004, 1499: 0.0004},
        ("none", False, 0.0),
    ),
    "idc": (
        (1000, 64, "sgd", 0.9, 5e-4),
        {0: 0.01, 500: 0.01, 665: 0.01, 666: 0.002, 832: 0.002, 833: 0.0004, 999: 0.0004},
        ("color_crop_flip_scale_rotate", False, 0.5),
    ),
    "dc": (
        (1001, 256, "sgd", 0.9, 5e-4),
        {0: 0.01, 500: 0.01, 501: 0.01, 502: 0.001, 1000: 0.001},
        ("color_crop_cutout_flip_scale_rotate", True, 0.0),
    ),
    "ncfm": (
        (2000, 128, "adamw", 0.9, 0.01),
        {0: 1e-3, 399: 1e-3, 400: 5e-4, 800: 2.5e-4, 1000: 2.5e-4, 1200: 1.25e-4, 1600: 6.25e-5, 1999: 6.25e-5},
        ("color_crop_flip_scale_rotate", False, 0.5),
    ),
}


@pytest.mark.parametrize("name", [name for name, known in PROTOCOLS.items() if isinstance(known, Scheduled)])
def test_protocol_is_the_published_one(name: str) -> None:
    """Rates at the first, the middle and the last epoch and around each decay. AdamW's weight decay is torch's own."""
    found, (training, rates, view) = schedule_of(name), PUBLISHED[name]
    assert (found.epochs, found.batch, found.optimizer, found.momentum, found.weight_decay) == training
    assert {epoch: found.rate(epoch, 0.5) for epoch in rates} == pytest.approx(rates)
    assert (found.augment, found.augment_single, found.cutmix, found.nesterov) == (*view, False)
    restarts = [epoch for epoch in range(found.epochs) if found.restarts(epoch)]
    assert restarts == ([502] if name == "dc" else [])


def test_shortened_protocol_keeps_the_rest() -> None:
    assert find_protocol("dsdm") is PROTOCOLS["dsdm"]
    short = schedule_of("dsdm", 300)
    assert short == replace(schedule_of("dsdm"), epochs=300)
    assert [short.rate(epoch, 0.5) for epoch in (199, 200, 250)] == pytest.approx([0.01, 0.002, 0.0004])


def test_unknown_protocol_and_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown protocol 'dmsd': known are dc, dd, dsdm, idc, mnist, ncfm, speech"):
        find_protocol("dmsd")
    for epochs in (0, 10**9):
        with pytest.raises(UsageError, match=f"epochs={epochs}: need at least 1 and at most 1,000,000"):
            find_protocol("dsdm", epochs)
    for nets in (0, 10**9):
        with pytest.raises(UsageError, match=f"nets={nets}: need at least 1 network and at most 10,000"):
            evaluation_seeds(0, "convnet", nets)
    for name, call in (("epochs", partial(find_protocol, "dsdm")), ("nets", partial(evaluation_seeds, 0, "convnet"))):
        with pytest.raises(UsageError, match=f"{name}=1.5: need a whole number"):
            call(1.5)
    with pytest.raises(UsageError, match="seed='a': need a whole number"):
        evaluation_seeds("a", "convnet", 1)  # type: ignore[arg-type]
    assert find_protocol("dsdm", np.int64(3)).epochs == 3 and len(evaluation_seeds(0, "convnet", np.int64(2))) == 2


# --- scores


def scores_of(*accuracies: float, sets: int = 1) -> Scores:
    return Scores(
        tuple(Score("convnet", "dsdm", 300, i, a, 0.1, 2.0, f"set {i % sets}") for i, a in enumerate(accuracies))
    )


def test_mean_and_sample_deviation_by_hand() -> None:
    """.5, .6, .8, .9: mean .7; squares of -.2, -.1, .1, .2 sum to .1, over n - 1 = 3. Sets: .5, .8 and .6, .9."""
    scores = scores_of(0.5, 0.6, 0.8, 0.9, sets=2)
    assert scores.mean == pytest.approx(0.7)
    assert scores.std == pytest.approx(math.sqrt(0.1 / 3))
    assert scores.std_sets == pytest.approx(math.sqrt(0.005))  # of .65 and .75
    assert scores.std_nets == pytest.approx(math.sqrt(0.045))  # .15 below and above in both
    assert (scores.n_sets, scores.n_nets) == (2, 2)
    assert str(scores) == "70.00 +- 18.26 % (last epoch, n = 2 sets x 2 nets, convnet, protocol dsdm, 300 epochs)"


def test_unequal_numbers_of_networks_are_told() -> None:
    scores = scores_of(0.5, 0.6, 0.8, sets=2)
    assert (scores.nets_per_set, scores.n, scores.n_nets) == ((2, 1), "2 x 1-2", 1)


def test_one_network_has_no_deviation() -> None:
    scores = scores_of(0.5)
    assert (scores.std, scores.std_sets, scores.std_nets) == (None, None, None)
    assert str(scores).startswith("50.00 % (last epoch, n = 1 set x 1 nets")
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False))["std"] is None


def test_record_of_scores_is_complete() -> None:
    record = scores_of(0.5, 0.7).to_json()
    assert record["mean"] == pytest.approx(0.6) and record["std"] == pytest.approx(math.sqrt(0.02))
    assert (record["n_sets"], record["n_nets"], record["selection"]) == (1, 2, "last epoch")
    written = json.loads(json.dumps(record["scores"]))
    assert [Score.from_json(score) for score in written] == list(scores_of(0.5, 0.7).scores)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "expected a JSON object, found list"),
        ("7", "expected a JSON object, found int"),
        ('{"schema_version": 1}', "network is None; expected a score as evaluate stores it"),
        ('{"schema_version": 9}', "schema_version 9, this potstill reads 1"),
        ("{", "line 1: not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_holds_no_score_is_one_line_with_its_name(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        Score.read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}") and complaint in said and "\n" not in said
    assert said.endswith("delete it to evaluate again")


def test_more_networks_keep_the_first() -> None:
    seeds = evaluation_seeds(0, "convnet", 5)
    assert evaluation_seeds(0, "convnet", 2) == seeds[:2]
    assert len({*seeds, *evaluation_seeds(1, "convnet", 5), *evaluation_seeds(0, "convnet3", 5)}) == 15


# --- evaluating


@pytest.fixture
def real_set(toy_dataset: LabelledDataset) -> SyntheticSet:
    """Four stored images a class with four real tiles each."""
    images = initial_images(toy_dataset.train, toy_dataset.spec, ipc=4, parameterisation=(2, 2))
    return SyntheticSet(images, toy_dataset.spec, (2, 2))


def test_networks_trained_on_real_tiles_beat_chance_by_far(
    real_set: SyntheticSet, toy_dataset: LabelledDataset
) -> None:
    """Three classes: .33 by chance."""
    scores = evaluate(real_set, toy_dataset.test, nets=2, protocol="mnist", epochs=15, seed=1, runtime=Runtime())
    assert scores.mean > 0.75
    assert (scores.n_nets, scores.n_sets) == (2, 1)
    assert [s.seed for s in scores.scores] == evaluation_seeds(1, "convnet", 2)
    assert all((s.network, s.protocol, s.epochs) == ("convnet", "mnist", 15) for s in scores.scores)
    assert scores.scores[0].train_loss != scores.scores[1].train_loss


def test_networks_trained_on_wrong_labels_fall_below_chance(
    real_set: SyntheticSet, toy_dataset: LabelledDataset
) -> None:
    """Labels follow `classes`, and the score is agreement with the true ones."""
    wrong = replace(real_set, classes=(1, 2, 0))
    assert evaluate(wrong, toy_dataset.test, nets=1, protocol="mnist", epochs=15, runtime=Runtime()).mean < 0.25


def test_score_is_that_of_a_fresh_network_after_the_last_epoch(
    real_set: SyntheticSet, toy_dataset: LabelledDataset
) -> None:
    keys = {"network": "convnet3", "protocol": "dsdm", "seed": 5, "runtime": Runtime(), "epochs": 3}
    told: list[tuple[int, float]] = []
    given = (real_set.decoded(), real_set.spec, toy_dataset.test)
    score = evaluate_once(*given, **keys, on_epoch=lambda *t: told.append(t))
    spec, own, losses = toy_dataset.spec, derive(5, "evaluate"), []
    network = fit(
        build_network("convnet3", spec, own),
        real_set.decoded(),
        spec,
        schedule_of("dsdm", 3),
        Runtime(),
        seed=own,
        on_epoch=lambda epoch, loss: losses.append(loss),
    )
    assert score.accuracy == accuracy(network, toy_dataset.test, spec, Runtime())
    assert score.train_loss == losses[-1]
    assert told == [(1, losses[0]), (2, losses[1]), (3, losses[2])]
    again = evaluate_once(*given, **keys)
    assert replace(again, seconds=0) == replace(score, seconds=0)


def test_a_better_earlier_epoch_is_not_picked(
    real_set: SyntheticSet, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is right at epoch 1 and spoils its classifier at epoch 2 scores as it ends: all class 0."""
    looks = []

    def spoiling_fit(network, data, spec, schedule, runtime, *, seed, on_epoch):
        fit(network, toy_dataset.train, spec, replace(schedule, epochs=5), runtime, seed=seed)
        on_epoch(1, 0.1)
        with torch.no_grad():
            network.classifier.weight.zero_()
            network.classifier.bias.copy_(torch.tensor([1.0, 0, 0]))
        on_epoch(2, 9.0)
        return network

    def watched_accuracy(*arguments: object) -> float:
        looks.append(arguments)
        return accuracy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(protocol_module, "fit", spoiling_fit)
    monkeypatch.setattr(evaluating, "accuracy", watched_accuracy)
    given = (real_set.decoded(), real_set.spec, toy_dataset.test)
    score = evaluate_once(*given, network="convnet", protocol="mnist", seed=0, runtime=Runtime(), epochs=2)
    assert score.accuracy == pytest.approx(1 / 3)  # 20 of 60
    assert score.train_loss == 9
    assert len(looks) == 1  # the test split is looked at once


@pytest.mark.parametrize("nets", [1, 2, 5, 9])
def test_python_and_the_stage_settle_the_runtime_of_a_job_alike(
    nets: int, real_set: SyntheticSet, toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice between eager fp32 and compiled bf16 falls between these numbers of networks."""
    chosen: list[Runtime] = []

    def note(*_: object, seed: int, runtime: Runtime, **__: object) -> Score:
        chosen.append(runtime)
        return Score("convnet", "mnist", 2, seed, 0.5)

    monkeypatch.setattr(stage, "evaluate_once", note)
    monkeypatch.setattr(stage, "settle_at_once", lambda *_, **__: 1)
    monkeypatch.setattr(runtimes, "COMPILE_PAYS_FROM", 3 * 48 * 2 * 3 / 16)  # three networks of 8x8
    monkeypatch.setattr(runtimes, "has_bf16", lambda _: True)
    monkeypatch.setattr(runtimes, "_resolve_compile", lambda _asked, _device, small: not small)
    monkeypatch.setattr(Runtime, "start", lambda _: None)
    evaluate(real_set, toy_dataset, nets=nets, protocol="mnist", epochs=2)
    recipe = resolve({"evaluation": {"nets": nets, "protocol": "mnist", "epochs": 2}})
    evaluate_set(real_set, toy_dataset, recipe, RunStore(tmp_path), Reporter(quiet=True))
    assert len(set(chosen)) == 1
    assert chosen[0].compile == (chosen[0].precision == "bf16") == (nets >= 3)


@pytest.mark.parametrize("keys", [{"protocol": "none"}, {"epochs": 0}, {"nets": 0}, {"network": "mlp?"}])
def test_wrong_arguments_are_refused_before_training(
    keys: dict, real_set: SyntheticSet, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol_module, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(UsageError):
        evaluate(real_set, toy_dataset.test, runtime=Runtime(), **keys)


def test_edited_images_are_scored_if_they_are_numbers(real_set: SyntheticSet, toy_dataset: LabelledDataset) -> None:
    halved = replace(real_set, images=real_set.images.double() * 0.5)
    assert evaluate(halved, toy_dataset, nets=1, epochs=1, runtime=Runtime()).n_nets == 1
    with pytest.raises(UsageError, match="the set has NaN or infinite images"):
        evaluate(replace(real_set, images=real_set.images / 0), toy_dataset, nets=1, epochs=1)


# --- a protocol of one's own


@dataclass(frozen=True)
class StepsOfTheSet(Protocol):
    """One pass at the learning rate that the set brings, as in DD."""

    name: str = "toy"
    epochs: int = 1  # type: ignore[assignment]

    def lasting(self, epochs: int) -> StepsOfTheSet:
        return replace(self, epochs=epochs)

    def train(
        self,
        network: Backbone,
        train: SyntheticSet | Split,
        spec: DatasetSpec,
        runtime: Runtime,
        *,
        seed: int,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> Backbone:
        assert isinstance(train, SyntheticSet)
        schedule = Schedule(self.epochs, batch=256, learning_rate=float(train.extras["rate"]))
        return fit(network, samples_of(train), spec, schedule, runtime, seed=seed, on_epoch=on_epoch)


def test_a_protocol_can_follow_what_the_set_brings(real_set: SyntheticSet, toy_dataset: LabelledDataset) -> None:
    losses = []
    for rate in (0.0, 0.05):
        brought = replace(real_set, extras={"rate": torch.tensor(rate)})
        scores = evaluate(brought, toy_dataset, nets=1, protocol=StepsOfTheSet(), epochs=4, runtime=Runtime())
        assert (scores.scores[0].protocol, scores.scores[0].epochs) == ("toy", 4)
        losses.append(scores.scores[0].train_loss)
    assert losses[1] < 0.9 * losses[0]


# --- the data a set is scored on


def small(nets: int = 1) -> Any:
    return resolve(
        {
            "evaluation": {"nets": nets, "protocol": "mnist", "epochs": 1},
            "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
        }
    )


def other(data: LabelledDataset, **spec: Any) -> LabelledDataset:
    return replace(data, spec=replace(data.spec, **spec))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shape": (3, 8, 8)}, r"the set has shape \(1, 8, 8\) and 3 classes, 'toy' has \(3, 8, 8\) and 3"),
        ({"classes": ("a", "b", "c", "d")}, "'toy' has .* and 4: name the right --dataset"),
        ({"classes": ("a", "b", "ship")}, "the set's classes are 'a', 'b', 'c', those of 'toy' 'a', 'b', 'ship'"),
    ],
)
def test_data_of_another_kind_are_refused_by_python_and_stage(
    change: dict, complaint: str, real_set: SyntheticSet, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint):
        evaluate(real_set, other(toy_dataset, **change), nets=1)
    with pytest.raises(UsageError, match=complaint):
        evaluate_set(real_set, other(toy_dataset, **change), small(), RunStore(tmp_path), Reporter(quiet=True))


def test_a_test_split_of_another_shape_or_with_unknown_labels_is_refused(
    real_set: SyntheticSet, toy_dataset: LabelledDataset
) -> None:
    test = toy_dataset.test
    with pytest.raises(UsageError, match=r"60 samples of \(3, 8, 8\)"):
        evaluate(real_set, Split(test.images.expand(-1, 3, -1, -1), test.labels), nets=1)
    with pytest.raises(UsageError, match="the set has 3 classes, the test data have a label 3"):
        evaluate(real_set, Split(test.images, test.labels + 1), nets=1)
    with pytest.raises(UsageError, match="cannot score on str: give what load_dataset returns"):
        evaluate(real_set, "digits", nets=1)  # type: ignore[arg-type]


def test_classes_in_another_order_are_counted_in_the_sets(real_set: SyntheticSet, toy_dataset: LabelledDataset) -> None:
    """The same pictures under the same names, numbered otherwise."""
    turned = replace(
        other(toy_dataset, classes=("c", "a", "b"), fingerprint="turned"),
        test=Split(toy_dataset.test.images, (toy_dataset.test.labels + 1) % 3),
    )
    keys = {"nets": 1, "protocol": "mnist", "epochs": 5, "runtime": Runtime()}
    ours, theirs = evaluate(real_set, toy_dataset, **keys), evaluate(real_set, turned, **keys)
    assert ours.scores[0].accuracy == theirs.scores[0].accuracy
    assert ours.scores[0].test_hash == theirs.scores[0].test_hash


def test_scores_on_other_test_data_are_measured_and_lie_apart(
    real_set: SyntheticSet, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    store, quiet = RunStore(tmp_path), Reporter(quiet=True)
    own = evaluate_set(real_set, toy_dataset, small(), store, quiet)
    changed = replace(
        other(toy_dataset, fingerprint="changed"),
        test=Split(toy_dataset.test.images, (toy_dataset.test.labels + 1) % 3),
    )
    theirs = evaluate_set(real_set, changed, small(), store, quiet)
    assert theirs.scores[0].accuracy == evaluate(real_set, changed, nets=1, protocol="mnist", epochs=1).mean
    assert theirs.scores[0].test_hash != own.scores[0].test_hash
    assert stored_scores(store.scores) == own.scores
    assert evaluate_set(real_set, changed, small(), store, quiet) == theirs


def test_a_stored_score_is_not_returned_for_changed_test_data(
    real_set: SyntheticSet, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    store, quiet = RunStore(tmp_path), Reporter(quiet=True)
    own = evaluate_set(real_set, toy_dataset.test, small(), store, quiet)
    fewer = Split(toy_dataset.test.images[:30], toy_dataset.test.labels[:30])
    again = evaluate_set(real_set, fewer, small(), store, quiet)
    assert again.scores[0].seconds != own.scores[0].seconds
    assert again.mean == evaluate(real_set, fewer, nets=1, protocol="mnist", epochs=1, runtime=Runtime()).mean


def test_a_folder_that_cannot_be_written_is_found_before_training(
    real_set: SyntheticSet, toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores").write_text("a file where the folder should be")
    monkeypatch.setattr(protocol_module, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(RunError, match=r"scores: scores cannot be written here .*; use --out DIR"):
        evaluate_set(real_set, toy_dataset, small(), RunStore(tmp_path), Reporter(quiet=True))
