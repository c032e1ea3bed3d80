"""What readers hand over, and the two lists they enter themselves in. Leaves checks and measurements to `finish`.

A published data set is a `KnownSet` in `DATASETS`; a way to bring one's own data is a function in `FORMATS`. Either
is one file in this package plus its import line in `__init__`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..files import expanded
from ..registry import Registry

logger = logging.getLogger("potstill")

MIN_SIDE = 8  # the smallest height or width any network here can pool
MAX_SIDE = 1024  # the largest that a size may ask for

Size = int | tuple[int, int]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class RawSplit:
    """Arrays as they came from a file or an object, unchecked.

    Attributes:
        images: `(N, C, H, W)`, `(N, H, W, C)` or `(N, H, W)`, uint8 or float.
        labels: `(N,)` or `(N, 1)`, integers from 0 or names of classes.
        origin: where they came from (a file, a key, a split), for error messages.
        classes: the names that this split's integers stand for, where it brings its own.
    """

    images: np.ndarray
    labels: np.ndarray
    origin: str
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RawDataset:
    """Everything a reader knows; None where it does not know and `finish` has to decide and say so.

    Attributes:
        classes: names by label; where None those of the training split, else numbers.
        common: mean and std in wide use for this set, on the [0, 1] scale.
        published: numbers of training and test images of the complete set.
    """

    name: str
    train: RawSplit
    test: RawSplit | None
    classes: tuple[str, ...] | None = None
    mirror: bool | None = None
    licence: str = ""
    common: Statistics | None = None
    published: tuple[int, int] | None = None
    modality: str = "image"


@dataclass(frozen=True)
class KnownSet:
    """A published data set: its facts, and the reader of its files below the data folder.

    `read` raises `MissingFiles` where there is nothing to read, and any other `DataError` where it is damaged.
    """

    name: str
    read: Callable[[Path], tuple[RawSplit, RawSplit]]
    classes: tuple[str, ...]
    mirror: bool
    published: tuple[int, int]
    licence: str = ""
    common: Statistics | None = None
    modality: str = "image"

    def with_splits(self, train: RawSplit, test: RawSplit) -> RawDataset:
        """The same facts around arrays from any source: local files or the hub."""
        return RawDataset(
            self.name, train, test, self.classes, self.mirror, self.licence, self.common, self.published, self.modality
        )


# Called with (source, size); answers None for a source that is not of its format.
FormatReader = Callable[[Any, Size | None], RawDataset | None]

DATASETS: Registry[KnownSet] = Registry("data set")
FORMATS: Registry[FormatReader] = Registry("data format")


class MissingFiles(DataError):
    """The files of a known set are not there (as opposed to damaged): the one case a download can help."""

    def __init__(self, name: str, found: str, looked_in: Sequence[Path], expected: str, remedy: str = ""):
        places = ", ".join(str(place) for place in looked_in)
        super().__init__(
            f"{name}: {found}; looked in {places} for {expected}: place the published files there, "
            f"{remedy}or allow the download (download=True, --download)"
        )


def reason(problem: Exception) -> str:
    """One line of what another library's exception says, to quote in ours."""
    return next(iter(str(problem).splitlines()), "") or type(problem).__name__


def default_data_dir() -> Path:
    """POTSTILL_DATA_DIR, else `potstill/data` in the user's cache folder; without a home, a place where nothing is."""
    chosen = os.environ.get("POTSTILL_DATA_DIR")
    if chosen:
        return expanded(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(cache)) / "potstill" / "data"


def check_memory(numbers: int, origin: str) -> None:
    """Refuse arrays of `numbers` bytes that this machine cannot hold, before they are allocated.

    Raises:
        DataError: by what they would take.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if numbers > memory:
        raise DataError(
            f"{origin}: takes {numbers / 1e9:,.1f} GB, this machine has {memory / 1e9:,.1f}: "
            "give fewer samples or a smaller size="
        )


def as_sides(size: Size) -> tuple[int, int]:
    """(height, width) from what the user gave: one number for a square, or both.

    Raises:
        UsageError: a side is not an integer from 8 to 1024.
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and MIN_SIDE <= side <= MAX_SIDE for side in sides):
        wanted = f"each an integer of at least {MIN_SIDE} and at most {MAX_SIDE}"
        raise UsageError(f"size={size}: need one side or (height, width), {wanted}")
    return sides[0], sides[1]
