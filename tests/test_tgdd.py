"""TGDD beside its published loop, and the moments it draws."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from experts import cross_entropy, mean_distance, network_of, pool_of, problem_of

from potstill.learning.augment import Strategy
from potstill.methods.tgdd import TGDD, TGDDConfig
from potstill.spec import LabelledDataset


def test_two_steps_equal_the_published_loop(toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    keys = {"learning_rate": 0.05, "calibration_weight": 2.5, "reach": 1.0, "augment": "color_crop"}
    method = TGDD(TGDDConfig(steps=2, real_batch=8, **keys))
    state, strategy = method.init(problem), Strategy.parse("color_crop")
    stored = state.images.double()
    for step in range(2):
        state, metrics = method.step(problem, state)
        matching, later = (network_of(problem, problem.pool.members[m]) for m in method.draw(problem.pool, 3, step))
        draw, stored = problem.class_draw(strategy, step), stored.requires_grad_()
        distance = mean_distance(problem, matching, stored, draw, 8, step)
        loss = distance + 2.5 * cross_entropy(problem, later, stored, draw)
        stored = (stored - 0.05 * 2 * torch.autograd.grad(loss, stored)[0]).clamp(0, 1).detach()
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-3)
        assert metrics.terms["prototype"] == pytest.approx(distance.item(), rel=1e-3)
    torch.testing.assert_close(state.images.double(), stored, rtol=0, atol=1e-4)


def test_the_second_network_is_of_the_same_run_at_most_six_of_sixty_epochs_later(toy_dataset: LabelledDataset):
    pool, method = pool_of(toy_dataset, tuple(range(61))), TGDD(TGDDConfig())
    drawn = [method.draw(pool, 0, step) for step in range(2000)]
    assert {first // 61 for first, _ in drawn} == {0, 1}
    assert {second - first for first, second in drawn} == set(range(7))
    assert all(first // 61 == second // 61 for first, second in drawn)
    assert len(Counter(first for first, _ in drawn)) == 122


def test_moments_are_counted_in_epochs_and_not_in_members(toy_dataset: LabelledDataset):
    pool = pool_of(toy_dataset, (0, 0.25, 0.5, 6), runs=1)
    pairs = {TGDD(TGDDConfig(reach=0.05)).draw(pool, 0, step) for step in range(200)}
    assert pairs == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (3, 3)}
