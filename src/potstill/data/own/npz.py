"""One's own data as an .npz file: x_train, y_train, and if there are any x_test, y_test, class_names."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..records import FORMATS, RawDataset, RawSplit, Size, reason

KEYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


@FORMATS.register("npz")
def read_npz(source: Any, size: Size | None) -> RawDataset | None:
    """The arrays of an .npz file. `size` is left to `finish`.

    Raises:
        DataError: a damaged file, missing keys, or arrays of Python objects (they would need pickle).
    """
    if not isinstance(source, Path) or not source.is_file() or source.suffix.lower() != ".npz":
        return None
    arrays = _read_arrays(source)
    train = _split(source, arrays, "train")
    test = _split(source, arrays, "test") if {"x_test", "y_test"} & set(arrays) else None
    names = arrays.get("class_names")
    return RawDataset(source.stem, train, test, None if names is None else _class_names(source, names))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    key = "the archive"
    try:
        # Opened here: numpy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {}
            for key in set(KEYS) & set(archive.files):
                arrays[key] = archive[key]
            return arrays
    except (AttributeError, EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as problem:
        # AttributeError and TypeError: a single array or nothing that can be entered, under the name of an archive.
        raise DataError(
            f"{path}: {key} cannot be read ({reason(problem)}), expected an .npz of plain numbers and strings"
        ) from problem


def _split(path: Path, arrays: dict[str, np.ndarray], which: str) -> RawSplit:
    images, labels = f"x_{which}", f"y_{which}"
    for key in (images, labels):
        if key not in arrays:
            raise DataError(f"{path}: holds {', '.join(sorted(arrays)) or 'no known key'}, expected {key} too")
        if arrays[key].ndim == 0:
            raise DataError(f"{path}: {key} is a single value, expected one entry per image")
    return RawSplit(arrays[images], arrays[labels], f"{path} ({images}, {labels})")


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "US" or len(set(names.tolist())) != len(names):
        raise DataError(f"{path}: class_names of type {names.dtype} and shape {names.shape}, expected distinct strings")
    return tuple(names.astype(str).tolist())
