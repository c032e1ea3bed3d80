"""CAFE against plain loops written out from the publication and its code, in float64 where gradients are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import UsageError
from potstill.learning import extractor as extractor_module
from potstill.learning.augment import Draw, Strategy, apply
from potstill.learning.extractor import Extractor
from potstill.learning.inner import epoch_of
from potstill.learning.optim import Descent
from potstill.machine import compiler
from potstill.machine.runtime import Runtime
from potstill.methods import METHODS, Problem
from potstill.methods.cafe import CAFE, CAFEDSA, CAFEConfig, CAFEDSAConfig
from potstill.networks import NETWORKS, build_network
from potstill.seeding import derive, generator
from potstill.sets.parameterisations import Parameterisation
from potstill.sets.parameterisations.dct import DCT
from potstill.sets.parameterisations.half_chroma import HalfChroma
from potstill.spec import LabelledDataset, normalise, to_pixels

NETWORK = "convnet:width=16"
WEIGHTS = (0.1, 0.1, 1.0, 1.0)  # of the three maps before pooling and of the last after it, as published


def problem_of(data: LabelledDataset, **keys) -> Problem:
    return Problem(spec=data.spec, train=data.train, **{"ipc": 2, "seed": 3, "network": NETWORK, **keys})


def normalised(data: LabelledDataset, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(x, dtype=images.dtype) for x in (data.spec.mean, data.spec.std))
    return normalise(images, mean, std)


def convnet3(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """The maps after each ReLU and the last pooled one: convolution, instance norm, ReLU, average pool, three times."""
    found = []
    for i in range(3):
        x = F.conv2d(x, weights[f"blocks.{i}.conv.weight"], weights[f"blocks.{i}.conv.bias"], padding=1)
        x = F.instance_norm(x, weight=weights[f"blocks.{i}.norm_weight"], bias=weights[f"blocks.{i}.norm_bias"])
        found.append(torch.relu(x))
        x = F.avg_pool2d(found[-1], 2)
    return [*found, x]


def published_loss(weights: dict[str, Tensor], real: list[Tensor], synthetic: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Alignment and discrimination of what each class has, `(n, C, H, W)`."""
    maps_real, maps_synthetic = ([convnet3(weights, x) for x in batches] for batches in (real, synthetic))
    alignment = torch.zeros((), dtype=torch.float64)
    for a, b in zip(maps_real, maps_synthetic, strict=True):
        for level, weight in enumerate(WEIGHTS):
            alignment = alignment + weight * (a[level].mean(dim=0) - b[level].mean(dim=0)).square().sum()
        # The flattened features once more, as in the code.
        alignment = alignment + (a[3].flatten(1).mean(dim=0) - b[3].flatten(1).mean(dim=0)).square().sum()
    centres = torch.stack([maps[3].flatten(1).mean(dim=0) for maps in maps_synthetic])
    discrimination = torch.zeros((), dtype=torch.float64)
    for label, maps in enumerate(maps_real):
        logits = maps[3].flatten(1) @ centres.T
        discrimination = discrimination - F.log_softmax(logits, dim=1)[:, label].sum()
    return alignment, 0.01 * discrimination


@pytest.mark.parametrize("cls", [CAFE, CAFEDSA])
def test_two_image_steps_are_the_published_ones_on_normalised_pixels(cls: type[CAFE], toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    method = cls(cls.Config(steps=10, real_batch=8, check_batch=8, window=1, most_inner=1, outer_spread=0.0))
    state = method.init(problem)
    images = normalised(toy_colour, state.images.flatten(0, 1).double()).view(state.images.shape)
    velocity = torch.zeros_like(images)
    for step in range(2):
        weights = {name: value.double() for name, value in state.network.items()}
        draw = problem.class_draw(Strategy.parse(method.config.augment, single=True, mirror=False), step)
        images.requires_grad_()
        real = [to_pixels(toy_colour.train.images[problem.sampler.batch(c, step, 8)]).double() for c in range(3)]
        seen = [
            [
                apply(x, draw.operations, draw.uniform[c : c + 1].double().expand(len(x), -1))
                for c, x in enumerate(batch)
            ]
            for batch in ([normalised(toy_colour, x) for x in real], list(images))
        ]
        alignment, discrimination = published_loss(weights, *seen)
        (gradient,) = torch.autograd.grad(alignment + discrimination, images)
        velocity = 0.5 * velocity + gradient
        images = (images - 0.1 * velocity).detach()
        state, metrics = method.step(problem, state)
        assert metrics.terms["alignment"] == pytest.approx(alignment.item(), rel=1e-4)
        assert metrics.terms["discrimination"] == pytest.approx(discrimination.item(), rel=1e-4)
    found = normalised(toy_colour, state.images.flatten(0, 1).double()).view_as(images)
    torch.testing.assert_close(found, images, rtol=1e-3, atol=1e-3)


def test_a_network_trains_between_image_steps_until_its_accuracy_has_moved(toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    method = CAFE(
        CAFEConfig(steps=2, real_batch=8, check_batch=20, window=3, inner_spread=0.05, most_inner=9, outer_spread=0.0)
    )
    begun = method.init(problem)
    after, metrics = method.step(problem, begun)
    network = build_network(NETWORK, problem.spec, 0)
    network.load_state_dict(problem.fresh_network(0))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    labels, accuracies = torch.arange(3).repeat_interleave(2), []

    def accuracy(number: int) -> float:
        images = problem.class_batches(20, number).flatten(0, 1)
        logits = network(normalised(toy_colour, to_pixels(images)))
        return float((logits.argmax(dim=1) == torch.arange(3).repeat_interleave(20)).double().mean())

    assert metrics.notes["accuracy"] == pytest.approx(accuracy(0)) and len(after.accuracies) == 1
    while len(accuracies) < 9:
        for x, y, _ in epoch_of(after.images.flatten(0, 1), labels, 256, derive(3, "inner", 0), len(accuracies)):
            optimiser.zero_grad()
            F.cross_entropy(network(normalised(toy_colour, x)), y).backward()
            optimiser.step()
        accuracies.append(accuracy(len(accuracies) + 1))
        last = accuracies[-3:]
        if len(last) == 3 and max(last) - min(last) > 0.05:
            break
    assert metrics.notes["epochs"] == len(accuracies)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(after.network[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "served"),
    [
        ({"window": 3, "outer_spread": 1.0}, 3),  # any accuracies lie within it
        ({"window": 2, "outer_spread": 0.0, "most_outer": 4}, 4),  # none do
    ],
)
def test_a_network_serves_until_its_accuracy_settles_or_its_time_is_up(keys, served: int, toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset)
    method = CAFE(CAFEConfig(steps=9, real_batch=8, check_batch=8, most_inner=1, **keys))
    state, name = method.init(problem), "classifier.weight"
    for step in range(served):
        assert len(state.accuracies) == step
        last = state
        state, metrics = method.step(problem, state)
    assert len(state.accuracies) == 0 and metrics.notes["epochs"] == 0
    assert torch.equal(state.network[name], problem.fresh_network(served)[name])
    assert not torch.equal(last.network[name], problem.fresh_network(0)[name])  # it had trained


def test_the_rate_is_halved_three_times():
    method = CAFE(CAFEConfig(steps=2000))
    rates = [method._descent_at(step).learning_rate for step in (0, 1199, 1200, 1600, 1800)]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125])


def test_cafe_dsa_augments_alike_and_its_network_too(toy_dataset: LabelledDataset):
    assert METHODS["cafe_dsa"] is CAFEDSA and issubclass(CAFEDSA, CAFE)
    assert CAFEDSAConfig().augment == "color_crop_cutout_flip_scale_rotate" and CAFEConfig().augment == "none"
    problem = problem_of(toy_dataset)
    learner = CAFEDSA()._learner(problem)
    assert learner.strategy.single and learner.strategy.operations == ("color", "crop", "cutout", "scale", "rotate")
    assert CAFE()._learner(problem_of(toy_dataset)).strategy.operations == ()


def test_the_published_numbers_are_the_defaults_and_impossible_ones_are_refused():
    c = CAFEConfig()
    assert (c.lower_weight, c.upper_weight, c.discrimination_weight) == (0.1, 1.0, 0.01)
    assert (c.window, c.outer_spread, c.inner_spread, c.descent) == (10, 0.04, 0.03, Descent(0.1, momentum=0.5))
    with pytest.raises(UsageError, match="inner_spread=2: need a share"):
        CAFEConfig(inner_spread=2.0)
    with pytest.raises(UsageError, match="window=0"):
        CAFEConfig(window=0)


def test_a_network_without_maps_is_refused_before_the_first_step(toy_dataset: LabelledDataset, tmp_path: Path):
    source = tmp_path / "own.py"
    source.write_text(
        "from torch import nn\n"
        "def flat(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))\n"
    )
    problem = problem_of(toy_dataset, network=f"{source}:flat")
    with pytest.raises(UsageError, match="no maps of blocks"):
        CAFE().check(problem)


@pytest.mark.parametrize("way", [DCT(luma=128, chroma=32), HalfChroma(luma=8)], ids=lambda way: way.name)
def test_a_step_moves_what_else_is_stored(way: Parameterisation, toy_colour: LabelledDataset):
    problem = problem_of(toy_colour, ipc=1, parameterisation=way.for_data(toy_colour.train, toy_colour.spec))
    method = CAFE(CAFEConfig(steps=2, real_batch=8, check_batch=8, window=1, most_inner=1))
    state = method.init(problem)
    after, metrics = method.step(problem, state)
    assert ((after.images - state.images) != 0).any(dim=2).all()
    assert method.step(problem, after)[1].loss < metrics.loss


# --- what the extractor gives


def levels(data: LabelledDataset, chunk: int) -> tuple[Tensor, Tensor]:
    """A number made of all levels and features, and its gradient to seven samples of each class."""
    extractor = Extractor(build_network(NETWORK, data.spec, 0), data.spec, Runtime(chunk=chunk))
    samples = to_pixels(data.train.images[:21]).unflatten(0, (3, 7)).requires_grad_()
    problem = problem_of(data)
    draw = problem.class_draw(Strategy.parse("color_crop"), 0)
    found = extractor.levels(problem.fresh_network(0), samples, draw)
    value = torch.stack([mean.square().sum() for mean in found.means]).sum() + found.features.square().sum()
    return value.detach(), torch.autograd.grad(value, samples)[0]


@pytest.mark.filterwarnings("ignore")  # torch.compile walks into deprecated corners of torch and hides them itself
def test_the_network_is_compiled_once_for_all_operations(
    toy_colour: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a gradient; only the small graphs of the view are one for each operation."""
    with_network: list[bool] = []

    def counting(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        with_network.append(any("conv" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(
        compiler, "compiled", lambda f: torch.compile(f, dynamic=False, fullgraph=True, backend=counting)
    )
    torch._dynamo.reset()
    spec = toy_colour.spec
    runtime = Runtime(compile=True, chunk=8)
    extractor = Extractor(build_network("convnet:width=4", spec, 0), spec, runtime)
    weights, row = extractor.network.state_dict(), Draw.row(generator(0, "augment"))
    for operation in ("color", "cutout"):
        for samples in (torch.rand(1, 8, 3, 16, 16), torch.rand(1, 8, 3, 16, 16, requires_grad=True)):
            extractor.levels(weights, samples, Draw((operation,), row))
    assert with_network.count(True) == 2
    assert with_network.count(False) == 2 * 2


def test_levels_are_the_same_in_chunks_and_computed_again(toy_colour: LabelledDataset, monkeypatch: pytest.MonkeyPatch):
    value, gradient = levels(toy_colour, 64)
    for most in (4096, 1):
        monkeypatch.setattr(extractor_module, "KEEP_MAPS_OF", most)
        other, theirs = levels(toy_colour, 4)
        assert other.item() == pytest.approx(value.item(), rel=1e-5)
        torch.testing.assert_close(theirs, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_embedding_of_every_network_is_made_of_its_last_map(name: str, toy_colour: LabelledDataset):
    spec = replace(toy_colour.spec, shape=(3, 32, 32))
    network = build_network(name, spec, 0).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedded = network.embed(x)
        torch.testing.assert_close(network.embed_map(network.maps(x)[-1].after), embedded, rtol=1e-4, atol=1e-5)
    assert embedded.shape == (2, network.feature_width)
