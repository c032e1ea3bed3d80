"""Data sets that are objects already: torch map-style data sets and those of the Hugging Face library."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from ...errors import DataError, MissingExtra, UsageError, refuse_out_of_memory
from ..records import FORMATS, RawDataset, RawSplit, Size, logger, reason
from .folder import is_saved_by_datasets
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
    return _to_raw(name, items, [_class_names(split) for split in splits], size)


@FORMATS.register("huggingface")
def read_huggingface(source: Any, size: Size | None) -> RawDataset | None:
    """A Hugging Face `Dataset` (or a pair of them) or a `DatasetDict` with train and test.

    The one column of type Image is read, and the one ClassLabel (of several, `label` or `fine_label`).

    Raises:
        DataError: no train split, no column of images, or no column of class labels.
    """
    if isinstance(source, Path) and source.is_dir() and is_saved_by_datasets(source):
        source = _load_from_disk(source)
    if not _is_huggingface(source):
        return None
    splits = _named_splits(source)
    image, label = _columns(splits[0])
    items = [(_images(split, image), np.array(split.with_format(None)[label])) for split in splits]
    name = getattr(splits[0].info, "dataset_name", None) or "huggingface"
    return _to_raw(name, items, [getattr(split.features.get(label), "names", None) for split in splits], size)


def _load_from_disk(path: Path) -> Any:
    try:
        from datasets import load_from_disk  # takes a second to import, and is optional
    except ImportError:
        raise MissingExtra(f"{path} was written by save_to_disk; reading it", "hub") from None
    try:
        return load_from_disk(str(path))
    except Exception as problem:  # of pyarrow, of json: all mean the same to the user
        refuse_out_of_memory(problem, str(path))
        raise DataError(f"{path}: cannot be read ({reason(problem)}), expected a folder of save_to_disk") from problem


def _images(split: Any, column: str) -> list[Any]:
    """Pictures as the library decodes them, or as the user's own transform changes them.

    A torch or numpy format would only change their type, and is left aside.
    """
    if split.format["type"] != "custom":
        return list(split.with_format(None)[column])
    logger.warning("the data set's transform is applied once, to each picture")
    return [split[number][column] for number in range(len(split))]


def _is_map_style(source: Any) -> bool:
    is_container = isinstance(source, (str, bytes, dict, np.ndarray, torch.Tensor)) or _is_huggingface(source)
    return not is_container and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _torch_items(dataset: Any, which: str) -> Items:
    images: list[Any] = []
    labels: list[int | str] = []
    for number in range(len(dataset)):
        item = dataset[number]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{which} item {number}: {type(item).__name__}, expected a pair (image, label)")
        images.append(item[0])
        labels.append(_label(item[1], f"{which} item {number}"))
    if len({type(label) for label in labels}) > 1:
        raise DataError(f"{which}: some labels are names and some are integers, expected one kind")
    return images, np.array(labels)


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    classes = getattr(dataset, "classes", None)
    return tuple(map(str, classes)) if isinstance(classes, (tuple, list)) else None


def _label(label: Any, origin: str) -> int | str:
    """A whole number, alone or in an array of one, as a float too; or the name of a class."""
    if isinstance(label, str):
        return label
    try:
        return _whole(label.item() if getattr(label, "shape", None) in ((), (1,)) else label)
    except TypeError:
        raise DataError(f"{origin}: label {label!r} of type {type(label).__name__}, expected an integer") from None


def _whole(number: Any) -> int:
    if not isinstance(number, float):
        return operator.index(number)
    if not number.is_integer():
        raise TypeError
    return int(number)


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
    found = [which for which in ("test", "validation", "valid", "val") if which in source]
    test = next((which for which in found if not _is_withheld(source[which])), *found[:1] or (None,))
    if test not in ("test", None):
        logger.warning("no test split with labels found; %r takes its place", test)
    return (source["train"], source[test]) if test else (source["train"],)


def _is_withheld(split: Any) -> bool:
    """Whether every label is the -1 of a split for a competition."""
    library = sys.modules["datasets"]
    labels = [name for name, feature in split.features.items() if isinstance(feature, library.ClassLabel)]
    return any(set(split.with_format(None)[name]) == {-1} for name in labels)


def _columns(split: Any) -> tuple[str, str]:
    library = sys.modules["datasets"]
    features = split.features.items()
    images = [name for name, feature in features if isinstance(feature, library.Image)]
    labels = [name for name, feature in features if isinstance(feature, library.ClassLabel)]
    labels = labels or [
        name for name in ("label", "labels") if getattr(split.features.get(name), "dtype", "") == "string"
    ]
    preferred = [name for name in ("label", "fine_label") if name in labels]
    label = preferred[:1] or labels
    if len(images) != 1 or len(label) != 1:
        raise DataError(
            f"columns {', '.join(f'{name} ({type(feature).__name__})' for name, feature in features)} found, expected "
            "one Image and one ClassLabel: select_columns and class_encode_column make them"
        )
    return images[0], label[0]


def _to_raw(name: str, items: list[Items], classes: Sequence[Sequence[str] | None], size: Size | None) -> RawDataset:
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
        RawSplit(array, labels, f"{name} ({which})", tuple(names) if names else None)
        for array, (_, labels), which, names in zip(arrays, items, ("train", "test"), classes, strict=False)
    ]
    return RawDataset(name, splits[0], splits[1] if len(splits) > 1 else None)


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
