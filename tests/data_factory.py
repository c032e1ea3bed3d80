"""Small data sets in every layout the package reads, and the one way tests ask for a refusal."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from potstill.errors import DataError, PotstillError


@contextmanager
def refused(*parts: object, by: type[PotstillError] = DataError) -> Iterator[None]:
    """The block must raise exactly `by`'s kind of error, in one line that contains all `parts`."""
    with pytest.raises(by) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in {message!r}"


def noise(number: int, shape: tuple[int, ...] = (3, 8, 8), *, classes: int = 2, seed: int = 0):
    """uint8 noise `(number, *shape)` and labels 0, 1, .., 0, 1, .. `(number,)` int64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (number, *shape), dtype=np.uint8)
    return pixels, np.arange(number) % classes


def write_idx(path: Path, values: np.ndarray) -> Path:
    """An idx file of bytes, gzipped if the name says so."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_mnist(folder: Path, *, train: int = 20, test: int = 10, suffix: str = ".gz") -> Path:
    """The four files of MNIST's kind with 28x28 noise of ten classes."""
    for prefix, number in (("train", train), ("t10k", test)):
        images, labels = noise(number, (28, 28), classes=10, seed=number)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return folder


def python2_pickle(content: Mapping[str, np.ndarray | list[int] | str]) -> bytes:
    """A pickle as Python 2 wrote it, which Python 3 cannot write: str as bytes, arrays through `_reconstruct`."""

    def string(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    def encode(value: np.ndarray | list[int] | str) -> bytes:
        if isinstance(value, str):
            return string(value.encode())
        if isinstance(value, list):
            return b"](" + b"".join(b"M" + struct.pack("<H", number) for number in value) + b"e"
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
        dtype = b"cnumpy\ndtype\n(" + string(b"u1") + b"K\x00K\x01tR(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xff"
        dtype += b"J\xff\xff\xff\xffK\x00tb"
        shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in value.shape) + b"t"
        return empty + b"(K\x01" + shape + dtype + b"I00\n" + string(value.tobytes()) + b"tb"

    items = b"".join(string(key.encode()) + encode(value) for key, value in content.items())
    return b"\x80\x02}(" + items + b"u."


def write_cifar(data_dir: Path, name: str, *, binary: bool = False, python2: bool = True) -> np.ndarray:
    """All files of CIFAR-10 or CIFAR-100, in either layout. Returns the training images `(N, 3, 32, 32)`."""
    hundred = name == "cifar100"
    kind = "binary" if hundred else "batches-bin"
    python_kind = "python" if hundred else "batches-py"
    folder = data_dir / f"cifar-{100 if hundred else 10}-{kind if binary else python_kind}"
    folder.mkdir(parents=True)
    batches = ["train"] if hundred else [f"data_batch_{number}" for number in range(1, 6)]
    trained = []
    for seed, file in enumerate([*batches, "test" if hundred else "test_batch"]):
        images, labels = noise(100 if hundred else 10, (3072,), classes=100 if hundred else 10, seed=seed)
        trained.append(images)
        if binary:
            columns = [labels // 5, labels] if hundred else [labels]
            records = np.column_stack([*columns, images]).astype(np.uint8)
            (folder / f"{file}.bin").write_bytes(records.tobytes())
            continue
        content = {"data": images, "fine_labels" if hundred else "labels": labels.tolist()}
        if hundred:
            content["coarse_labels"] = (labels // 5).tolist()
        (folder / file).write_bytes(python2_pickle(content) if python2 else pickle.dumps(content, protocol=4))
    return np.concatenate(trained[:-1]).reshape(-1, 3, 32, 32)


def picture(size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise of (height, width) in any mode Pillow can convert RGB to."""
    height, width = size
    return Image.fromarray(noise(1, (height, width, 3), seed=seed)[0][0]).convert(mode)


def write_pictures(root: Path, content: Mapping[str, Sequence[Image.Image]], suffix: str = ".png") -> Path:
    """`root/CLASS/0.png`, ... for each class of `content`."""
    for cls, pictures in content.items():
        (root / cls).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pictures):
            image.save(root / cls / f"{number}{suffix}")
    return root


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    """Two classes of 8x8 colour noise with a test split; `arrays` replaces or adds keys, None leaves one out."""
    content = dict(zip(("x_train", "y_train"), noise(12), strict=True))
    content |= zip(("x_test", "y_test"), noise(6, seed=1), strict=True)
    content |= arrays
    np.savez(path, allow_pickle=True, **{key: value for key, value in content.items() if value is not None})
    return path
