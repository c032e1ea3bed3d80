"""The classifier loop against a plain PyTorch loop, its chunks, CutMix and schedules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import RunError, UsageError
from potstill.learning import augment
from potstill.learning.augment import Strategy, apply, draw, strategy_for
from potstill.learning.fit import Schedule, _shared_judge, _shared_learner, accuracy, fit, rule_of
from potstill.learning.inner import Batch, Learner
from potstill.learning.pool import untrained
from potstill.learning.view import draw_mix
from potstill.machine.runtime import Runtime
from potstill.methods import Problem
from potstill.networks import build_network
from potstill.networks.convnet import ConvNet
from potstill.recipe import resolve
from potstill.seeding import generator
from potstill.spec import DatasetSpec, LabelledDataset, Split, normalise

PLAIN = Schedule(epochs=1, batch=8, learning_rate=0.01)
WHOLE = Runtime(chunk=1024)


def small_network(spec: DatasetSpec, seed: int = 0) -> ConvNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(spec.shape, spec.num_classes, width=8)


def weights_after(data: LabelledDataset, schedule: Schedule, runtime: Runtime = WHOLE, **keys) -> Tensor:
    """All weights in one row after training on the first `count` images."""
    train = data.train.subset(torch.arange(keys.pop("count", 20)))
    network = fit(small_network(data.spec), train, data.spec, schedule, runtime, **{"seed": 3, **keys})
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def gradient_of_one_step(data: LabelledDataset, runtime: Runtime, count: int, **keys) -> Tensor:
    """By one step of plain descent at rate 1."""
    schedule = replace(PLAIN, batch=count, learning_rate=1.0, momentum=0.0, weight_decay=0.0, **keys)
    start = torch.cat([p.detach().flatten() for p in small_network(data.spec).parameters()])
    return start - weights_after(data, schedule, runtime, count=count)


# --- determinism


def test_training_depends_on_its_seed_alone(toy_dataset: LabelledDataset) -> None:
    schedule = replace(PLAIN, epochs=2, augment="color_crop", cutmix=0.5)
    torch.manual_seed(1)
    first = weights_after(toy_dataset, schedule)
    torch.manual_seed(2)
    assert torch.equal(weights_after(toy_dataset, schedule), first)
    assert not torch.allclose(weights_after(toy_dataset, schedule, seed=4), first)


@pytest.mark.parametrize("name", ["convnet:width=8", "convnet:width=8,norm=batch"])
def test_networks_of_one_architecture_share_graphs_and_nothing_else(
    name: str, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, schedule = list[object](), replace(PLAIN, epochs=2, augment="color_crop", cutmix=0.5)

    def compiling(_: Runtime, function: object) -> object:
        compiled.append(function)
        return function

    monkeypatch.setattr(Runtime, "compiled", compiling)

    def trained(seed: int) -> tuple[dict[str, Tensor], float]:
        network = build_network(name, toy_dataset.spec, seed)
        fit(network, toy_dataset.train, toy_dataset.spec, schedule, WHOLE, seed=seed)
        right = accuracy(network, toy_dataset.test, toy_dataset.spec, WHOLE)
        assert not network.training
        return {key: value.clone() for key, value in network.state_dict().items()}, right

    for shared in (_shared_learner, _shared_judge):
        shared.cache_clear()
    first = trained(1)
    graphs = len(compiled)
    other, again = trained(2), trained(1)
    assert graphs > 0 and len(compiled) == graphs
    assert again[1] == first[1] and all(torch.equal(again[0][key], value) for key, value in first[0].items())
    assert any(not torch.equal(other[0][key], value) for key, value in first[0].items())


def test_training_leaves_data_and_the_global_stream_alone(toy_dataset: LabelledDataset) -> None:
    before = toy_dataset.train.images.clone()
    torch.manual_seed(0)
    expected = torch.rand(4)
    small_network(toy_dataset.spec)
    torch.manual_seed(0)
    weights_after(toy_dataset, replace(PLAIN, augment="color_crop", cutmix=1.0))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(toy_dataset.train.images, before)


# --- the step


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize("chunk", [1, 3, 5, 20])
def test_step_in_chunks_equals_the_step_on_the_whole_batch(
    chunk: int, cutmix: float, toy_colour: LabelledDataset
) -> None:
    """Chunks of 3 leave one that is filled up: the filling must weigh nothing."""
    keys = {"count": 20, "augment": "color_crop", "cutmix": cutmix}
    expected = gradient_of_one_step(toy_colour, WHOLE, **keys)
    found = gradient_of_one_step(toy_colour, Runtime(chunk=chunk), **keys)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_step_has_the_gradient_of_the_mean_cross_entropy(toy_colour: LabelledDataset) -> None:
    spec, network = toy_colour.spec, small_network(toy_colour.spec)
    x = normalise(toy_colour.train.images[:20] / 255, torch.tensor(spec.mean), torch.tensor(spec.std))
    loss = F.cross_entropy(network(x), toy_colour.train.labels[:20])
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    found = gradient_of_one_step(toy_colour, Runtime(chunk=3), count=20)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_ragged_last_batch_counts_like_the_others(toy_dataset: LabelledDataset) -> None:
    """20 images in batches of 8 leave one of 4; 8 are three passes of 3, the last filled up, and 4 two of 2."""
    schedule = replace(PLAIN, epochs=2)
    found = weights_after(toy_dataset, schedule, Runtime(chunk=3))
    torch.testing.assert_close(found, weights_after(toy_dataset, schedule), rtol=1e-3, atol=1e-5)


def test_every_batch_is_cut_evenly(toy_dataset: LabelledDataset) -> None:
    """A batch of 12 with chunks of 8 at most is two passes of 6; the last, of 8, is one: nothing is filled up."""
    network, passed = small_network(toy_dataset.spec), []
    network.register_forward_pre_hook(lambda _module, arguments: passed.append(len(arguments[0])))
    fit(
        network,
        toy_dataset.train.subset(torch.arange(20)),
        toy_dataset.spec,
        replace(PLAIN, batch=12),
        Runtime(chunk=8),
        seed=0,
    )
    assert passed == [6, 6, 8]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_decay_that_restarts_is_a_new_optimiser(optimizer: str, toy_dataset: LabelledDataset) -> None:
    """4 epochs of 3 batches, the rate falls after 2: as torch's optimisers of the two halves, one after the other."""
    spec, train = toy_dataset.spec, toy_dataset.train.subset(torch.arange(20))
    keys = {"optimizer": optimizer, "decay": "steps", "decay_at": (0.5,), "decay_factor": 0.1}
    expected = small_network(spec)
    for epoch in range(4):
        if epoch in (0, 2):
            rate = (0.02, 0.002)[epoch // 2]
            optimiser = (
                torch.optim.SGD(expected.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
                if optimizer == "sgd"
                else torch.optim.AdamW(expected.parameters(), lr=rate, weight_decay=5e-4)
            )
        for index in torch.randperm(20, generator=generator(3, "order", epoch)).split(8):
            x = normalise(train.images[index] / 255, torch.tensor(spec.mean), torch.tensor(spec.std))
            optimiser.zero_grad()
            F.cross_entropy(expected(x), train.labels[index]).backward()
            optimiser.step()

    def distance(restarts: bool) -> float:
        schedule = Schedule(epochs=4, batch=8, learning_rate=0.02, decay_restarts=restarts, **keys)
        network = fit(small_network(spec), train, spec, schedule, WHOLE, seed=3)
        pairs = zip(network.named_parameters(), expected.parameters(), strict=True)
        # A bias before the norm changes nothing: its gradient is rounding alone, which Adam blows up to full steps.
        return max((a - b).abs().max().item() for (name, a), b in pairs if not name.endswith("conv.bias"))

    assert distance(restarts=True) < 1e-4 < 1e-3 < distance(restarts=False)


OPTIMISERS = {
    "momentum": (
        {"momentum": 0.9, "weight_decay": 0.1, "decay": "steps", "decay_at": (0.5,), "decay_factor": 0.1},
        lambda parameters: torch.optim.SGD(parameters, lr=1, momentum=0.9, weight_decay=0.1),
        lambda epoch, done: 0.02 if epoch < 2 else 0.002,
    ),
    "nesterov": (
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.0, "decay": "one_cycle"},
        lambda parameters: torch.optim.SGD(parameters, lr=1, momentum=0.8, nesterov=True),
        lambda epoch, done: 0.02 * min((done + 0.5) / 12 / 0.2, (1 - (done + 0.5) / 12) / 0.8),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.3},
        lambda parameters: torch.optim.AdamW(parameters, lr=1, weight_decay=0.3),
        lambda epoch, done: 0.02,
    ),
}


@pytest.mark.parametrize(("keys", "make", "rate"), OPTIMISERS.values(), ids=OPTIMISERS)
def test_training_equals_a_plain_loop_to_its_last_epoch(keys, make, rate, toy_dataset: LabelledDataset) -> None:
    """4 epochs of 3 batches, augmented: order, numbers, rates and the optimiser, and no earlier epoch picked."""
    spec = replace(toy_dataset.spec, mirror=True)
    train = toy_dataset.train.subset(torch.arange(20))
    schedule = Schedule(epochs=4, batch=8, learning_rate=0.02, augment="color_flip_rotate", **keys)
    expected = small_network(spec)
    optimiser, done, losses = make(expected.parameters()), 0, []
    for epoch in range(4):
        total = 0.0
        order = torch.randperm(20, generator=generator(3, "order", epoch))
        for i, index in enumerate((order[:8], order[8:16], order[16:])):
            drawn = draw(Strategy(("color", "flip", "rotate")), len(index), generator(3, "batch", epoch, i))
            x = normalise(train.images[index] / 255, torch.tensor(spec.mean), torch.tensor(spec.std))
            loss = F.cross_entropy(expected(apply(x, drawn.operations, drawn.uniform)), train.labels[index])
            optimiser.param_groups[0]["lr"] = rate(epoch, done)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(index)
            done += 1
        losses.append(total / 20)
    reported: list[tuple[int, float]] = []
    network = fit(
        small_network(spec), train, spec, schedule, WHOLE, seed=3, on_epoch=lambda *told: reported.append(told)
    )
    for (name, ours), theirs in zip(network.named_parameters(), expected.parameters(), strict=True):
        # A bias before the norm changes nothing: its gradient is rounding alone, which Adam blows up to full steps.
        if not name.endswith("conv.bias"):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert [epoch for epoch, _ in reported] == [1, 2, 3, 4]
    assert [loss for _, loss in reported] == pytest.approx(losses, rel=1e-3)
    assert not network.training


def test_letters_are_not_mirrored_while_training(toy_dataset: LabelledDataset) -> None:
    assert not toy_dataset.spec.mirror
    flipped = gradient_of_one_step(toy_dataset, WHOLE, 20, augment="flip")
    assert torch.equal(flipped, gradient_of_one_step(toy_dataset, WHOLE, 20))
    mirrored = replace(toy_dataset, spec=replace(toy_dataset.spec, mirror=True))
    assert not torch.allclose(gradient_of_one_step(mirrored, WHOLE, 20, augment="flip"), flipped)


@pytest.mark.parametrize("keys", [{"augment": "color_crop_cutout_scale_rotate"}, {"cutmix": 1.0}])
def test_sound_is_neither_augmented_nor_mixed_while_training(keys: dict, toy_dataset: LabelledDataset) -> None:
    sound = replace(toy_dataset, spec=replace(toy_dataset.spec, modality="sound"))
    plain = gradient_of_one_step(sound, WHOLE, 20)
    assert torch.equal(gradient_of_one_step(sound, WHOLE, 20, **keys), plain)
    assert not torch.allclose(gradient_of_one_step(toy_dataset, WHOLE, 20, **keys), plain)


@pytest.mark.parametrize("method", ["dm", "dsa", "m3d", "dsdm", "dsdm_plus"])
def test_no_method_augments_sound(method: str, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every view of a sample is of the sample as it is, by the method's own default augmentation."""
    applied: list[tuple[str, ...]] = []

    def noted(x: Tensor, operations: tuple[str, ...], uniform: Tensor) -> Tensor:
        applied.append(operations)
        return apply(x, operations, uniform)

    monkeypatch.setattr(augment, "apply", noted)
    for modality in ("sound", "image"):
        spec = replace(toy_dataset.spec, modality=modality)
        problem = Problem(spec=spec, train=toy_dataset.train, ipc=2, pool=untrained(spec, members=2), runtime=Runtime())
        made = resolve({"method": {"name": method, "steps": 1}}).build_method()
        applied.clear()
        made.step(problem, made.init(problem))
        assert applied and any(applied) == (modality == "image")


def test_augmentation_left_out_of_sound_is_said_once(
    toy_dataset: LabelledDataset, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(toy_dataset.spec, name="bells", modality="sound")
    with caplog.at_level("INFO", logger="potstill"):
        assert not strategy_for(spec, "none").operations and not caplog.messages
        assert [strategy_for(spec, "color_crop").operations for _ in range(3)] == [(), (), ()]
    assert caplog.messages == ["bells is sound: it is not augmented, as all operations are an image's"]


# --- CutMix


def flat_images(side: int) -> tuple[DatasetSpec, Tensor, Tensor]:
    """Six images of one value each, 0 to 5, and labels 10 times that, so that pixels tell where they come from."""
    spec = DatasetSpec("flat", (1, side, side), ("a", "b"), (0.0,), (1.0,), mirror=False, fingerprint="flat")
    return spec, torch.arange(6.0)[:, None, None, None].expand(6, 1, side, side), torch.arange(6) * 10


def mixed(side: int, cutmix: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
    spec, images, labels = flat_images(side)
    network = ConvNet(spec.shape, 2, width=2, depth=1)
    learner = Learner(network, spec, WHOLE, rule=rule_of(PLAIN), cutmix=cutmix)
    return learner.seen(Batch(images, labels, 0.0, generator(0, "mix", step)))


def test_label_shares_are_the_shares_of_the_pixels() -> None:
    partial = 0
    for step in range(60):
        x, targets, shares = mixed(9, 1.0, step)
        assert shares.sum().item() == pytest.approx(1)
        for i in range(6):
            own, partner = targets[i].tolist()
            assert own == i * 10
            pasted = (x[i] == partner // 10).sum().item() / 81
            if partner != own:
                assert pasted == pytest.approx(6 * shares[i, 1].item(), abs=1e-6)
                assert (x[i] == i).sum().item() / 81 == pytest.approx(6 * shares[i, 0].item(), abs=1e-6)
                partial += 0 < pasted < 1
    assert partial > 100


def test_pasted_pixels_form_one_box() -> None:
    for step in range(20):
        x, targets, _ = mixed(9, 1.0, step)
        i = next(i for i in range(6) if targets[i, 0] != targets[i, 1])
        hole = x[i, 0] != i
        assert torch.equal(hole, hole.any(1)[:, None] & hole.any(0))


def test_partners_are_a_permutation_drawn_anew() -> None:
    seen = {tuple(mixed(9, 1.0, step)[1][:, 1].tolist()) for step in range(10)}
    assert len(seen) == 10
    assert all(sorted(partners) == [0, 10, 20, 30, 40, 50] for partners in seen)


def test_no_cutmix_leaves_images_and_labels_alone() -> None:
    _, images, labels = flat_images(9)
    for step in range(20):
        x, targets, shares = mixed(9, 0.0, step)
        assert torch.equal(x, images)
        assert torch.equal(targets[:, 0], labels)
        assert torch.equal(shares * 6, torch.tensor([[1.0, 0]]).expand(6, 2))


def test_cutmix_mixes_the_stated_share_of_batches() -> None:
    count = sum(draw_mix(0.5, 32, 32, 2, generator(0, step)).box.any().item() for step in range(600))
    assert abs(count - 300) < 50  # four deviations


def test_cut_area_is_uniform_before_the_border_clips_it() -> None:
    """Published: share of the area ~ Beta(1, 1), box centred anywhere.

    A box of side s, centred uniformly in 0..1, keeps s - s^2/4 of its side on average. With s = sqrt(U) the mean area
    is E[(s - s^2/4)^2] = E[U] - E[U^1.5]/2 + E[U^2]/16 = 1/2 - 1/5 + 1/48 = .321. (Uniform sides would give .221.)
    """
    kept = [draw_mix(1.0, 256, 256, 2, generator(0, step)).kept for step in range(3000)]
    assert 1 - sum(kept) / 3000 == pytest.approx(0.321, abs=0.02)  # four deviations


def test_mixed_loss_weighs_both_labels(toy_dataset: LabelledDataset) -> None:
    """The gradient is that of kept * CE(own label) + (1 - kept) * CE(partner's label)."""
    spec, network = toy_dataset.spec, small_network(toy_dataset.spec)
    train = toy_dataset.train.subset(torch.randperm(20, generator=generator(3, "order", 0)))
    learner = Learner(network, spec, WHOLE, rule=rule_of(PLAIN), cutmix=1.0)
    x, targets, shares = learner.seen(Batch(train.images, train.labels, 0.0, generator(3, "batch", 0, 0)))
    kept = 20 * shares[0, 0]
    assert 0.05 < kept < 0.95
    logits = network(x)
    loss = kept * F.cross_entropy(logits, targets[:, 0]) + (1 - kept) * F.cross_entropy(logits, targets[:, 1])
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    found = gradient_of_one_step(toy_dataset, Runtime(chunk=7), count=20, cutmix=1.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


# --- schedules


def test_rate_falls_at_two_thirds_and_five_sixths() -> None:
    """1500 epochs: times .2 from epoch 1000 (counted from 0) and again from 1250."""
    schedule = replace(PLAIN, epochs=1500, decay="steps", decay_at=(2 / 3, 5 / 6), decay_factor=0.2)
    rates = [schedule.rate(epoch, 0.5) for epoch in (0, 999, 1000, 1249, 1250, 1499)]
    assert rates == pytest.approx([0.01, 0.01, 0.002, 0.002, 0.0004, 0.0004])


def test_decays_fall_on_whole_epochs_rounded_down() -> None:
    """The published codes divide in whole numbers: 2 * 1000 // 3 = 666 and 5 * 1000 // 6 = 833."""
    schedule = replace(PLAIN, epochs=1000, decay="steps", decay_at=(2 / 3, 5 / 6), decay_factor=0.2)
    rates = [schedule.rate(epoch, 0.5) for epoch in (665, 666, 832, 833)]
    assert rates == pytest.approx([0.01, 0.002, 0.002, 0.0004])
    for epochs in range(3, 300):
        first = next(e for e in range(epochs) if replace(schedule, epochs=epochs).rate(e, 0.5) < 0.009)
        assert first == 2 * epochs // 3


def test_one_cycle_rises_over_a_fifth_and_falls_to_zero() -> None:
    schedule = replace(PLAIN, decay="one_cycle")
    rates = [schedule.rate(0, progress) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.005, 0])


def test_rate_without_decay_stays() -> None:
    assert {PLAIN.rate(epoch, epoch / 10) for epoch in range(10)} == {0.01}


def test_unknown_decay_or_optimiser_is_refused(toy_dataset: LabelledDataset) -> None:
    with pytest.raises(UsageError, match="decay='cosine': use none, steps or one_cycle"):
        weights_after(toy_dataset, replace(PLAIN, decay="cosine"))
    with pytest.raises(UsageError, match="optimizer='adam': use sgd or adamw"):
        weights_after(toy_dataset, replace(PLAIN, optimizer="adam"))


# --- learning


def test_loss_falls_and_accuracy_rises(toy_dataset: LabelledDataset) -> None:
    """Three classes, so .33 by chance."""
    network, losses = small_network(toy_dataset.spec), []
    before = accuracy(network, toy_dataset.test, toy_dataset.spec, Runtime())
    schedule = replace(PLAIN, epochs=8, batch=32)
    fit(
        network,
        toy_dataset.train,
        toy_dataset.spec,
        schedule,
        Runtime(),
        seed=0,
        on_epoch=lambda _, l: losses.append(l),
    )
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy(network, toy_dataset.test, toy_dataset.spec, Runtime()) > max(before, 0.85)


def test_training_that_diverges_stops_with_the_remedy(toy_dataset: LabelledDataset) -> None:
    epochs: list[int] = []
    with pytest.raises(RunError, match=r"training loss is (nan|inf) in epoch \d: lower the learning rate or use fp32"):
        weights_after(
            toy_dataset,
            replace(PLAIN, epochs=9, learning_rate=1e30),
            on_epoch=lambda epoch, loss: epochs.append(epoch) if math.isfinite(loss) else pytest.fail("told a nan"),
        )
    assert len(epochs) < 9


@pytest.mark.parametrize(("chunk", "count"), [(16, 60), (64, 60), (7, 5), (1, 3), (60, 60)])
def test_accuracy_is_the_share_of_right_answers(chunk: int, count: int, toy_dataset: LabelledDataset) -> None:
    """Also where the last chunk is filled up, or the only one: the filling is not counted."""
    network, spec = small_network(toy_dataset.spec), toy_dataset.spec
    fit(network, toy_dataset.train, spec, replace(PLAIN, batch=32), Runtime(), seed=0)
    test = toy_dataset.test.subset(torch.arange(count))
    right = 0
    for image, label in zip(test.images, test.labels.tolist(), strict=True):
        x = normalise(image[None] / 255, torch.tensor(spec.mean), torch.tensor(spec.std))
        right += network(x)[0].argmax().item() == label
    assert 0 < right < count or count < 10
    assert accuracy(network, test, spec, Runtime(chunk=chunk)) == right / count
    assert accuracy(network, Split(test.images / 255, test.labels), spec, Runtime(chunk=chunk)) == right / count


def test_a_network_that_couples_its_batch_is_not_cut_into_chunks(toy_dataset: LabelledDataset) -> None:
    """With batch norm a chunk would be normalised by itself."""
    sizes = []

    class Coupled(ConvNet):
        couples_batch = True

        def embed(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().embed(x)

    network = Coupled(toy_dataset.spec.shape, 3, width=4)
    train = toy_dataset.train.subset(torch.arange(20))
    fit(network, train, toy_dataset.spec, PLAIN, Runtime(chunk=3), seed=0)
    assert sizes == [8, 8, 4]
