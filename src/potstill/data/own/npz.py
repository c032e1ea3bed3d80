"""One's own data as an .npz file: x_train, y_train, and if there are any x_test, y_test, class_names."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ...errors import DataError, PotstillError, refuse_out_of_memory
from ..records import FORMATS, RawDataset, RawSplit, Size, check_memory, logger, reason

# Keys of images and labels; the second spelling is MedMNIST's. The first pair found is the split.
TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"), ("X_train", "y_train"))
TEST = (
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
    ("X_test", "y_test"),
    ("x_val", "y_val"),
    ("val_images", "val_labels"),
    ("x_valid", "y_valid"),
)
NAMES = "class_names"


@FORMATS.register("npz")
def read_npz(source: Any, size: Size | None) -> RawDataset | None:
    """The arrays of an .npz file. `size` is left to `finish`.

    Raises:
        DataError: a damaged file, missing keys, or arrays of Python objects (they would need pickle).
    """
    if not isinstance(source, Path) or not source.is_file() or source.suffix.lower() != ".npz":
        return None
    try:
        with zipfile.ZipFile(source) as archive:
            return _read_archive(source, archive)
    except PotstillError:
        raise
    except Exception as problem:  # zipfile and zlib fail in many ways on damaged files
        raise _unreadable(source, "the archive", problem) from problem


def _read_archive(path: Path, archive: zipfile.ZipFile) -> RawDataset:
    members = {name.removesuffix(".npy"): name for name in archive.namelist()}
    train_keys = _keys(path, members, TRAIN) or TRAIN[0]
    test_keys = _keys(path, members, TEST)
    unread = sorted(set(members) - {*train_keys, *(test_keys or ()), NAMES})
    if unread:
        logger.warning("%s: not read: %s", path.name, ", ".join(unread[:10]))
    if test_keys and test_keys not in TEST[:3]:
        logger.warning("%s: no test split found; %s takes its place", path.name, test_keys[0])

    def split(keys: tuple[str, str]) -> RawSplit:
        for place, key in enumerate(keys):
            if key not in members:
                partly = any(other in members for other in keys)
                names = [key] if partly else dict.fromkeys(pair[place] for pair in TRAIN)
                raise DataError(
                    f"{path}: holds {', '.join(sorted(members)) or 'nothing'}, expected {' or '.join(names)} too"
                )
        images, labels = (_array(path, archive, members[key]) for key in keys)
        return RawSplit(images, labels, f"{path} ({', '.join(keys)})")

    names = _class_names(path, _array(path, archive, members[NAMES])) if NAMES in members else None
    return RawDataset(path.stem, split(train_keys), split(test_keys) if test_keys else None, names)


def _keys(path: Path, members: dict[str, str], spellings: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    """The first spelling of which both keys are there, else the first of which one is."""
    for enough in (all, any):
        for keys in spellings:
            if enough(key in members for key in keys):
                return keys
    return None


def _array(path: Path, archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """One array, once its header is known to say no more than the member holds."""
    key = member.removesuffix(".npy")
    try:
        with archive.open(member) as file:
            version = npy.read_magic(file)
            shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
            held, said = archive.getinfo(member).file_size - file.tell(), math.prod(shape) * dtype.itemsize
        if held != said and not dtype.hasobject:
            raise ValueError(f"{held} bytes for an array of shape {shape} and type {dtype}")
        check_memory(said, f"{path} ({key})")
        with archive.open(member) as file:
            array = npy.read_array(file, allow_pickle=False)
    except PotstillError:
        raise
    except Exception as problem:  # as above
        raise _unreadable(path, key, problem) from problem
    if array.ndim == 0:
        raise DataError(f"{path}: {key} is a single value, expected one entry per image")
    return array


def _unreadable(path: Path, what: str, problem: Exception) -> DataError:
    refuse_out_of_memory(problem, str(path))
    return DataError(
        f"{path}: {what} cannot be read ({reason(problem)}), expected an .npz of plain numbers and strings"
    )


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "US" or len(set(names.tolist())) != len(names):
        raise DataError(f"{path}: class_names of type {names.dtype} and shape {names.shape}, expected distinct strings")
    try:
        return tuple(names.astype(str).tolist())
    except UnicodeDecodeError:
        raise DataError(f"{path}: class_names are bytes beyond ASCII, expected strings") from None
