"""The extractor against the plain chain normalise, augment, embed: in chunks, with swapped weights, compiled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from potstill.learning import extractor as module
from potstill.learning.augment import OPERATIONS, Draw, Strategy, apply, draw
from potstill.learning.extractor import Extractor
from potstill.learning.gradients import Weights
from potstill.machine.chunks import chunks
from potstill.machine.runtime import Runtime
from potstill.networks import build_network
from potstill.networks.convnet import ConvNet
from potstill.seeding import generator
from potstill.spec import DatasetSpec, LabelledDataset, normalise, to_pixels

ALL = ("flip", "color", "crop", "cutout")


def small_network(spec: DatasetSpec, seed: int = 0) -> ConvNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvNet(spec.shape, spec.num_classes, width=8)


def plain(network: ConvNet, spec: DatasetSpec, pixels: Tensor, drawn: Draw) -> Tensor:
    """What the extractor has to give: the whole batch at once, nothing else."""
    x = normalise(pixels, torch.tensor(spec.mean), torch.tensor(spec.std))
    return network.embed(apply(x, drawn.operations, drawn.uniform))


def numbers(count: int, operations: tuple[str, ...] = ALL) -> Draw:
    return Draw(operations, draw(Strategy(()), count, generator(0, "numbers")).uniform)


def embed(extractor: Extractor, images: Tensor, drawn: Draw, weights: Weights | None = None) -> Tensor:
    """Features `(B, D)` of images `(B, C, H, W)`, one row of the draw each; of the network as built, if no other."""
    return extractor.embed(weights or extractor.network.state_dict(), images[:, None], drawn)[:, 0]


@pytest.mark.parametrize("count", [1, 4, 7, 8, 10])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_chunk_size_does_not_change_features(count: int, chunk: int, toy_colour: LabelledDataset) -> None:
    """10 images in chunks of 4 leave a ragged last one that is filled up and cut again."""
    spec, images = toy_colour.spec, toy_colour.train.images[:count]
    network = small_network(spec)
    expected = plain(network, spec, images / 255, numbers(count))
    found = embed(Extractor(network, spec, Runtime(chunk=chunk)), images, numbers(count))
    assert found.shape == (count, network.feature_width)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_gradient_to_pixels_equals_the_plain_one(chunk: int, toy_colour: LabelledDataset) -> None:
    """The images that fill up the last chunk repeat real ones: their gradient must not be counted twice."""
    spec = toy_colour.spec
    network = small_network(spec)
    pixels = (toy_colour.train.images[:10] / 255).requires_grad_()
    weights = torch.randn(10, network.feature_width, generator=generator(1, "weights"))
    (expected,) = torch.autograd.grad((plain(network, spec, pixels, numbers(10)) * weights).sum(), pixels)
    found = embed(Extractor(network, spec, Runtime(chunk=chunk)), pixels, numbers(10))
    (gradient,) = torch.autograd.grad((found * weights).sum(), pixels)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_every_chunk_has_one_shape_and_every_image_is_there_once() -> None:
    images, uniform = torch.arange(10.0)[:, None], torch.arange(10.0)[:, None] + 100
    pieces = list(chunks(4, images, uniform))
    assert [piece.tensors[0].shape for piece in pieces] == [(4, 1)] * 3
    assert [piece.filled for piece in pieces] == [4, 4, 2]
    assert torch.equal(torch.cat([piece.tensors[0][: piece.filled] for piece in pieces]), images)
    assert all(torch.equal(piece.tensors[1], piece.tensors[0] + 100) for piece in pieces)


def test_real_features_carry_no_gradient_and_synthetic_ones_do(toy_dataset: LabelledDataset) -> None:
    extractor = Extractor(small_network(toy_dataset.spec), toy_dataset.spec, Runtime())
    pixels = (toy_dataset.train.images[:3] / 255).requires_grad_()
    assert not embed(extractor, pixels.detach(), numbers(3)).requires_grad
    with torch.no_grad():
        assert not embed(extractor, pixels, numbers(3)).requires_grad
    embed(extractor, pixels, numbers(3)).sum().backward()
    assert pixels.grad is not None and pixels.grad.flatten(1).norm(dim=1).min() > 0
    assert all(p.grad is None for p in extractor.network.parameters())


def test_bytes_and_pixels_give_the_same_features(toy_dataset: LabelledDataset) -> None:
    images = toy_dataset.train.images[:5]
    extractor = Extractor(small_network(toy_dataset.spec), toy_dataset.spec, Runtime())
    assert torch.equal(embed(extractor, images, numbers(5)), embed(extractor, images / 255, numbers(5)))


def test_each_call_has_the_weights_it_is_given(toy_dataset: LabelledDataset) -> None:
    spec, images = toy_dataset.spec, toy_dataset.train.images[:5]
    members = [small_network(spec, seed) for seed in (1, 2)]
    weights = [member.state_dict() for member in members]
    extractor = Extractor(small_network(spec, 3), spec, Runtime(chunk=2))
    features = []
    for i in (0, 1, 0):
        features.append(embed(extractor, images, numbers(5), weights[i]))
        expected = plain(members[i], spec, images / 255, numbers(5))
        torch.testing.assert_close(features[-1], expected, rtol=1e-6, atol=1e-6)
    for i in (0, 1):  # the last features were the first network's
        logits = extractor.classify(weights[i], features[i].reshape(5, 1, -1))
        torch.testing.assert_close(logits[:, 0], members[i].classifier(features[i]))
    assert torch.equal(features[0], features[2])
    assert not torch.allclose(features[0], features[1])


def test_weights_are_copied_into_the_tensors_of_the_working_network_and_only_where_they_change(
    toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own tensors: another member, or training, must not reach into the pool, and compiled graphs stay."""
    spec, images = toy_dataset.spec, toy_dataset.train.images[:2]
    extractor, copies = Extractor(small_network(spec, 3), spec, Runtime()), []
    load = extractor.network.load_state_dict
    monkeypatch.setattr(extractor.network, "load_state_dict", lambda weights: copies.append(1) or load(weights))
    before = [(id(p), p.data_ptr()) for p in extractor.network.parameters()]
    first, second = (small_network(spec, seed).state_dict() for seed in (1, 2))
    for weights, copied in ((first, 1), (first, 1), (second, 2), (first, 3)):
        embed(extractor, images, numbers(2), weights)
        extractor.classify(weights, torch.zeros(1, extractor.network.feature_width))
        assert len(copies) == copied
    assert [(id(p), p.data_ptr()) for p in extractor.network.parameters()] == before


def test_a_gradient_through_weights_that_were_replaced_is_refused_by_autograd(toy_dataset: LabelledDataset) -> None:
    spec = toy_dataset.spec
    extractor, pixels = Extractor(small_network(spec), spec, Runtime()), torch.rand(2, *spec.shape).requires_grad_()
    features = embed(extractor, pixels, numbers(2), small_network(spec, 1).state_dict())
    embed(extractor, pixels, numbers(2), small_network(spec, 2).state_dict())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        features.sum().backward()


def test_the_samples_of_a_class_share_its_row(toy_dataset: LabelledDataset) -> None:
    spec, images = toy_dataset.spec, toy_dataset.train.images[:6]
    extractor, drawn = Extractor(small_network(spec), spec, Runtime(chunk=4)), numbers(2)
    weights = extractor.network.state_dict()
    found = extractor.embed(weights, images.unflatten(0, (2, 3)), drawn)
    assert torch.equal(found.flatten(0, 1), embed(extractor, images, drawn.repeat(3), weights))


def test_bf16_passes_give_fp32_features_near_the_exact_ones(toy_colour: LabelledDataset) -> None:
    """bf16 keeps 8 bits: 0.4 % an operation, within 3 % in norm after two blocks."""
    spec, images = toy_colour.spec, toy_colour.train.images[:6]
    network = small_network(spec)
    exact = embed(Extractor(network, spec, Runtime()), images, numbers(6))
    coarse = embed(Extractor(network, spec, Runtime(precision="bf16")), images, numbers(6))
    assert coarse.dtype == torch.float32
    assert 1e-5 < (coarse - exact).norm() / exact.norm() < 0.03


# --- compiled

#: torch.compile walks into deprecated corners of torch and hides the warnings itself; as errors they would stop it.
COMPILES = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cifar_like() -> tuple[DatasetSpec, Tensor]:
    spec = DatasetSpec("c", (3, 32, 32), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3, mirror=True, fingerprint="c")
    return spec, torch.rand(10, 3, 32, 32, generator=generator(0, "images"))


def features_and_gradient(runtime: Runtime, spec: DatasetSpec, pixels: Tensor, seeds: tuple[int, ...]) -> list[Tensor]:
    """Of two members in turn, through one extractor, with 10 images in chunks of 4."""
    extractor = Extractor(build_network("convnet", spec, 0), spec, runtime)
    found = []
    for seed in seeds:
        weights_of = build_network("convnet", spec, seed).state_dict()
        x = pixels.clone().requires_grad_()
        features = embed(extractor, x, numbers(10, OPERATIONS), weights_of)
        weights = torch.randn(features.shape, generator=generator(0, "weights"))
        found += [features.detach(), *torch.autograd.grad((features * weights).sum(), x)]
        found.append(embed(extractor, pixels, numbers(10), weights_of))
    return found


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """Of each of the 10 images, in norm."""
    return (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


@pytest.mark.slow
@COMPILES
def test_compiled_fp32_equals_eager(cifar_like: tuple[DatasetSpec, Tensor]) -> None:
    """Features to 1e-5. So are gradients, but where rounding carries a value across ReLU's corner: a few images."""
    runtime = Runtime(chunk=4, compile=True)
    expected = features_and_gradient(replace(runtime, compile=False), *cifar_like, (1, 2))
    found = features_and_gradient(runtime, *cifar_like, (1, 2))
    for name, ours, theirs in zip(["synthetic", "gradient", "real"] * 2, found, expected, strict=True):
        errors = relative_errors(ours, theirs)
        assert errors.median() < 1e-5, name
        assert errors.max() < (2e-2 if name == "gradient" else 1e-5), name
    assert relative_errors(expected[0], expected[3]).min() > 0.1  # the members do differ


@pytest.mark.slow
@COMPILES
def test_compiled_bf16_stays_within_its_precision(cifar_like: tuple[DatasetSpec, Tensor]) -> None:
    """Features within 1 % (measured: .4 %), gradients to pixels within 20 % (9 %: many values cross ReLU's corner)."""
    runtime = Runtime(chunk=4, compile=True, precision="bf16")
    expected = features_and_gradient(Runtime(chunk=4), *cifar_like, (1,))
    found = features_and_gradient(runtime, *cifar_like, (1,))
    assert all(tensor.dtype == torch.float32 for tensor in found)
    for ours, theirs, allowed in zip(found, expected, (0.01, 0.2, 0.01), strict=True):
        assert 1e-4 < relative_errors(ours, theirs).max() < allowed


def test_recomputing_maps_changes_neither_features_nor_gradients(toy_colour, monkeypatch) -> None:

    spec = toy_colour.spec
    extractor = Extractor(build_network("convnet", spec, 0), spec, Runtime(chunk=4))
    drawn = draw(Strategy.parse("color_crop_cutout"), 10, torch.Generator().manual_seed(0))
    found = []
    for limit in (100, 5):
        monkeypatch.setattr(module, "KEEP_MAPS_OF", limit)
        pixels = to_pixels(toy_colour.train.images[:10]).requires_grad_()
        features = embed(extractor, pixels, drawn)
        found.append((features, *torch.autograd.grad(features.square().sum(), pixels)))
    (kept, gradient), (recomputed, same_gradient) = found
    assert torch.equal(kept, recomputed)
    assert torch.equal(gradient, same_gradient)


def test_recomputing_keeps_no_maps_between_the_passes(toy_colour, monkeypatch) -> None:

    spec = toy_colour.spec
    extractor = Extractor(build_network("convnet", spec, 0), spec, Runtime(chunk=4))
    drawn = draw(Strategy.parse("color"), 12, torch.Generator().manual_seed(0))

    def numbers_saved(limit: int) -> int:
        monkeypatch.setattr(module, "KEEP_MAPS_OF", limit)
        seen: list[int] = []

        def pack(x):
            seen.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            embed(extractor, to_pixels(toy_colour.train.images[:12]).requires_grad_(), drawn)
        return sum(seen)

    assert numbers_saved(5) < 0.1 * numbers_saved(100)
    assert numbers_saved(59) == numbers_saved(5)  # eager code keeps five times as much a sample


@pytest.mark.parametrize("gradient", [False, True])
def test_many_eager_samples_hand_the_memory_of_former_chunks_back(gradient: bool, toy_colour, monkeypatch) -> None:
    """Kept, it grew with the samples: 3.8 GB for 3200 where 1.2 are needed."""
    spec, returned = toy_colour.spec, list[int]()
    monkeypatch.setattr(module, "return_freed_memory", lambda: returned.append(1))
    extractor = Extractor(build_network("convnet", spec, 0), spec, Runtime(chunk=4))
    drawn = draw(Strategy.parse("color"), 12, torch.Generator().manual_seed(0))

    def times_returned(limit: int) -> int:
        monkeypatch.setattr(module, "KEEP_MAPS_OF", limit)
        returned.clear()
        features = embed(extractor, to_pixels(toy_colour.train.images[:12]).requires_grad_(gradient), drawn)
        if gradient:
            features.sum().backward()
        return len(returned)

    assert times_returned(5 * 12) == 0
    assert times_returned(5) == (6 if gradient else 3)  # for each chunk, and again on the way back


@pytest.mark.parametrize(
    ("network", "channels"), [("convnet", 128), ("resnet10", 256), ("mlp", 128), ("lenet", 84), ("vgg11", 512)]
)
def test_channels_are_those_of_the_map_that_features_are(
    network: str, channels: int, toy_colour: LabelledDataset
) -> None:
    spec = replace(toy_colour.spec, shape=(3, 32, 32))
    extractor = Extractor(build_network(network, spec, 0), spec, Runtime())
    assert extractor.channels == channels and extractor.network.feature_width % channels == 0
