"""Greedy selection on rows small enough to follow by hand, against plain loops, and in pieces of a real problem."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.errors import DataError, UsageError
from potstill.learning.pool import untrained
from potstill.methods import METHODS, Problem, run_method
from potstill.methods.coreset import CoresetConfig
from potstill.methods.herding import herd
from potstill.methods.kcenter import spread_centres
from potstill.spec import LabelledDataset, to_pixels


def herd_by_loop(features: Tensor, count: int) -> list[int]:
    """The definition, one candidate at a time: minimise the distance of k times the mean to the sum of k rows."""
    mean, chosen = features.mean(dim=0), []
    for k in range(1, count + 1):
        total = sum((features[i] for i in chosen), torch.zeros_like(mean))
        rest = [i for i in range(len(features)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: float((k * mean - total - features[i]).square().sum())))
    return chosen


def centres_by_loop(features: Tensor, count: int) -> list[int]:
    mean = features.mean(dim=0)
    chosen = [min(range(len(features)), key=lambda i: float((features[i] - mean).square().sum()))]
    while len(chosen) < count:
        rest = [i for i in range(len(features)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(float((features[i] - features[j]).square().sum()) for j in chosen)))
    return chosen


def test_herding_takes_the_row_nearest_the_mean_first_and_then_balances_it() -> None:
    # The mean is 3. Nearest: 2 (index 1). Then 2 * 3 - 2 = 4: the nearest unused is 5 (index 2).
    # Then 3 * 3 - 7 = 2: unused are 0 and 5..., 0 is 2 away and 5 (index 3) is 3 away.
    rows = torch.tensor([[0.0], [2.0], [5.0], [5.0]], dtype=torch.float64)
    assert herd(rows, 3).tolist() == [1, 2, 0]


def test_k_center_starts_nearest_the_mean_and_goes_to_the_farthest_row() -> None:
    # The mean is 4.125: nearest is 3.5 (index 2). Farthest: 10 (index 3). Then 0 is 3.5 from its nearest, 3 is .5.
    rows = torch.tensor([[0.0], [3.0], [3.5], [10.0]], dtype=torch.float64)
    assert spread_centres(rows, 3).tolist() == [2, 3, 0]


@pytest.mark.parametrize("seed", range(3))
def test_selection_equals_the_plain_loops(seed: int) -> None:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert herd(rows, 12).tolist() == herd_by_loop(rows, 12)
    assert spread_centres(rows, 12).tolist() == centres_by_loop(rows, 12)


class Largest(TorchDispatchMode):
    """Notes the most numbers that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, function, types, given=(), keys=None):
        found = function(*given, **(keys or {}))
        if isinstance(found, Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


@pytest.mark.parametrize("select", [herd, spread_centres])
def test_selection_never_holds_a_number_for_every_pair_of_rows(select) -> None:
    rows = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        select(rows, 20)
    assert rows.numel() <= largest.numbers <= 2 * rows.numel()


@pytest.mark.parametrize("select", [herd, spread_centres])
def test_equal_rows_are_taken_in_order_and_never_twice(select) -> None:
    assert select(torch.ones(6, 3), 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_herding_keeps_the_mean_better_than_chance_does() -> None:
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    mean = rows.mean(dim=0)
    assert (rows[herd(rows, 10)].mean(dim=0) - mean).norm() < 0.5 * (rows[:10].mean(dim=0) - mean).norm()


@pytest.mark.parametrize("name", ["herding", "kcenter"])
def test_a_coreset_is_whole_real_images_of_its_own_class(name: str, toy_dataset: LabelledDataset) -> None:
    pool = untrained(toy_dataset.spec, members=1)
    problem = Problem(spec=toy_dataset.spec, train=toy_dataset.train, ipc=3, parameterisation=(2, 2), pool=pool)
    small = run_method(METHODS[name](), problem)
    assert small.factor == (1, 1)
    for c in small.classes:
        own = to_pixels(toy_dataset.train.images[toy_dataset.train.labels == c])
        for image in small.images[c]:
            assert (own == image).flatten(1).all(dim=1).any()


@pytest.mark.parametrize("name", ["herding", "kcenter"])
def test_a_missing_network_or_too_few_images_are_refused_with_the_remedy(
    name: str, toy_dataset: LabelledDataset
) -> None:
    pool = untrained(toy_dataset.spec, members=2)
    problem = Problem(spec=toy_dataset.spec, train=toy_dataset.train, ipc=1, pool=pool)
    for refusing in (METHODS[name](CoresetConfig(member=2)).init, METHODS[name](CoresetConfig(member=2)).check):
        with pytest.raises(UsageError, match=r"method.member=2: the pool has networks 0..1; raise pool.members"):
            refusing(problem)
    with pytest.raises(DataError, match="41"):
        METHODS[name]().init(Problem(spec=toy_dataset.spec, train=toy_dataset.train, ipc=41, pool=pool))
