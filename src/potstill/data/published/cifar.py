"""CIFAR-10 and CIFAR-100 from the published archives, unpacked: the python layout or the binary one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import DataError
from ..records import DATASETS, KnownSet, MissingFiles, RawSplit
from .unpickle import read_arrays

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """One published form of a set.

    Attributes:
        labels: the key of the labels in a pickle.
        label_bytes: in a binary file, how many label bytes precede the pixels; the last is the class. 0 for pickles.
    """

    folder: str
    train: tuple[str, ...]
    test: str
    labels: str = ""
    label_bytes: int = 0

    def read(self, folder: Path, files: Sequence[str]) -> RawSplit:
        read = self._read_binary if self.label_bytes else self._read_pickle
        parts = [read(folder / file) for file in files]
        images = np.concatenate([images for images, _ in parts])
        origin = str(folder / files[0] if len(files) == 1 else folder)
        return RawSplit(images.reshape(-1, 3, 32, 32), np.concatenate([labels for _, labels in parts]), origin)

    def _read_pickle(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        content = read_arrays(path)
        images, labels = content.get("data"), content.get(self.labels)
        if not isinstance(images, np.ndarray) or not isinstance(labels, list):
            raise DataError(f"{path}: holds {', '.join(sorted(content))}, expected data and {self.labels}")
        if images.ndim != 2 or images.shape[1] != PIXELS:
            raise DataError(f"{path}: data of shape {images.shape}, expected (N, {PIXELS})")
        if len(images) != len(labels):
            raise DataError(f"{path}: {len(images)} images but {len(labels)} labels, expected one per image")
        if not all(type(label) is int for label in labels):
            raise DataError(f"{path}: {self.labels} that are not integers, expected one integer per image")
        return images, np.array(labels, dtype=np.int64)

    def _read_binary(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        values = np.frombuffer(path.read_bytes(), np.uint8)
        record = self.label_bytes + PIXELS
        if len(values) % record:
            raise DataError(f"{path}: {len(values)} bytes, expected a multiple of {record} (one record per image)")
        records = values.reshape(-1, record)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1].astype(np.int64)


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

LAYOUTS = {
    "cifar10": (
        Layout("cifar-10-batches-py", BATCHES, "test_batch", labels="labels"),
        Layout("cifar-10-batches-bin", tuple(f"{batch}.bin" for batch in BATCHES), "test_batch.bin", label_bytes=1),
    ),
    "cifar100": (
        Layout("cifar-100-python", ("train",), "test", labels="fine_labels"),
        Layout("cifar-100-binary", ("train.bin",), "test.bin", label_bytes=2),  # coarse, then fine
    ),
}


# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on


def read_cifar(name: str, data_dir: Path) -> tuple[RawSplit, RawSplit]:
    """Both splits from the first published layout found in `data_dir`."""
    folders = [data_dir / layout.folder for layout in LAYOUTS[name]]
    for layout, folder in zip(LAYOUTS[name], folders, strict=True):
        if not folder.is_dir():
            continue
        for file in (*layout.train, layout.test):
            if not (folder / file).is_file():
                raise MissingFiles(name, "a file is missing", [folder], file)
        return layout.read(folder, layout.train), layout.read(folder, [layout.test])
    raise MissingFiles(name, "files not found", folders, ", ".join(layout.test for layout in LAYOUTS[name]))


DATASETS.register("cifar10")(
    KnownSet(
        "cifar10",
        partial(read_cifar, "cifar10"),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mirror=True,
        published=(50_000, 10_000),
        # In wide use, but another quantity than measured: these deviations are the mean of each image's own
        # deviation; over all pixels it is .247 .243 .262.
        common=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    )
)

DATASETS.register("cifar100")(
    KnownSet(
        "cifar100",
        partial(read_cifar, "cifar100"),
        classes=CIFAR100_CLASSES,
        mirror=True,
        published=(50_000, 10_000),
        common=((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    )
)
