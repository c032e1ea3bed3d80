"""From raw arrays to a `LabelledDataset`: every check, every decision a reader left open, each of them announced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..spec import DatasetSpec, LabelledDataset, Split
from .holdout import holdout_split
from .layout import exact_bytes, resize, to_images
from .measure import channel_statistics, fingerprint, split_fingerprint, value_range
from .records import DATASETS, RawDataset, RawSplit, Size, Statistics, logger


def finish(
    raw: RawDataset, *, normalisation: str, holdout: float, size: Size | None, mirror: bool | None, seed: int
) -> LabelledDataset:
    """Check `raw`, fill in what it leaves open and measure it; arguments as in `load_dataset`.

    Raises:
        DataError: images or labels that do not fit each other, the classes or the allowed shapes and values.
        UsageError: a normalisation that this set does not have, or a hold-out fraction outside (0, 1).
    """
    classes = _check_labels(raw)
    train, test = _splits(raw, classes, holdout, size, seed)
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
        value_range=_range(raw, train.images, test.images),
        licence=raw.licence,
    )
    logger.info(
        "%s: %d training and %d test images %s, %d classes, from %s",
        raw.name, len(train), len(test), spec.shape, spec.num_classes, raw.train.origin,
    )  # fmt: skip
    return LabelledDataset(spec, train, test)


def _check_labels(raw: RawDataset) -> tuple[str, ...]:
    """The class names, once every label is known to be one of them and every class to have a training image."""
    train = _integers(raw.train)
    if raw.classes is None and train.max() >= len(train):
        # Before a stray label makes a billion class names.
        raise DataError(f"{raw.train.origin}: label {train.max()} among {len(train)} images, expected 0 to classes - 1")
    classes = raw.classes or tuple(str(label) for label in range(int(train.max()) + 1))
    for split in (raw.train, raw.test) if raw.test else (raw.train,):
        labels = _integers(split)
        wrong = (labels < 0) | (labels >= len(classes))
        if wrong.any():
            found = f"label {labels[wrong][0]} at position {int(np.argmax(wrong))}"
            raise DataError(f"{split.origin}: {found}, expected 0 to {len(classes) - 1} ({len(classes)} classes)")
    counts = np.bincount(train, minlength=len(classes))
    if not counts.all():
        empty = int(np.argmin(counts))
        raise DataError(f"{raw.train.origin}: class {classes[empty]!r} (label {empty}) has no image, expected one")
    return classes


def _integers(split: RawSplit) -> np.ndarray:
    labels = np.asarray(split.labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{split.origin}: labels of type {labels.dtype} and shape {labels.shape}, expected integers of shape (N,)"
        )
    if len(labels) == 0:
        raise DataError(f"{split.origin}: holds no labels, expected one per image")
    return labels.astype(np.int64)


def _splits(
    raw: RawDataset, classes: tuple[str, ...], holdout: float, size: Size | None, seed: int
) -> tuple[Split, Split]:
    train = _split(raw.train, size)
    if raw.test is None:
        return _hold_out(raw.name, train, classes, holdout, seed)
    test = _split(raw.test, size)
    if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        raise DataError(
            f"{raw.test.origin}: {_describe(test.images)}, expected {_describe(train.images)} as in {raw.train.origin}"
        )
    return _as_bytes_where_exact(train, test)


def _split(raw: RawSplit, size: Size | None) -> Split:
    images = to_images(raw)
    return Split(images if size is None else resize(images, size), torch.from_numpy(_integers(raw)))


def _describe(images: Tensor) -> str:
    return f"{images.dtype} images of shape {tuple(images.shape[1:])}".replace("torch.", "")


def _as_bytes_where_exact(train: Split, test: Split) -> tuple[Split, Split]:
    train_bytes, test_bytes = exact_bytes(train.images), exact_bytes(test.images)
    if train_bytes is None or test_bytes is None:
        return train, test
    return Split(train_bytes, train.labels), Split(test_bytes, test.labels)


def _hold_out(name: str, train: Split, classes: tuple[str, ...], holdout: float, seed: int) -> tuple[Split, Split]:
    if not 0 < holdout < 1:
        raise UsageError(f"holdout={holdout}: need a fraction between 0 and 1, {name} brings no test split")
    rest, held_out = holdout_split(train, float(holdout), seed)
    logger.warning(
        "%s: no test split found; %d of %d images (%g of each class, seed %d) are held out as one",
        name, len(held_out), len(train), holdout, seed,
    )  # fmt: skip
    untested = [label for label in range(len(classes)) if not (held_out.labels == label).any()]
    if untested:
        logger.warning("%s: class %r is too small to be in the test split", name, classes[untested[0]])
    return _as_bytes_where_exact(rest, held_out)


def _compare_with_published(raw: RawDataset, train: Split, test: Split) -> None:
    found = (len(train), len(test))
    if raw.published and found != raw.published:
        logger.warning("%s: %d + %d images found, the published set has %d + %d", raw.name, *found, *raw.published)


def _statistics(raw: RawDataset, images: Tensor, normalisation: str) -> Statistics:
    if normalisation == "common":
        if raw.common is None:
            known = ", ".join(name for name in DATASETS if DATASETS[name].common)
            raise UsageError(f"normalisation='common' is not known for {raw.name}, only for {known}: use 'measured'")
        return raw.common
    if normalisation != "measured":
        raise UsageError(f"normalisation={normalisation!r}: must be 'measured' or 'common'")
    mean, std = channel_statistics(images)
    for channel, deviation in enumerate(std):
        if deviation == 0:
            logger.warning("%s: channel %d is constant; its deviation is set to 1", raw.name, channel)
    return mean, tuple(deviation or 1.0 for deviation in std)


def _range(raw: RawDataset, train: Tensor, test: Tensor) -> tuple[float, float]:
    low, high = value_range(train)
    if (low, high) != (0.0, 1.0):
        logger.warning("%s: float pixels; their range in the training split is %g to %g", raw.name, low, high)
    elif raw.test and value_range(test) != (0.0, 1.0):
        raise DataError(
            f"{raw.test.origin}: pixels from {float(test.min()):g} to {float(test.max()):g}, "
            f"expected 0 to 1 as in {raw.train.origin}: scale both splits alike"
        )
    return low, high


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
