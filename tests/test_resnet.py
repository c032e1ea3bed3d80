"""ResNet-10: size, shapes, and what batch norm changes for training and for pools."""

from __future__ import annotations

import torch

import potstill
from potstill.learning.fit import Schedule, accuracy, fit
from potstill.machine.runtime import Runtime
from potstill.networks import build_network
from potstill.spec import LabelledDataset


def test_parameters_are_those_counted_by_hand(toy_colour: LabelledDataset) -> None:
    # Convolutions without bias, BN with two numbers a channel, 3 input channels, 3 classes:
    # stem 3*32*9 + 64 = 928; stage 1: 2*32*32*9 + 2*64 = 18,560
    # stage 2: 32*64*9 + 64*64*9 + 32*64 + 3*128 = 57,728; stage 3: 64*128*9 + 128*128*9 + 64*128 + 3*256 = 230,144
    # stage 4: 128*256*9 + 256*256*9 + 128*256 + 3*512 = 919,040; classifier 256*3 + 3 = 771
    net = build_network("resnet10", toy_colour.spec, 0)
    assert sum(p.numel() for p in net.parameters()) == 928 + 18_560 + 57_728 + 230_144 + 919_040 + 771


def test_stages_halve_the_map_and_the_embedding_is_its_mean(toy_colour: LabelledDataset) -> None:
    net = build_network("resnet10", toy_colour.spec, 0).eval()
    maps = net.maps(torch.randn(2, 3, 16, 16))
    assert [tuple(m.after.shape[1:]) for m in maps] == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(net.embed(x), net.maps(x)[-1].after.mean(dim=(2, 3)))
    assert net.embed(x).shape == (2, net.feature_width)


def test_it_learns_the_toy_set_though_chunks_are_smaller_than_a_batch(toy_colour: LabelledDataset) -> None:
    net = build_network("resnet10", toy_colour.spec, 0)
    schedule = Schedule(epochs=3, batch=24, learning_rate=0.05)
    fit(net, toy_colour.train, toy_colour.spec, schedule, Runtime(chunk=4), seed=0)
    assert accuracy(net, toy_colour.test, toy_colour.spec, Runtime()) > 0.8


def test_it_serves_as_pool_and_as_evaluation_network(toy_colour: LabelledDataset, tmp_path) -> None:
    recipe = {"pool.network": "resnet10", "pool.members": 1, "pool.epochs": 1}
    run = potstill.distill(toy_colour, ipc=2, factor=(1, 1), steps=2, real_batch=8, cache=tmp_path, recipe=recipe)
    scores = potstill.evaluate(run.synthetic, toy_colour.test, network="resnet10", nets=1, epochs=2)
    assert 0 <= scores.mean <= 1
