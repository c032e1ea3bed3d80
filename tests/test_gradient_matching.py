"""Gradients as what is matched: distances against the published formulas, the mixed pass against double backward."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from potstill.learning import augment
from potstill.learning.augment import Draw, Strategy, draw
from potstill.learning.gradients import Gradients
from potstill.machine.compiler import find_compiler
from potstill.machine.runtime import Runtime
from potstill.matching.gradients import (
    Slope,
    absolute_distance,
    cosine_distance,
    direction_of,
    squared_distance,
    to_samples,
    to_weights_and_samples,
)
from potstill.networks import Backbone
from potstill.networks.convnet import ConvNet
from potstill.networks.resnet import ResNet
from potstill.sets.parameterisations.tiles import decode
from potstill.spec import LabelledDataset, normalise

DISTANCES = {"cosine": cosine_distance, "squared": squared_distance, "absolute": absolute_distance}
OPERATIONS = ("color", "crop", "scale", "flip", "cutout")


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network_of(kind: str, shape: tuple[int, int, int] = (3, 16, 16)) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ConvNet(shape, 3, width=8) if kind == "convnet" else ResNet(shape, 3, width=4)


def state(network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights and buffers, apart from the network's own."""
    with_type = {n: v.detach().clone() for n, v in network.state_dict().items()}
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in with_type.items()}


def cross_entropy(network: nn.Module, weights: Mapping[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    return F.cross_entropy(functional_call(network, {**buffers, **weights}, (x,)), labels)


def example(kind: str, dtype: torch.dtype):
    """A network, its parameters, a gradient of other images to match, eight images and labels."""
    network = network_of(kind).to(dtype)
    weights = {name: p.detach() for name, p in network.named_parameters()}
    draws = torch.randn(2, 8, 3, 16, 16, generator=stream(), dtype=dtype)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])
    loss = partial(cross_entropy, network)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    found = torch.autograd.grad(loss(leaves, draws[0], labels), list(leaves.values()))
    return loss, weights, dict(zip(weights, found, strict=True)), draws[1], labels


def double_backward(loss, weights, x: Tensor, labels: Tensor, distance, real) -> tuple[Tensor, Tensor]:
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    x = x.detach().requires_grad_()
    found = torch.autograd.grad(loss(leaves, x, labels), list(leaves.values()), create_graph=True)
    value = distance(real, dict(zip(leaves, found, strict=True)))
    return value.detach(), torch.autograd.grad(value, x)[0]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- distances


def published_cosine(real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor]) -> Tensor:
    """DC, equation 10 and its code: every matrix and kernel, one cosine for each output row."""
    total = torch.zeros((), dtype=torch.float64)
    for name in real:
        a, b = real[name], synthetic[name]
        if a.dim() < 2:
            continue
        for row in range(len(a)):
            u, v = a[row].reshape(-1), b[row].reshape(-1)
            total = total + 1 - (u @ v) / (u.square().sum().sqrt() * v.square().sum().sqrt() + 1e-6)
    return total


def two_gradients() -> list[dict[str, Tensor]]:
    shapes = {"conv": (4, 3, 3, 3), "bias": (4,), "linear": (5, 6)}
    draws = stream()
    return [
        {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(2)
    ]


def test_cosine_distance_is_the_published_one() -> None:
    real, synthetic = two_gradients()
    torch.testing.assert_close(cosine_distance(real, synthetic), published_cosine(real, synthetic))
    assert abs(float(cosine_distance(real, real))) < 1e-5
    scaled = {name: 3 * value for name, value in synthetic.items()}
    torch.testing.assert_close(cosine_distance(real, scaled), cosine_distance(real, synthetic), rtol=1e-6, atol=0)


def test_differences_are_summed_over_kernels_alone_unless_told() -> None:
    real, synthetic = two_gradients()
    conv, linear = (real[name] - synthetic[name] for name in ("conv", "linear"))
    torch.testing.assert_close(squared_distance(real, synthetic), (conv**2).sum())
    torch.testing.assert_close(absolute_distance(real, synthetic), conv.abs().sum())
    both = squared_distance(real, synthetic, ranks=(2, 4))
    torch.testing.assert_close(both, (conv**2).sum() + (linear**2).sum())


def test_a_gradient_of_zero_gives_a_finite_direction() -> None:
    """A ReLU that never fires has none: its row must not make the whole step nan."""
    real, synthetic = two_gradients()
    synthetic["conv"][1] = 0
    value, direction = direction_of(cosine_distance, real, synthetic)
    assert value.isfinite() and all(v.isfinite().all() for v in direction.values())


# --- the mixed derivative


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("kind", ["convnet", "resnet"])
def test_mixed_pass_equals_double_backward(kind: str, distance) -> None:
    """In float64; the ResNet's batch norm takes the statistics of the batch."""
    loss, weights, real, x, labels = example(kind, torch.float64)
    value, expected = double_backward(loss, weights, x, labels, distance, real)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    synthetic = torch.autograd.grad(loss(leaves, x, labels), list(leaves.values()))
    found, direction = direction_of(distance, real, dict(zip(weights, synthetic, strict=True)))
    torch.testing.assert_close(found, value, rtol=1e-12, atol=0)
    assert relative(to_samples(loss, weights, x, direction, labels), expected) < 1e-9


def test_both_derivatives_are_those_of_a_step_of_descent() -> None:
    """Back through w - .1 dL/dw to weights and images: autograd's unrolled step, in float64."""
    loss, weights, outer, x, labels = example("convnet", torch.float64)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    images = x.clone().requires_grad_()
    slope = torch.autograd.grad(loss(leaves, images, labels), list(leaves.values()), create_graph=True)
    moved = sum(((w - 0.1 * g) * v).sum() for w, g, v in zip(leaves.values(), slope, outer.values(), strict=True))
    *expected, to_images = torch.autograd.grad(moved, [*leaves.values(), images])
    along, found, mixed = to_weights_and_samples(loss, weights, x, outer, labels)
    product = sum((g * v).sum() for g, v in zip(slope, outer.values(), strict=True))
    torch.testing.assert_close(along, product.detach(), rtol=1e-9, atol=1e-9)
    assert relative(-0.1 * mixed, to_images) < 1e-9
    for name, theirs in zip(weights, expected, strict=True):
        torch.testing.assert_close(outer[name] - 0.1 * found[name], theirs, rtol=1e-9, atol=1e-9)


def test_the_way_goes_on_through_augmentation_and_decoding() -> None:
    """float64, from the stored mosaics: decode, normalise, augment, gradient, distance."""
    loss, weights, real, _, _ = example("convnet", torch.float64)
    stored = torch.rand(1, 2, 3, 16, 16, generator=stream(), dtype=torch.float64).requires_grad_()
    labels = torch.zeros(8, dtype=torch.long)
    drawn = draw(Strategy(OPERATIONS), 1, stream()).repeat(8)
    mean = torch.full((3,), 0.5, dtype=torch.float64)

    def seen() -> Tensor:
        samples = decode(stored, (2, 2)).flatten(0, 2)
        return augment.apply(normalise(samples, mean, mean), drawn.operations, drawn.uniform.double())

    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    slope = torch.autograd.grad(loss(leaves, seen(), labels), list(leaves.values()), create_graph=True)
    (expected,) = torch.autograd.grad(cosine_distance(real, dict(zip(leaves, slope, strict=True))), stored)
    x = seen()
    value, direction = direction_of(cosine_distance, real, {n: g.detach() for n, g in zip(leaves, slope, strict=True)})
    matched = Slope.apply(x, value, to_samples(loss, weights, x.detach(), direction, labels))
    (found,) = torch.autograd.grad(2 * matched, stored)
    assert relative(found, 2 * expected) < 1e-9


# --- Gradients


def matched(data: LabelledDataset, runtime: Runtime, kind: str = "convnet") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value and gradient by `Gradients`, then by double backward in eager fp32, for seven samples of one class."""
    network, spec = network_of(kind), data.spec
    weights = state(network)
    before = {name: value.clone() for name, value in weights.items()}
    drawn = Draw(OPERATIONS, torch.rand(1, augment.COLUMNS, generator=stream()))
    real_images, labels = data.train.images[data.train.labels == 0][:20], torch.zeros(20, dtype=torch.long)
    samples = data.train.images[data.train.labels == 1][:7].float() / 255
    gradients = Gradients(network, spec, runtime)
    real = gradients(weights, real_images, labels, drawn)
    samples.requires_grad_()
    value = gradients.match(weights, samples, labels[:7], drawn, real, cosine_distance)
    (found,) = torch.autograd.grad(value, samples)
    assert all(torch.equal(before[name], weights[name]) for name in weights)

    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    plain = network_of(kind)
    leaves = {name: p.detach().requires_grad_() for name, p in plain.named_parameters()}

    def slope(images: Tensor, create: bool) -> dict[str, Tensor]:
        uniform = drawn.uniform.expand(len(images), -1)
        x = augment.apply(normalise(images, mean, std), drawn.operations, uniform)
        loss = cross_entropy(plain, leaves, x, labels[: len(images)])
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), create_graph=create), strict=True))

    theirs = cosine_distance(slope(real_images / 255, False), slope(samples, True))
    return value.detach(), found, theirs.detach(), torch.autograd.grad(theirs, samples)[0]


@pytest.mark.parametrize("kind", ["convnet", "resnet"])
def test_matching_in_chunks_equals_double_backward_on_the_whole(kind: str, toy_colour: LabelledDataset) -> None:
    """Seven samples in passes of three at most: the last is filled up, which must weigh nothing."""
    value, found, expected_value, expected = matched(toy_colour, Runtime(chunk=3), kind)
    torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=0)
    assert relative(found, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile walks into deprecated corners of torch and hides them itself
@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_compiled_matching_equals_double_backward(toy_colour: LabelledDataset) -> None:
    runtime = Runtime(chunk=4, compile=True)
    value, found, expected_value, expected = matched(toy_colour, runtime)
    torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=0)
    assert relative(found, expected) < 1e-4


def test_second_order_is_the_way_back_through_a_step(toy_colour: LabelledDataset) -> None:
    """Also in chunks, and through normalisation to the pixels."""
    network, spec = network_of("convnet"), toy_colour.spec
    weights = state(network)
    samples, labels = toy_colour.train.images[:7].float() / 255, toy_colour.train.labels[:7]
    direction = {name: torch.randn(w.shape, generator=stream()) for name, w in weights.items()}
    nothing = Draw((), torch.rand(1, augment.COLUMNS, generator=stream()))
    along, found, to_pixels = Gradients(network, spec, Runtime(chunk=3)).second_order(
        weights, samples, labels, nothing, direction
    )
    leaves = {name: w.requires_grad_() for name, w in weights.items()}
    pixels = samples.requires_grad_()
    x = normalise(pixels, torch.tensor(spec.mean), torch.tensor(spec.std))
    slope = torch.autograd.grad(cross_entropy(network, leaves, x, labels), list(leaves.values()), create_graph=True)
    product = sum((g * v).sum() for g, v in zip(slope, direction.values(), strict=True))
    *expected, mixed = torch.autograd.grad(product, [*leaves.values(), pixels])
    torch.testing.assert_close(along, product.detach(), rtol=1e-4, atol=1e-4)
    assert relative(to_pixels, mixed) < 1e-4
    for name, theirs in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found[name], theirs, rtol=1e-3, atol=1e-4)
