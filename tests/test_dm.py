"""DM beside its published loop: random networks, one operation per step, a step on normalised pixels."""

from __future__ import annotations

from dataclasses import replace

import torch

from potstill.learning import augment
from potstill.learning.optim import Descent
from potstill.matching.features import match_prototypes
from potstill.methods import Problem
from potstill.methods.dm import DM, DMConfig
from potstill.networks import build_network
from potstill.seeding import derive
from potstill.sets.parameterisations.dct import DCT
from potstill.spec import LabelledDataset, normalise, to_pixels


def test_two_steps_equal_the_published_loop_on_normalised_pixels(toy_colour: LabelledDataset) -> None:
    spec, train = toy_colour.spec, toy_colour.train
    problem = Problem(spec=spec, train=train, ipc=2)
    method = DM(DMConfig(steps=2, real_batch=8, descent=Descent(0.1, momentum=0.5), augment="color_crop"))
    state = method.init(problem)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    images = normalise(state.images.flatten(0, 1), mean, std).view_as(state.images)
    velocity = torch.zeros_like(images)
    for step in range(2):
        state, _ = method.step(problem, state)
        # The published loop: optimiser SGD(momentum) on the normalised tensor itself.
        net = build_network("convnet", spec, derive(0, "random network", step)).requires_grad_(False)
        images.requires_grad_()
        draw = problem.class_draw(augment.Strategy.parse("color_crop", single=True), step)
        loss = torch.zeros(())
        for c in range(spec.num_classes):
            real = to_pixels(train.images[problem.sampler.batch(c, step, 8)])
            row = draw.uniform[c : c + 1]
            f_real = net.embed(augment.apply(normalise(real, mean, std), draw.operations, row.expand(8, -1)))
            f_syn = net.embed(augment.apply(images[c], draw.operations, row.expand(2, -1)))
            loss = loss + (f_real.mean(dim=0) - f_syn.mean(dim=0)).square().sum()
        (gradient,) = torch.autograd.grad(loss, images)
        velocity = 0.5 * velocity + gradient
        images = (images - 0.1 * velocity).detach()
    ours = normalise(state.images.flatten(0, 1), mean, std).view_as(images)
    torch.testing.assert_close(ours, images, rtol=1e-3, atol=1e-4)


def test_every_step_draws_a_network_of_its_own(toy_dataset: LabelledDataset) -> None:
    problem = Problem(spec=toy_dataset.spec, train=toy_dataset.train, ipc=1)
    method = DM(DMConfig(steps=2, real_batch=4))
    state, seen = method.init(problem), []
    for _ in range(2):
        state, _ = method.step(problem, state)
        seen.append(problem.extractor.network.classifier.weight.clone())
    assert not torch.equal(*seen)


def test_a_step_on_coefficients_is_the_published_one_on_normalised_pixels_as_near_as_they_come(
    toy_colour: LabelledDataset,
) -> None:
    wide = replace(toy_colour.spec, value_range=(-9.0, 9.0), std=(0.25,) * 3)  # nothing is cut off
    way = DCT(luma=30, chroma=8).for_data(toy_colour.train, wide)
    problem = Problem(spec=wide, train=toy_colour.train, ipc=1, parameterisation=way)
    method = DM(DMConfig(steps=1, real_batch=8, descent=Descent(0.1, momentum=0.5), augment="none"))
    state = method.init(problem)
    after, _ = method.step(problem, state)
    samples = problem.decode(state.images).requires_grad_()
    weights, draw = problem.fresh_network(0), problem.class_draw(augment.Strategy(), 0)
    real = problem.extractor.embed(weights, problem.class_batches(8, 0), draw)
    (gradient,) = torch.autograd.grad(match_prototypes(real, problem.extractor.embed(weights, samples, draw)), samples)
    on_normalised = gradient * 0.25  # d loss / d normalised samples, which the published loop steps along
    nearest = way.decode(way.encode(-0.1 * on_normalised, wide), wide)  # orthogonal onto what coefficients can show
    moved = (problem.decode(after.images) - problem.decode(state.images)) / 0.25
    torch.testing.assert_close(moved, nearest, rtol=1e-3, atol=1e-5)
