"""NCFM beside its published loop; its rate, and the network that proposes frequencies."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from experts import between, cross_entropy, network_of, problem_of, seen
from torch import Tensor, nn

from potstill.learning.augment import Strategy
from potstill.learning.optim import Rule
from potstill.methods import Problem
from potstill.methods.ncfm import NCFM, NCFMConfig, first_sampler, proposed
from potstill.seeding import generator
from potstill.spec import LabelledDataset

FREQUENCIES = 32


def loss_of(real: Tensor, synthetic: Tensor, t: Tensor) -> Tensor:
    """300 times the published distance, with complex numbers."""
    phi_r, phi_s = (torch.exp(1j * (t @ F.normalize(f, dim=1).T)).mean(1) for f in (real, synthetic))
    amplitude = (phi_r.abs() - phi_s.abs()) ** 2
    phase = 2 * (phi_r.abs() * phi_s.abs() - (phi_r * phi_s.conj()).real)
    return 300 * torch.sqrt(0.5 * amplitude + 0.5 * phase.clamp_min(1e-12)).mean()


def matching(problem: Problem, network, stored: Tensor, step: int, t: Tensor) -> Tensor:
    draw, decoded = problem.class_draw(Strategy.parse("color_crop"), step), problem.decode(stored)
    pairs = zip(problem.class_batches(8, step), decoded, strict=True)
    return torch.stack(
        [loss_of(*(network.embed(seen(problem, x, draw, c)) for x in pair), t) for c, pair in enumerate(pairs)]
    ).sum()


@pytest.mark.parametrize("sampler", [False, True])
def test_two_steps_equal_the_published_loop(sampler: bool, toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset)
    keys = {"learning_rate": 0.01, "frequencies": FREQUENCIES, "augment": "color_crop", "sampler": sampler}
    method = NCFM(NCFMConfig(steps=2, real_batch=8, **keys))
    state, members = method.init(problem), problem.pool.members
    stored = nn.Parameter(state.images.double())
    optimiser = torch.optim.AdamW([stored], lr=0.01 * math.sqrt(3), weight_decay=5e-4)
    proposer = {name: nn.Parameter(value.double()) for name, value in state.sampler.items()}
    climber = torch.optim.SGD(proposer.values(), lr=1e-3, momentum=0.5, maximize=True) if sampler else None
    for step in range(2):
        state, metrics = method.step(problem, state)
        run = problem.pool.draw_run(3, step)
        share = torch.rand((), generator=generator(3, "mix", step)).item()
        network = network_of(problem, between(members[run[0]], members[run[-1]], share))
        count = FREQUENCIES // 16 if sampler else FREQUENCIES
        width = network.feature_width
        noise = torch.randn(count, width, generator=generator(3, "frequencies", step)).double()
        # Repeated sixteen times, as published, the proposed ones have the same mean loss.
        t = proposed(proposer, noise).repeat(16, 1) if sampler else noise
        first = matching(problem, network, stored, step, t)
        optimiser.zero_grad()
        first.backward()
        optimiser.step()
        if climber:
            climber.step()
            climber.zero_grad()
        stored.data.clamp_(0, 1)
        expert, strategy = network_of(problem, members[run[-1]]), Strategy.parse("color_crop")
        second = cross_entropy(problem, expert, stored, problem.class_draw(strategy, -1 - step))
        optimiser.zero_grad()
        second.backward()
        optimiser.step()
        stored.data.clamp_(0, 1)
        assert metrics.terms == pytest.approx({"characteristic": first.item(), "calibration": second.item()}, rel=1e-3)
    # AdamW divides by the size of a gradient: where that is nothing, single precision decides the direction.
    apart = (state.images.double() - stored.detach()).abs()
    assert (apart > 1e-3).double().mean() < 0.01
    for name, value in proposer.items():
        torch.testing.assert_close(state.sampler[name].double(), value.detach(), rtol=1e-3, atol=1e-4)


def test_the_network_of_frequencies_is_three_linear_layers_with_batch_norm(toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset)
    weights, width = first_sampler(problem), problem.extractor.network.feature_width
    layers = []
    for i in range(3):
        linear, norm = nn.Linear(width, width), nn.BatchNorm1d(width)
        linear.load_state_dict({"weight": weights[f"layer{i}.weight"], "bias": weights[f"layer{i}.bias"]})
        layers += [linear, norm, nn.LeakyReLU(0.2) if i < 2 else nn.Tanh()]
    noise = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(proposed(weights, noise), nn.Sequential(*layers)(noise))


def test_the_rate_is_halved_when_the_loss_has_not_fallen_for_longer_than_patience(toy_dataset: LabelledDataset):
    method, problem = NCFM(NCFMConfig(patience=3, frequencies=8)), problem_of(toy_dataset)
    state = method.init(problem)
    weight = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=3)
    theirs.step()
    losses = [5.0, 4.0, 4.0, 4.1, 3.99999, 4.2, 4.2, 3.0, 3.1, 3.1, 3.1, 3.1, 3.1, 3.1, 3.1, 3.1]
    for loss in losses:
        halvings, waited, best = method._patience(state, torch.tensor(loss))
        state = state.advanced(halvings=halvings, waited=waited, best=best)
        schedule.step(loss)
        assert 0.5 ** int(state.halvings) == theirs.param_groups[0]["lr"]
    assert int(state.halvings) == 3
    patient = NCFM(NCFMConfig(patience=0))
    assert int(patient._patience(state, torch.tensor(9.0))[0]) == int(state.halvings)


def test_a_joint_step_at_the_rate_times_the_root_of_the_classes_goes_as_far_as_steps_in_turn():
    """Gradients of a standard normal around .3, ten classes: in turn, each but one class's gradient is zero."""
    rule, classes, iterations, rate = Rule("adamw"), 10, 400, 1e-3
    gradients = 0.3 + torch.randn(iterations, classes, 50, generator=torch.Generator().manual_seed(0))
    turn, joint = torch.zeros(classes, 50), torch.zeros(classes, 50)
    memory, joint_memory = rule.init(turn), rule.init(joint)
    for i in range(iterations):
        for c in range(classes):
            lone = torch.zeros(classes, 50)
            lone[c] = gradients[i, c]
            direction, memory = rule.direction(turn, lone, memory, i * classes + c)
            turn = turn - rate * direction
        direction, joint_memory = rule.direction(joint, gradients[i], joint_memory, i)
        joint = joint - rate * math.sqrt(classes) * direction
    assert turn.mean().item() == pytest.approx(joint.mean().item(), rel=0.1)
