"""Streams by address: the same everywhere, whatever was drawn before."""

from __future__ import annotations

from hashlib import blake2b
from itertools import permutations

import torch

from potstill.seeding import derive, generator


def draws(seed: int, *labels: str | int) -> list[float]:
    return torch.rand(8, generator=generator(seed, *labels)).tolist()


def test_same_address_gives_same_stream() -> None:
    assert draws(3, "augment", 1, 7) == draws(3, "augment", 1, 7)


def test_seed_label_and_order_each_make_another_stream() -> None:
    addresses = [(3, "augment", 1, 7), (4, "augment", 1, 7), (3, "order", 1, 7), (3, "augment", 1), (3, "augment", 17)]
    addresses += [(3, *rest) for rest in permutations(("augment", 1, 7))][1:]
    assert len({tuple(draws(*address)) for address in addresses}) == len(addresses)


def test_a_number_and_its_digits_are_different_labels() -> None:
    """Joining labels to one string would confuse ("a", 11), ("a1", 1) and ("a", "11")."""
    assert len({derive(0, "a", 11), derive(0, "a", 1, 1), derive(0, "a1", 1), derive(0, "a", "11")}) == 4


def test_global_state_and_earlier_draws_do_not_matter() -> None:
    torch.manual_seed(0)
    expected = draws(3, "x")
    torch.manual_seed(99)
    torch.rand(5)
    draws(3, "x"), draws(3, "y")
    assert draws(3, "x") == expected


def test_drawing_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    draws(3, "x")
    assert torch.equal(torch.rand(4), expected)


def test_addresses_keep_their_seeds_between_releases() -> None:
    """Runs are resumed and pools found by these numbers: the low 63 of 64 bits of blake2b of the address as text."""
    digest = blake2b(b"(5, 'augment', 3, 7)", digest_size=8).digest()
    assert derive(5, "augment", 3, 7) == int.from_bytes(digest, "little") // 2
    assert derive(5, "augment", 3, 7) == 2611866200803857436


def test_seeds_are_spread_over_63_bits() -> None:
    """Every bit below the sign bit is set for about half of 400 addresses (five deviations: 200 +- 50), no other is."""
    seeds = [derive(0, "network", step) for step in range(400)]
    counts = [sum(seed >> bit & 1 for seed in seeds) for bit in range(63)]
    assert all(150 < count < 250 for count in counts)
    assert max(seeds) < 2**63
