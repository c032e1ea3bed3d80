"""Writes the embedded digits.npz from scikit-learn's copy of the UCI set. Was run once; kept to show how.

python tests/make_digits.py src/potstill/data/digits.npz
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits

from potstill.data import holdout_split
from potstill.spec import Split


def digits_as_bytes() -> Split:
    """All 1,797 images `(N, 8, 8)`, grey levels 0 to 16 spread over 0 to 255."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)))


def main(target: str) -> None:
    train, test = holdout_split(digits_as_bytes(), 360, seed=0)
    np.savez_compressed(
        target,
        x_train=train.images.numpy(),
        y_train=train.labels.byte().numpy(),
        x_test=test.images.numpy(),
        y_test=test.labels.byte().numpy(),
    )


if __name__ == "__main__":
    main(sys.argv[1])
