"""Data sets that are objects already: torch map-style data sets and those of the Hugging Face library."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from ...errors import DataError, UsageError
from ..records import FORMATS, RawDataset, RawSplit, Size, logger
from .pictures import Picture, decode, plan

Items = tuple[list[Any], np.ndarray]  # images as the data set gives them, labels (N,)


@FORMATS.register("torch")
def read_torch(source: Any, size: Size | None) -> RawDataset | None:
    """A map-style data set of (image, label) items, or a pair (train, test) of them, read once from start to end.

    Images may be tensors, arrays or PIL pictures; transforms of the data set are applied as they are, so leave random
    ones and normalisation out of it.

    Raises:
        DataError: items that are no (image, integer label), or images of unequal shape.
        UsageError: an iterable-style data set.
    """
    splits = source if isinstance(source, (tuple, list)) and len(source) == 2 else (source,)
    if any(isinstance(split, IterableDataset) for split in splits):
        raise UsageError("an iterable-style data set has no length or order: give a map-style torch data set")
    if not all(_is_map_style(split) for split in splits):
        return None
    items = [_torch_items(split, which) for split, which in zip(splits, ("train", "test"), strict=False)]
    name = type(splits[0]).__name__.lower()
    classes = getattr(splits[0], "classes", None)
    return _to_raw(name, items, tuple(map(str, classes)) if isinstance(classes, (tuple, list)) else None, size)


@FORMATS.register("huggingface")
def read_huggingface(source: Any, size: Size | None) -> RawDataset | None:
    """A Hugging Face `Dataset` (or a pair of them) or a `DatasetDict` with train and test.

    The one column of type Image is read, and the one ClassLabel (of several, `label` or `fine_label`).

    Raises:
        DataError: no train split, no column of images, or no column of class labels.
    """
    if not _is_huggingface(source):
        return None
    splits = _named_splits(source)
    image, label = _columns(splits[0])
    # Without a format the library hands out PIL pictures; a user's torch or numpy format would change that.
    plain = [split.with_format(None) for split in splits]
    items = [(list(split[image]), np.array(split[label])) for split in plain]
    name = getattr(splits[0].info, "dataset_name", None) or "huggingface"
    return _to_raw(name, items, tuple(splits[0].features[label].names), size)


def _is_map_style(source: Any) -> bool:
    is_container = isinstance(source, (str, bytes, dict, np.ndarray, torch.Tensor)) or _is_huggingface(source)
    return not is_container and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _torch_items(dataset: Any, which: str) -> Items:
    images, labels = [], []
    for number in range(len(dataset)):
        item = dataset[number]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{which} item {number}: {type(item).__name__}, expected a pair (image, label)")
        images.append(item[0])
        labels.append(_label(item[1], f"{which} item {number}"))
    return images, np.array(labels, dtype=np.int64)


def _label(label: Any, origin: str) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise DataError(f"{origin}: label {label!r} of type {type(label).__name__}, expected an integer") from None


def _is_huggingface(source: Any) -> bool:
    # An object of the library cannot exist before it is imported. A user's own datasets.py may bear the name.
    library = sys.modules.get("datasets")
    if not hasattr(library, "DatasetDict") or not hasattr(library, "ClassLabel"):
        return False
    assert library is not None
    if isinstance(source, (tuple, list)):
        return len(source) == 2 and all(isinstance(split, library.Dataset) for split in source)
    return isinstance(source, (library.Dataset, library.DatasetDict))


def _named_splits(source: Any) -> Sequence[Any]:
    """(train, test), or (train,) where there is no second split."""
    if not isinstance(source, dict):
        return source if isinstance(source, (tuple, list)) else (source,)
    if "train" not in source:
        raise DataError(f"splits {', '.join(source) or 'none'} found, expected train (and test)")
    test = next((which for which in ("test", "validation", "valid") if which in source), None)
    if test not in ("test", None):
        logger.warning("no test split found; %r takes its place", test)
    return (source["train"], source[test]) if test else (source["train"],)


def _columns(split: Any) -> tuple[str, str]:
    library = sys.modules["datasets"]
    features = split.features.items()
    images = [name for name, feature in features if isinstance(feature, library.Image)]
    labels = [name for name, feature in features if isinstance(feature, library.ClassLabel)]
    preferred = [name for name in ("label", "fine_label") if name in labels]
    label = preferred[:1] or labels
    if len(images) != 1 or len(label) != 1:
        raise DataError(
            f"columns {', '.join(f'{name} ({type(feature).__name__})' for name, feature in features)} found, expected "
            "one Image and one ClassLabel: select_columns and class_encode_column make them"
        )
    return images[0], label[0]


def _to_raw(name: str, items: list[Items], classes: tuple[str, ...] | None, size: Size | None) -> RawDataset:
    """Arrays from item lists; pictures of unequal size are resized, arrays of unequal shape are refused."""
    for which, (images, _) in zip(("train", "test"), items, strict=False):
        if not images:
            raise DataError(f"{name} ({which}): holds no items, expected at least one per class")
    if all(isinstance(image, Image.Image) for images, _ in items for image in images):
        pictures = [_pictures(images, which) for (images, _), which in zip(items, ("train", "test"), strict=False)]
        target = plan(name, pictures[0], pictures[1] if len(pictures) > 1 else [], size)
        arrays = [decode(split, target) for split in pictures]
    else:
        arrays = [_stack(images, which) for (images, _), which in zip(items, ("train", "test"), strict=False)]
    splits = [
        RawSplit(array, labels, f"{name} ({which})")
        for array, (_, labels), which in zip(arrays, items, ("train", "test"), strict=False)
    ]
    return RawDataset(name, splits[0], splits[1] if len(splits) > 1 else None, classes)


def _pictures(images: list[Any], which: str) -> list[Picture]:
    return [Picture(f"{which} item {number}", image.copy) for number, image in enumerate(images)]


def _stack(images: list[Any], which: str) -> np.ndarray:
    """`(N, ...)` from tensors or arrays of one shape."""
    arrays = [np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image) for image in images]
    for number, array in enumerate(arrays):
        if array.dtype == object or array.ndim not in (2, 3):
            found = f"image of type {type(images[number]).__name__}"
            raise DataError(f"{which} item {number}: {found}, expected a tensor, an array or a PIL picture")
        if array.shape != arrays[0].shape or array.dtype != arrays[0].dtype:
            raise DataError(
                f"{which} item {number}: {array.dtype} image of shape {array.shape}, expected {arrays[0].dtype} "
                f"{arrays[0].shape} as in item 0: resize in the data set's own transform"
            )
    return np.stack(arrays)
