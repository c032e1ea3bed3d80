"""DANCE beside its published loop."""

from __future__ import annotations

import pytest
import torch
from experts import NETWORK, between, cross_entropy, mean_distance, network_of, pool_of, problem_of

from potstill.errors import UsageError
from potstill.learning.augment import Strategy
from potstill.methods import METHODS
from potstill.methods.dance import DANCE, DANCEConfig
from potstill.recipe import resolve
from potstill.seeding import generator
from potstill.spec import LabelledDataset


def test_two_steps_equal_the_published_loop(toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    method = DANCE(DANCEConfig(steps=2, real_batch=8, learning_rate=0.05, augment="color_crop"))
    state, strategy = method.init(problem), Strategy.parse("color_crop")
    stored, members = state.images.double(), problem.pool.members
    for step in range(2):
        state, metrics = method.step(problem, state)
        run = problem.pool.draw_run(3, step)
        share = torch.rand((), generator=generator(3, "mix", step)).item()
        network = network_of(problem, between(members[run[0]], members[run[-1]], share))
        stored = stored.requires_grad_()
        matching = mean_distance(problem, network, stored, problem.class_draw(strategy, step), 8, step)
        stored = (stored - 0.05 * 2 * torch.autograd.grad(matching, stored)[0]).clamp(0, 1).detach().requires_grad_()
        expert = network_of(problem, members[run[-1]])
        entropy = cross_entropy(problem, expert, stored, problem.class_draw(strategy, -1 - step))
        stored = (stored - 0.05 * 2 * torch.autograd.grad(entropy, stored)[0]).clamp(0, 1).detach()
        assert metrics.terms == pytest.approx({"prototype": matching.item(), "calibration": entropy.item()}, rel=1e-3)
    torch.testing.assert_close(state.images.double(), stored, rtol=0, atol=1e-4)


def test_without_calibration_a_step_is_the_matching_one(toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset)
    method = DANCE(DANCEConfig(steps=1, real_batch=8, calibration_weight=0.0))
    _, metrics = method.step(problem, method.init(problem))
    assert list(metrics.terms) == ["prototype"] and metrics.loss == pytest.approx(metrics.terms["prototype"])


@pytest.mark.parametrize("name", ["dance", "tgdd", "ncfm"])
def test_a_pool_without_initial_weights_is_refused_in_one_line(name: str, toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset, pool=pool_of(toy_dataset, (2, 6)))
    with pytest.raises(UsageError, match=rf"'{name}' .* the pool keeps epochs 2, 6: add 0 to pool.snapshots"):
        METHODS[name]().check(problem)


@pytest.mark.parametrize("fidelity", ["paper", "code", "potstill"])
@pytest.mark.parametrize("name", ["dance", "tgdd", "ncfm"])
def test_every_fidelity_asks_for_the_initial_weights(name: str, fidelity: str):
    recipe = resolve({"method": name, "fidelity": fidelity})
    assert recipe.pool.snapshots[0] == 0
    assert (recipe.pool.schedule == "dance") == (fidelity != "potstill")


def test_the_pool_draws_whole_training_runs(toy_dataset: LabelledDataset):
    pool = pool_of(toy_dataset)
    assert {pool.draw_run(0, step) for step in range(20)} == {range(0, 3), range(3, 6)}
    lone = pool_of(toy_dataset, (), runs=0)
    lone = type(lone)(NETWORK, pool.members, pool.digests)
    assert {len(lone.draw_run(0, step)) for step in range(5)} == {1}
