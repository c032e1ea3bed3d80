"""Random streams by address. No draw depends on how many came before it.

Every random decision of a run is made by a generator seeded from the root seed and labels such as
`("augment", class, step)`. So a resumed run, a shard of the classes and a worker on another machine all see
the draws of the one uninterrupted run, and nothing about random state needs to be stored in a snapshot.
"""

from __future__ import annotations

from hashlib import blake2b

import torch

Label = str | int


def derive(seed: int, *labels: Label) -> int:
    """A 63-bit seed for the stream that `labels` address below `seed`."""
    address = repr((int(seed), *labels)).encode()
    return int.from_bytes(blake2b(address, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *labels: Label) -> torch.Generator:
    """A CPU generator at the start of the stream addressed by `labels`: draws are the same on every device."""
    return torch.Generator().manual_seed(derive(seed, *labels))
