"""Hold-outs and class batches."""

from collections import Counter

import pytest
import torch
from data_factory import refused

from potstill.data import holdout_split
from potstill.errors import UsageError
from potstill.methods.sampler import ClassSampler
from potstill.spec import Split


def split_of(*counts: int) -> Split:
    """Classes of the given sizes, interleaved; each image holds its position."""
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return Split(torch.arange(len(labels))[:, None, None, None], labels)


def positions(split: Split) -> list[int]:
    return split.images.flatten().tolist()


@pytest.mark.parametrize(
    ("amount", "per_class", "held"),
    [(0.25, False, [10, 5, 2]), (17, False, [10, 5, 2]), (3, True, [3, 3, 3]), (20, False, [12, 6, 2])],
)
def test_hold_out_takes_every_class_in_its_proportion(amount, per_class, held):
    data = split_of(40, 20, 8)
    rest, held_out = holdout_split(data, amount, 0, per_class=per_class)
    assert torch.bincount(held_out.labels).tolist() == held
    assert sorted(positions(rest) + positions(held_out)) == list(range(68))
    assert torch.equal(held_out.labels, data.labels[held_out.images.flatten()])


def test_both_parts_keep_the_original_order():
    for part in holdout_split(split_of(40, 20, 8), 0.25, 0):
        assert positions(part) == sorted(positions(part))


def test_hold_out_is_a_function_of_the_seed():
    data = split_of(40, 20, 8)
    first, again, other = (positions(holdout_split(data, 0.5, seed)[1]) for seed in (3, 3, 4))
    assert first == again != other


def test_a_fraction_spares_classes_too_small_to_be_divided():
    rest, held_out = holdout_split(split_of(10, 1), 0.9, 0)
    assert torch.bincount(rest.labels).tolist() == [1, 1] and held_out.labels.tolist() == [0] * 9


def test_hold_out_that_would_empty_a_class_is_refused():
    with refused("class 1 has 2 images", "cannot hold out 2"):
        holdout_split(split_of(5, 2), 2, 0, per_class=True)
    with refused("cannot hold out"):
        holdout_split(split_of(5, 2), 7, 0)


@pytest.mark.parametrize(
    ("amount", "per_class"), [(0, False), (-3, False), (0.0, False), (1.0, False), (0.5, True), (0.01, False)]
)
def test_impossible_amount_is_a_usage_error(amount, per_class):
    with refused(f"amount={amount}" if amount != 0.01 else "holds out none", by=UsageError):
        holdout_split(split_of(5, 5), amount, 0, per_class=per_class)


@pytest.fixture
def sampler():
    return ClassSampler(split_of(10, 7, 3).labels, 3, seed=5)


def test_indices_are_those_of_the_class(sampler):
    labels = split_of(10, 7, 3).labels
    for cls in range(3):
        assert torch.equal(sampler.indices(cls), (labels == cls).nonzero().flatten())


def test_batch_holds_images_of_its_class_alone(sampler):
    batch = sampler.batch(1, step=4, size=3)
    assert batch.shape == (3,) and batch.dtype == torch.int64
    assert set(batch.tolist()) <= set(sampler.indices(1).tolist())


def test_no_image_returns_within_an_epoch(sampler):
    epoch = torch.cat([sampler.batch(0, step, size=5) for step in (0, 1)])
    assert sorted(epoch.tolist()) == sampler.indices(0).tolist()


def test_incomplete_batch_at_the_end_of_an_epoch_is_dropped(sampler):
    for step in range(6):
        assert len(sampler.batch(1, step, size=3).unique()) == 3
    first, second = (torch.cat([sampler.batch(1, step, size=3) for step in steps]) for steps in ((0, 1), (2, 3)))
    assert len(first.unique()) == len(second.unique()) == 6


def test_every_epoch_has_a_new_order(sampler):
    orders = {tuple(sampler.batch(0, step, size=10).tolist()) for step in range(5)}
    assert len(orders) == 5


def test_batch_does_not_depend_on_earlier_calls(sampler):
    fresh = ClassSampler(split_of(10, 7, 3).labels, 3, seed=5)
    forward = {step: sampler.batch(0, step, size=3) for step in range(9)}
    for step in (8, 0, 5, 3):
        sampler.batch(1, step, size=2)
        assert torch.equal(fresh.batch(0, step, size=3), forward[step])
        assert torch.equal(sampler.batch(0, step, size=3), forward[step])


def test_classes_and_seeds_draw_from_streams_of_their_own():
    labels = torch.arange(20) % 2
    sampler = ClassSampler(labels, 2, seed=0)
    ranks = [(sampler.batch(cls, 0, size=10) // 2).tolist() for cls in (0, 1)]
    assert ranks[0] != ranks[1]
    assert not torch.equal(ClassSampler(labels, 2, seed=1).batch(0, 0, 10), sampler.batch(0, 0, 10))


def test_small_class_fills_its_batches_with_orders_that_follow_one_another(sampler):
    batches = [sampler.batch(2, step, size=5).tolist() for step in range(9)]
    assert all(len(batch) == 5 and set(Counter(batch).values()) <= {1, 2} for batch in batches)
    orders = torch.tensor(batches).reshape(15, 3)
    assert all(sorted(order) == sampler.indices(2).tolist() for order in orders.tolist())
    assert len({tuple(order) for order in orders.tolist()}) > 1
    assert sampler.batch(2, 4, size=5).tolist() == batches[4]  # whatever was asked before


def test_require_names_class_found_and_needed(sampler):
    sampler.require(2, 3)
    with refused("class 2 has 3 images, 4 needed"):
        sampler.require(2, 4)
    named = ClassSampler(torch.tensor([0, 1]), 3, 0, classes=["cat", "dog", "cow"])
    with refused("class 'cow' has 0 images, 1 needed"):
        named.batch(2, 0, 1)
