"""Two data sets that no recipe was tuned on, cut out of real ones: what `auto` is tried on.

    python benchmarks/small_sets.py --data-dir DATA --out FOLDER

`cifar16.npz` has 500 images of each class of CIFAR-10 at 16 x 16; `unequal.npz` 600, 500, ... and 40 of the classes of
Fashion-MNIST. Both are tested on 200 test images of each class.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import potstill
from potstill.spec import Split

UNEQUAL = (600, 500, 400, 300, 250, 200, 150, 100, 60, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    for name, source, side, counts in (
        ("cifar16", "cifar10", 16, [500] * 10),
        ("unequal", "fashion_mnist", 28, UNEQUAL),
    ):
        data = potstill.load_dataset(source, data_dir=options.data_dir)
        train, test = some(data.train, counts, rng), some(data.test, [200] * 10, rng)
        arrays = {"class_names": np.array(data.spec.classes)}
        for part, split in (("train", train), ("test", test)):
            arrays |= {f"x_{part}": shrunk(split.images, side), f"y_{part}": split.labels.numpy()}
        np.savez(options.out / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        print(potstill.load_dataset(options.out / f"{name}.npz").spec)


def some(split: Split, counts: Sequence[int], rng: np.random.Generator) -> Split:
    """So many samples of each class, in the order of the file."""
    labels = split.labels.numpy()
    chosen = [rng.choice(np.flatnonzero(labels == c), count, replace=False) for c, count in enumerate(counts)]
    return split.subset(torch.from_numpy(np.sort(np.concatenate(chosen))))


def shrunk(images: Tensor, side: int) -> np.ndarray:
    """By averaging, as bytes with channels last, gray ones without."""
    small = F.interpolate(images.float(), (side, side), mode="area").round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).squeeze(-1).numpy()


if __name__ == "__main__":
    main()
