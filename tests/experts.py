"""A pool of two training runs with a network at each of three moments, and what plain loops need of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.learning.augment import Draw, apply
from potstill.learning.pool import Pool
from potstill.methods import Problem
from potstill.networks import Backbone, build_network
from potstill.spec import LabelledDataset, normalise, to_pixels

NETWORK = "convnet:width=16"


def pool_of(data: LabelledDataset, moments: tuple[float, ...] = (0, 1, 6), runs: int = 2) -> Pool:
    count = len(moments) * runs
    weights = [build_network(NETWORK, data.spec, seed).state_dict() for seed in range(count)]
    return Pool(NETWORK, weights, [str(i) for i in range(count)], moments=moments)


def problem_of(data: LabelledDataset, **changes) -> Problem:
    given = {"ipc": 2, "parameterisation": (2, 2), "seed": 3, "pool": pool_of(data), "network": NETWORK, **changes}
    return Problem(spec=data.spec, train=data.train, **given)


def network_of(problem: Problem, weights: dict[str, Tensor]) -> Backbone:
    """In float64, where formulas are rewritten."""
    network = build_network(NETWORK, problem.spec, 0).eval().requires_grad_(False)
    network.load_state_dict(weights)
    return network.double()


def between(initial: dict[str, Tensor], final: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: share * initial[name] + (1 - share) * final[name] for name in final}


def seen(problem: Problem, images: Tensor, draw: Draw, cls: int) -> Tensor:
    """One class's images as a network sees them."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (problem.spec.mean, problem.spec.std))
    pixels = to_pixels(images) if images.dtype == torch.uint8 else images
    return apply(normalise(pixels.double(), mean, std), draw.operations, draw.uniform[cls].expand(len(images), -1))


def mean_distance(problem: Problem, network: Backbone, stored: Tensor, draw: Draw, size: int, number: int) -> Tensor:
    """Sum over classes of |mean of real features - mean of synthetic ones|^2."""
    total, decoded = stored.new_zeros(()), problem.decode(stored)
    for c, real in enumerate(problem.class_batches(size, number)):
        f_real, f_syn = (network.embed(seen(problem, x, draw, c)) for x in (real, decoded[c]))
        total = total + ((f_real.mean(0) - f_syn.mean(0)) ** 2).sum()
    return total


def cross_entropy(problem: Problem, network: Backbone, stored: Tensor, draw: Draw) -> Tensor:
    """Sum over classes of the mean cross-entropy of a class's samples."""
    total = stored.new_zeros(())
    for c, samples in enumerate(problem.decode(stored)):
        logits = network(seen(problem, samples, draw, c))
        total = total + F.cross_entropy(logits, torch.full((len(samples),), c))
    return total
