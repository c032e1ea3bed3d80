"""DC, DSA and M3D against plain loops written out from the publications."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from potstill.learning.augment import Strategy, apply
from potstill.matching.kernels import match_kernel_means
from potstill.methods import METHODS, Problem
from potstill.methods.dc import DC, DSA, DCConfig, DSAConfig
from potstill.methods.m3d import M3D, M3DConfig
from potstill.networks import build_network
from potstill.seeding import derive
from potstill.spec import LabelledDataset, normalise, to_pixels


def problem_of(data: LabelledDataset) -> Problem:
    return Problem(spec=data.spec, train=data.train, ipc=2, parameterisation=(1, 1), seed=3)


def double_backward(network, weights, real, synthetic, label: int) -> torch.Tensor:
    """1 - cosine over output rows of every matrix and kernel, by differentiating twice."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}

    def gradient(x: torch.Tensor, keep: bool) -> tuple[torch.Tensor, ...]:
        logits = functional_call(network, leaves, (x,))
        loss = F.cross_entropy(logits, torch.full((len(x),), label))
        return torch.autograd.grad(loss, list(leaves.values()), create_graph=keep)

    total = torch.zeros(())
    for a, b in zip(gradient(real, False), gradient(synthetic, True), strict=True):
        if a.dim() > 1:
            rows_a, rows_b = a.flatten(1), b.flatten(1)
            lengths = rows_a.norm(dim=1) * rows_b.norm(dim=1)
            total = total + (1 - (rows_a * rows_b).sum(1) / (lengths + 1e-6)).sum()
    return total


@pytest.mark.parametrize("cls", [DC, DSA])
def test_a_step_is_the_plain_step_by_double_backward(cls: type[DC], toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    method = cls(cls.Config(steps=2, real_batch=8, outer=2, inner=1))
    state = method.init(problem)
    after, metrics = method.step(problem, state)
    network = build_network(problem.network, problem.spec, 0)
    weights = build_network(problem.network, problem.spec, derive(3, "random network", 0)).state_dict()
    mean, std = torch.tensor(problem.spec.mean), torch.tensor(problem.spec.std)
    normalised = normalise(state.images.flatten(0, 1), mean, std).unflatten(0, (3, 2)).requires_grad_()
    loss = torch.zeros(())
    for c in range(3):
        images = toy_colour.train.images[problem.sampler.batch(c, 0, 8)]
        draw = method._draw(problem, c, 0)
        seen = [
            apply(x, draw.operations, draw.uniform.expand(len(x), -1))
            for x in (normalise(to_pixels(images), mean, std), normalised[c])
        ]
        loss = loss + double_backward(network, weights, *seen, label=c)
    (gradient,) = torch.autograd.grad(loss, normalised)
    assert metrics.loss == pytest.approx(loss.item(), rel=1e-4)
    moved = normalise(after.images.flatten(0, 1), mean, std).unflatten(0, (3, 2)) - normalised.detach()
    torch.testing.assert_close(moved, -0.1 * gradient, rtol=1e-2, atol=1e-5)


def test_the_network_trains_between_image_steps_and_is_new_for_each_outer_loop(toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset)
    method = DC(DCConfig(steps=3, real_batch=8, outer=2, inner=2))
    first = method.init(problem)
    second, _ = method.step(problem, first)
    third, _ = method.step(problem, second)
    name = next(iter(first.network))
    assert not torch.equal(first.network[name], second.network[name])  # it trained
    assert torch.equal(second.network[name], third.network[name])  # not after the last step of its loop
    fourth, _ = method.step(problem, third)
    fresh = build_network(problem.network, problem.spec, derive(3, "random network", 1)).state_dict()
    assert not torch.equal(fourth.network[name], third.network[name])
    assert (fourth.network[name] - fresh[name]).norm() < 0.2 * fresh[name].norm()


@pytest.mark.parametrize(
    ("ipc", "loops"),
    [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10)), (5, (5, 23)), (15, (15, 38)), (100, (50, 10))],
)
def test_loops_are_the_published_ones_and_lie_between_them_elsewhere(ipc: int, loops: tuple[int, int]):
    assert DC(DCConfig()).loops(ipc) == loops
    assert DC(DCConfig(outer=3, inner=4)).loops(ipc) == (3, 4)


def test_dsa_is_dc_with_six_operations():
    assert METHODS["dsa"] is DSA and issubclass(DSA, DC)
    assert DSAConfig().augment == "color_crop_cutout_flip_scale_rotate" and DCConfig().augment == "none"


def test_m3d_takes_a_joint_step_down_the_kernel_distance_and_a_new_network_every_few(toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    method = M3D(M3DConfig(steps=6, steps_per_network=2, real_batch=8, augment="none", learning_rate=0.5))
    state = method.init(problem)
    for step in range(4):
        weights = build_network(problem.network, problem.spec, derive(3, "random network", step // 2)).state_dict()
        draw = problem.class_draw(Strategy(), step)
        stored = state.images.clone().requires_grad_()
        real = problem.extractor.embed(weights, problem.class_batches(8, step), draw)
        loss = match_kernel_means(real, problem.extractor.embed(weights, problem.decode(stored), draw))
        (gradient,) = torch.autograd.grad(loss, stored)
        expected = (stored.detach() - 0.5 * 2 * gradient).clamp(0, 1)
        state, metrics = method.step(problem, state)
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(state.images, expected)
