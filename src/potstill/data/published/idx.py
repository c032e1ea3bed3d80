"""MNIST and Fashion-MNIST from the published idx files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..records import DATASETS, KnownSet, MissingFiles, RawSplit, reason

# Where Debian's package dataset-fashion-mnist puts the four files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


# fmt: off
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
# fmt: on


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The uint8 array in an idx file: two zero bytes, type 8, number of axes, big-endian sizes, values.

    Raises:
        DataError: damaged gzip, another magic number than that of `ndim` axes of bytes, or another length than
            the header says.
    """
    content = _content(path)
    magic = int.from_bytes(content[:4], "big")
    if len(content) < 4 + 4 * ndim or magic != 0x800 + ndim:
        raise DataError(f"{path}: magic number {magic:#x}, expected {0x800 + ndim:#x} (idx, {ndim} axes of bytes)")
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if len(values) != math.prod(shape):
        raise DataError(f"{path}: holds {len(values)} values, expected {math.prod(shape)} for its shape {shape}")
    return values.reshape(shape)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as problem:
        raise DataError(f"{path}: cannot be read ({reason(problem)}), expected a complete idx file") from problem


def _read_set(name: str, folders: Sequence[Path], remedy: str = "") -> tuple[RawSplit, RawSplit]:
    """Both splits from the first of `folders` that has any of the four files."""
    for folder in folders:
        paths = [path for file in FILES for path in (folder / file, folder / f"{file}.gz") if path.is_file()]
        present = {path.name.removesuffix(".gz"): path for path in reversed(paths)}
        if not present:
            continue
        missing = [f"{file}[.gz]" for file in FILES if file not in present]
        if missing:
            raise MissingFiles(name, f"{len(missing)} of 4 files missing", [folder], ", ".join(missing), remedy)
        train_images, train_labels, test_images, test_labels = (present[file] for file in FILES)
        return _read_split(train_images, train_labels), _read_split(test_images, test_labels)
    raise MissingFiles(name, "files not found", folders, f"{FILES[0]}[.gz] and three more", remedy)


def _read_split(images: Path, labels: Path) -> RawSplit:
    split = RawSplit(read_idx(images, 3), read_idx(labels, 1), str(images))
    if len(split.images) != len(split.labels):
        raise DataError(f"{labels}: {len(split.labels)} labels, expected {len(split.images)} as in {images.name}")
    return split


def read_mnist(data_dir: Path) -> tuple[RawSplit, RawSplit]:
    return _read_set("mnist", [data_dir / "MNIST" / "raw"])


def read_fashion_mnist(data_dir: Path) -> tuple[RawSplit, RawSplit]:
    folders = [data_dir / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]
    return _read_set("fashion_mnist", folders, "install Debian's package dataset-fashion-mnist, ")


DATASETS.register("mnist")(
    KnownSet(
        "mnist",
        read_mnist,
        classes=tuple("0123456789"),
        mirror=False,
        published=(60_000, 10_000),
        licence="CC BY-SA 3.0",
        common=((0.1307,), (0.3081,)),
    )
)

DATASETS.register("fashion_mnist")(
    KnownSet(
        "fashion_mnist",
        read_fashion_mnist,
        classes=FASHION_CLASSES,
        mirror=True,
        published=(60_000, 10_000),
        licence="MIT",
        common=((0.2861,), (0.3530,)),
    )
)
