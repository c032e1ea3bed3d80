"""From raw arrays to a `LabelledDataset`: every check, every decision a reader left open, each of them announced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..checks import MOST
from ..errors import DataError, UsageError
from ..spec import DatasetSpec, LabelledDataset, Split, noun_of
from .holdout import holdout_split
from .layout import exact_bytes, resize, scaled, source_range, to_images
from .measure import channel_statistics, fingerprint, split_fingerprint
from .records import DATASETS, RawDataset, RawSplit, Size, Statistics, logger


def finish(
    raw: RawDataset, *, normalisation: str, holdout: float, size: Size | None, mirror: bool | None, seed: int
) -> LabelledDataset:
    """Labels -> shapes -> splits -> scale -> measures; arguments as in `load_dataset`.

    Raises:
        DataError: images or labels that do not fit each other, the classes or the allowed shapes and values.
        UsageError: a normalisation that this set does not have.
    """
    raw, classes = _label(raw)
    train, test = _splits(raw, classes, holdout, size, seed)
    train, test, source = _one_scale(raw, train, test)
    _compare_with_published(raw, train, test)
    mean, std = _statistics(raw, train.images, normalisation)
    channels, height, width = train.images.shape[1:]
    spec = DatasetSpec(
        name=raw.name,
        shape=(channels, height, width),
        classes=classes,
        mean=mean,
        std=std,
        mirror=_decide_mirror(raw, mirror),
        fingerprint=fingerprint(train, test, classes),
        train_fingerprint=split_fingerprint(train),
        test_fingerprint=split_fingerprint(test),
        source_range=source,
        modality=raw.modality,
        licence=raw.licence,
    )
    logger.info(
        "%s: %d training and %d test samples %s, %d classes, from %s",
        raw.name, len(train), len(test), spec.shape, spec.num_classes, raw.train.origin,
    )  # fmt: skip
    return LabelledDataset(spec, train, test)


# Labels


def _label(raw: RawDataset) -> tuple[RawDataset, tuple[str, ...]]:
    """`raw` with integer labels that mean the same in both splits, and the class names.

    Every label is known to be one of the classes, and every class to have a training image.
    """
    train = _numbered(raw.train, raw.classes)
    test = _numbered(raw.test, raw.classes) if raw.test else None
    if train.classes is None and train.labels.max() >= len(train.labels):
        # Before a stray label makes a billion class names.
        found = f"label {train.labels.max()} among {len(train.labels)} images"
        raise DataError(f"{train.origin}: {found}, expected 0 to classes - 1")
    classes = train.classes or tuple(str(label) for label in range(int(train.labels.max()) + 1))
    _check_labels(train, classes)
    counts = np.bincount(train.labels, minlength=len(classes))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise DataError(f"{train.origin}: class {classes[empty]!r} (label {empty}) has no image, expected one")
    if test:
        _check_labels(test, test.classes or classes)
        test = _in_order_of(test, classes)
    return replace(raw, train=train, test=test), classes


def _numbered(split: RawSplit, classes: tuple[str, ...] | None) -> RawSplit:
    """The split with labels `(N,)` int64; labels that are names are numbered, in the order of `classes` if given."""
    labels = np.asarray(split.labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biufSU":
        one_hot = "; of one-hot rows give the argmax" if labels.ndim == 2 else ""
        raise DataError(
            f"{split.origin}: labels of type {labels.dtype} and shape {labels.shape}, expected integers of shape (N,) "
            f"or names of classes{one_hot}"
        )
    if len(labels) == 0:
        raise DataError(f"{split.origin}: holds no labels, expected one per image")
    if labels.dtype.kind not in "SU":
        return replace(split, labels=_whole(labels, split.origin), classes=split.classes or classes)
    names, numbers = np.unique(_text(labels, split.origin), return_inverse=True)
    logger.info("%s: labels are names, numbered in alphabetical order: %s", split.origin, ", ".join(names))
    named = replace(split, labels=numbers.astype(np.int64), classes=tuple(names.tolist()))
    return _in_order_of(named, classes) if classes else named


def _whole(labels: np.ndarray, origin: str) -> np.ndarray:
    """Numbers or truth values as int64; many files keep whole numbers as floats."""
    wrong = np.zeros(len(labels), bool) if labels.dtype.kind in "bi" else ~(np.abs(labels.astype(np.float64)) < MOST)
    if labels.dtype.kind == "f":
        wrong |= labels != np.round(labels)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(f"{origin}: label {labels[at]} at position {at}, expected whole numbers from 0 to classes - 1")
    return labels.astype(np.int64)


def _text(labels: np.ndarray, origin: str) -> np.ndarray:
    try:
        return labels.astype(str)
    except UnicodeDecodeError:
        raise DataError(f"{origin}: names of classes are bytes beyond ASCII, expected strings") from None


def _in_order_of(split: RawSplit, classes: tuple[str, ...]) -> RawSplit:
    """The split with its labels renumbered so that they mean `classes`, by name."""
    if split.classes in (None, classes):
        return split
    used = np.unique(split.labels)
    names = [split.classes[label] for label in used]
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DataError(
            f"{split.origin}: class {unknown[0]!r} is no class of the training split, expected {', '.join(classes)}"
        )
    order = np.zeros(len(split.classes), np.int64)
    order[used] = [classes.index(name) for name in names]
    if (order[used] != used).any():
        logger.warning("%s: classes come in another order than in the training split; matched by name", split.origin)
    return replace(split, labels=order[split.labels], classes=classes)


def _check_labels(split: RawSplit, classes: tuple[str, ...]) -> None:
    wrong = (split.labels < 0) | (split.labels >= len(classes))
    if wrong.any():
        found = f"label {split.labels[wrong][0]} at position {int(np.argmax(wrong))}"
        withheld = "; -1 often means that labels are withheld: give a split that has them"
        raise DataError(
            f"{split.origin}: {found}, expected 0 to {len(classes) - 1} ({len(classes)} classes)"
            + (withheld if (split.labels == -1).any() else "")
        )


# Splits


def _splits(
    raw: RawDataset, classes: tuple[str, ...], holdout: float, size: Size | None, seed: int
) -> tuple[Split, Split]:
    train = _split(raw.train, size)
    if raw.test is None:
        return _hold_out(raw.name, train, classes, holdout, seed, noun_of(raw.modality))
    test = _split(raw.test, size)
    if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        raise DataError(
            f"{raw.test.origin}: {_describe(test.images)}, expected {_describe(train.images)} as in {raw.train.origin}"
        )
    return train, test


def _split(raw: RawSplit, size: Size | None) -> Split:
    images = to_images(raw)
    return Split(images if size is None else resize(images, size), torch.from_numpy(raw.labels))


def _describe(images: Tensor) -> str:
    return f"{images.dtype} images of shape {tuple(images.shape[1:])}".replace("torch.", "")


def _hold_out(
    name: str, train: Split, classes: tuple[str, ...], holdout: float, seed: int, noun: str
) -> tuple[Split, Split]:
    rest, held_out = holdout_split(train, float(holdout), seed)
    logger.warning(
        "%s: no test split found; %d of %d %ss (%g of each class, seed %d) are held out as one",
        name, len(held_out), len(train), noun, holdout, seed,
    )  # fmt: skip
    untested = [label for label in range(len(classes)) if not (held_out.labels == label).any()]
    if untested:
        logger.warning("%s: class %r is too small to be in the test split", name, classes[untested[0]])
    return rest, held_out


def _one_scale(raw: RawDataset, train: Split, test: Split) -> tuple[Split, Split, tuple[float, float]]:
    """Both splits as bytes, or as floats on the scale of pixels; and what 0 and 1 are in the source.

    Rates, clamps and pictures are made for pixels in [0, 1]. On their own scale, floats of 0..255 would hardly move.
    """
    if train.images.dtype == torch.uint8:
        return train, test, (0.0, 1.0)
    low, high = source_range(train.images, test.images, raw.test.origin if raw.test else raw.train.origin)
    if (low, high) != (0, 1):
        logger.warning("%s: float samples; %g to %g is stored as 0 to 1", raw.name, low, high)
    images = [scaled(split.images, low, high) for split in (train, test)]
    exact = [exact_bytes(x) for x in images] if raw.modality == "image" else [None]
    if all(x is not None for x in exact):
        images = exact
    return replace(train, images=images[0]), replace(test, images=images[1]), (low, high)


# Measures


def _compare_with_published(raw: RawDataset, train: Split, test: Split) -> None:
    found = (len(train), len(test))
    if raw.published and found != raw.published:
        noun = noun_of(raw.modality)
        logger.warning("%s: %d + %d %ss found, the published set has %d + %d", raw.name, *found, noun, *raw.published)


def _statistics(raw: RawDataset, images: Tensor, normalisation: str) -> Statistics:
    if normalisation == "common" and raw.common is not None:
        return raw.common
    if normalisation == "common":
        known = ", ".join(name for name in DATASETS if DATASETS[name].common)
        logger.warning(
            "%s: no constants are in wide use (there are for %s): mean and deviation measured", raw.name, known
        )
    elif normalisation != "measured":
        raise UsageError(f"normalisation={normalisation!r}: must be 'measured' or 'common'")
    mean, std = channel_statistics(images)
    for channel, deviation in enumerate(std):
        if deviation == 0:
            logger.warning("%s: channel %d is constant; its deviation is set to 1", raw.name, channel)
    return mean, tuple(deviation or 1.0 for deviation in std)


def _decide_mirror(raw: RawDataset, chosen: bool | None) -> bool:
    if chosen is None and raw.mirror is None:
        logger.warning(
            "%s: a left-right flip is taken to keep the label; pass mirror=False where it does not (digits, letters)",
            raw.name,
        )
        return True
    if chosen is None or chosen == raw.mirror:
        return bool(raw.mirror)
    if raw.mirror is not None:
        logger.warning("%s: mirror=%s as asked for; usual is mirror=%s", raw.name, chosen, raw.mirror)
    return chosen
