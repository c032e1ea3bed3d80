"""IDM beside its published loop: the image step, the queue, and what its networks learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from experts import NETWORK, cross_entropy, mean_distance, network_of, problem_of

from potstill.learning.augment import Strategy
from potstill.methods.idm import IDM, IDMConfig, regularisation
from potstill.networks import build_network
from potstill.seeding import derive, generator
from potstill.spec import LabelledDataset, normalise, to_pixels


def test_two_steps_equal_the_published_loop(toy_colour: LabelledDataset):
    spec, train = toy_colour.spec, toy_colour.train
    problem = problem_of(toy_colour, pool=None)
    keys = {"networks": 4, "new_every": 5, "training_steps": 2, "training_batch": 16, "augment": "color_crop"}
    method = IDM(IDMConfig(steps=2, real_batch=8, learning_rate=0.05, **keys))
    state = method.init(problem)
    stored, strategy = state.images.double(), Strategy.parse("color_crop", single=True)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    queue = [build_network(NETWORK, spec, derive(3, "random network", n)) for n in range(4)]
    optimisers = [torch.optim.SGD(n.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) for n in queue]
    accuracies = [0.0] * 4
    for step in range(2):
        state, metrics = method.step(problem, state)
        member = int(torch.randint(4, (), generator=generator(3, "network", step)))
        network, draw = network_of(problem, queue[member].state_dict()), problem.class_draw(strategy, step)
        stored = stored.requires_grad_()
        distance = mean_distance(problem, network, stored, draw, 8, step)
        entropy = cross_entropy(problem, network, stored, draw)
        loss = distance + 0.5 * 100 * accuracies[member] * entropy
        # On normalised pixels x = (p - mean) / std a gradient is std times, a step 1 / std times that on pixels.
        gradient = torch.autograd.grad(loss, stored)[0] * std[:, None, None] ** 2
        stored = (stored - 0.05 * gradient).detach()
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-3)
        for trained in torch.randperm(4, generator=generator(3, "trained networks", step))[:2].tolist():
            for turn in range(2):
                order = torch.randperm(len(train), generator=generator(3, "queue", step, trained, turn))[:16]
                logits = queue[trained].train()(normalise(to_pixels(train.images[order]), mean, std))
                accuracies[trained] = (logits.argmax(1) == train.labels[order]).float().mean().item()
                optimisers[trained].zero_grad()
                F.cross_entropy(logits, train.labels[order]).backward()
                optimisers[trained].step()
    torch.testing.assert_close(state.images.double(), stored, rtol=1e-3, atol=1e-4)
    assert state.accuracies.tolist() == pytest.approx(accuracies)
    for ours, theirs in zip(state.queue, queue, strict=True):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


def test_the_oldest_network_leaves_a_full_queue_and_its_momentum_with_it(toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset, pool=None)
    method = IDM(IDMConfig(steps=6, real_batch=4, networks=4, new_every=2, trained=0))
    state, lengths = method.init(problem), []
    for _ in range(6):
        state, _ = method.step(problem, state)
        lengths.append((len(state.queue), len(state.velocities), len(state.accuracies)))
    assert lengths == [(4, 4, 4)] * 6
    oldest = problem.fresh_network(2)  # 3 at the start, then numbers 3, 4 and 5
    assert all(torch.equal(state.queue[0][name], value) for name, value in oldest.items())


def test_a_networks_word_counts_by_its_accuracy(toy_dataset: LabelledDataset):
    problem = problem_of(toy_dataset, pool=None)
    method = IDM(IDMConfig(steps=9, real_batch=2, trained=3, training_steps=5, training_batch=16, new_every=100))
    state = method.init(problem)
    first, metrics = method.step(problem, state)
    assert metrics.terms["regularisation"] == 0  # nobody has learned anything
    for _ in range(8):
        first, metrics = method.step(problem, first)
    assert first.accuracies.max() > 0.6 and metrics.notes["accuracy"] <= 1


def test_a_classs_only_sample_is_regularised_while_it_is_taken_for_another():
    logits = torch.tensor([[[3.0, 0.0]], [[3.0, 0.0]]])
    wrong = F.cross_entropy(logits[1], torch.tensor([1]))
    assert regularisation(logits, torch.tensor([0, 1])) == wrong
    both = logits.repeat(1, 2, 1)
    right = F.cross_entropy(logits[0], torch.tensor([0]))
    torch.testing.assert_close(regularisation(both, torch.tensor([0, 1])), wrong + right)
