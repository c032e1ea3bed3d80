"""The evaluator: its protocols, its arithmetic, and that it looks at the test split once, after the last epoch."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from potstill import evaluation as module
from potstill.errors import UsageError
from potstill.evaluation import PROTOCOLS, Score, Scores, evaluate, evaluate_once, evaluation_seeds, protocol_schedule
from potstill.learning.fit import accuracy, fit
from potstill.machine.runtime import Runtime
from potstill.networks import build_network
from potstill.seeding import derive
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import LabelledDataset

# --- protocols


def rates(protocol: str, *epochs: int) -> list[float]:
    return [PROTOCOLS[protocol].rate(epoch, 0.5) for epoch in epochs]


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "optimizer", "rate", "augment", "single", "cutmix"),
    [
        ("dsdm", 1500, 64, "sgd", 0.01, "color_crop_flip_scale_rotate", False, 0.5),
        ("mnist", 1500, 64, "sgd", 0.01, "color_crop_scale_rotate", False, 0.0),
        ("idc", 1000, 64, "sgd", 0.01, "color_crop_flip_scale_rotate", False, 0.5),
        ("dc", 1000, 256, "sgd", 0.01, "color_crop_cutout_flip_scale_rotate", True, 0.0),
        ("ncfm", 2000, 128, "adamw", 0.001, "color_crop_flip_scale_rotate", False, 0.5),
    ],
)
def test_protocol_has_the_published_numbers(
    name: str, epochs: int, batch: int, optimizer: str, rate: float, augment: str, single: bool, cutmix: float
) -> None:
    found = PROTOCOLS[name]
    assert (found.epochs, found.batch, found.optimizer, found.learning_rate) == (epochs, batch, optimizer, rate)
    assert (found.augment, found.augment_single, found.cutmix) == (augment, single, cutmix)
    if optimizer == "sgd":
        assert (found.momentum, found.nesterov, found.weight_decay) == (0.9, False, 5e-4)


def test_every_protocol_is_tested() -> None:
    assert set(PROTOCOLS) == {"dsdm", "mnist", "idc", "dc", "ncfm"}


def test_protocol_rates_fall_where_published() -> None:
    """DSDM and IDC: x.2 at 2/3 and 5/6. DC: x.1 at half. NCFM: x.5 at each fifth."""
    for name in ("dsdm", "mnist"):
        assert rates(name, 0, 999, 1000, 1249, 1250, 1499) == pytest.approx([0.01] * 2 + [0.002] * 2 + [0.0004] * 2)
    assert rates("idc", 0, 666, 667, 832, 833, 999) == pytest.approx([0.01] * 2 + [0.002] * 2 + [0.0004] * 2)
    assert rates("dc", 0, 499, 500, 999) == pytest.approx([0.01, 0.01, 0.001, 0.001])
    expected = [1e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 6.25e-5]
    assert rates("ncfm", 0, 399, 400, 800, 1200, 1600, 1999) == pytest.approx(expected)


def test_shortened_protocol_keeps_the_rest() -> None:
    assert protocol_schedule("dsdm") == PROTOCOLS["dsdm"]
    short = protocol_schedule("dsdm", 300)
    assert short == replace(PROTOCOLS["dsdm"], epochs=300)
    assert [short.rate(epoch, 0.5) for epoch in (199, 200, 250)] == pytest.approx([0.01, 0.002, 0.0004])


def test_unknown_protocol_and_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown protocol 'dmsd': known are dc, dsdm, idc, mnist, ncfm"):
        protocol_schedule("dmsd")
    with pytest.raises(UsageError, match="epochs=0: need at least 1"):
        protocol_schedule("dsdm", 0)
    with pytest.raises(UsageError, match="nets=0: need at least 1"):
        evaluation_seeds(0, "convnet", 0)


# --- scores


def scores_of(*accuracies: float, n_sets: int = 1) -> Scores:
    return Scores(tuple(Score("convnet", "dsdm", 300, i, a, 0.1, 2.0) for i, a in enumerate(accuracies)), n_sets)


def test_mean_and_sample_deviation_by_hand() -> None:
    """.5, .6, .8, .9: mean .7; squares of -.2, -.1, .1, .2 sum to .1, over n - 1 = 3."""
    scores = scores_of(0.5, 0.6, 0.8, 0.9, n_sets=2)
    assert scores.mean == pytest.approx(0.7)
    assert scores.std == pytest.approx(math.sqrt(0.1 / 3))
    assert (scores.n_sets, scores.n_nets) == (2, 2)
    assert str(scores) == "70.00 +- 18.26 % (last epoch, n = 2 set x 2 nets, convnet, protocol dsdm, 300 epochs)"


def test_one_network_has_no_deviation() -> None:
    scores = scores_of(0.5)
    assert math.isnan(scores.std)
    assert str(scores).startswith("50.00 % (last epoch, n = 1 set x 1 nets")
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False))["std"] is None


def test_record_of_scores_is_complete() -> None:
    record = scores_of(0.5, 0.7).to_json()
    assert record["mean"] == pytest.approx(0.6) and record["std"] == pytest.approx(math.sqrt(0.02))
    assert (record["n_sets"], record["n_nets"], record["selection"]) == (1, 2, "last epoch")
    assert [Score(**score) for score in record["scores"]] == list(scores_of(0.5, 0.7).scores)


def test_more_networks_keep_the_first() -> None:
    seeds = evaluation_seeds(0, "convnet", 5)
    assert evaluation_seeds(0, "convnet", 2) == seeds[:2]
    assert len({*seeds, *evaluation_seeds(1, "convnet", 5), *evaluation_seeds(0, "convnet3", 5)}) == 15


# --- evaluating


@pytest.fixture
def real_set(toy_dataset: LabelledDataset) -> SyntheticSet:
    """Four stored images a class with four real tiles each."""
    images = initial_images(toy_dataset.train, toy_dataset.spec, ipc=4, factor=(2, 2))
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
        replace(PROTOCOLS["dsdm"], epochs=3),
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

    monkeypatch.setattr(module, "fit", spoiling_fit)
    monkeypatch.setattr(module, "accuracy", watched_accuracy)
    given = (real_set.decoded(), real_set.spec, toy_dataset.test)
    score = evaluate_once(*given, network="convnet", protocol="mnist", seed=0, runtime=Runtime(), epochs=2)
    assert score.accuracy == pytest.approx(1 / 3)  # 20 of 60
    assert score.train_loss == 9
    assert len(looks) == 1  # the test split is looked at once


def test_runtime_is_settled_by_the_size_of_the_job(
    real_set: SyntheticSet, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 samples x 2 epochs x 3 networks."""
    asked = {}
    monkeypatch.setattr(Runtime, "resolve", classmethod(lambda cls, **keys: asked.update(keys) or Runtime()))
    evaluate(real_set, toy_dataset.test, nets=3, protocol="mnist", epochs=2)
    assert asked == {"passes": 288, "side": 8}


@pytest.mark.parametrize("keys", [{"protocol": "none"}, {"epochs": 0}, {"nets": 0}, {"network": "mlp?"}])
def test_wrong_arguments_are_refused_before_training(
    keys: dict, real_set: SyntheticSet, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(UsageError):
        evaluate(real_set, toy_dataset.test, runtime=Runtime(), **keys)
