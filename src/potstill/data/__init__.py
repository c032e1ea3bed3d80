"""Labelled data from names, folders, files and objects. Everything here reads; nothing here writes.

A further published set, or a further format for one's own data, is a file that enters itself in `DATASETS` or
`FORMATS` (see `raw`) and an import line below.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..checks import whole
from ..errors import DataError, UsageError, refuse_out_of_memory, unreadable
from ..files import expanded
from ..spec import LabelledDataset
from .check import finish
from .holdout import holdout_split
from .own import folder, npz, objects, sound  # noqa: F401  (they enter themselves in the registries)
from .published import cifar, digits, idx, speech_commands, svhn  # noqa: F401  (they enter themselves in the registries)
from .published.hub import from_hub
from .records import DATASETS, FORMATS, KnownSet, MissingFiles, RawDataset, Size, as_sides, default_data_dir, logger

__all__ = ["DATASETS", "default_data_dir", "holdout_split", "known_set", "load_dataset"]

ALIASES = {"speech": "mini_speech_commands"}


def known_set(name: str) -> KnownSet | None:
    """The facts of a published set by its name; None for a path."""
    name = ALIASES.get(name, name)
    if name not in DATASETS:
        return None
    return DATASETS[name]


def load_dataset(
    source: Any,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    mirror: bool | None = None,
    normalisation: str = "measured",
    holdout: float = 0.2,
    size: Size | None = None,
    seed: int = 0,
) -> LabelledDataset:
    """Read a labelled data set of images or sound, check it and measure it.

    What is assumed, converted or left out is said through the logger `potstill`.

    Args:
        source: a known name (digits, mnist, fashion_mnist, cifar10, cifar100, svhn, mini_speech_commands), the
            path of a folder of pictures or of clips of sound, or of an .npz file, a torch map-style data set or a
            pair (train, test) of them, or a Hugging Face `Dataset` or `DatasetDict`.
        data_dir: where the files of known sets lie, in the layout they are published in; POTSTILL_DATA_DIR, else
            the user's cache folder, where None.
        download: fetch a known set whose files are not there. Without it the network is never touched.
        mirror: whether a left-right flip keeps the label; where None, known for known sets and else True.
        normalisation: "measured" takes mean and deviation from the training split, "common" the constants in wide
            use for a known set; measured, with a notice, where there are none.
        holdout: the fraction held out for testing where the source has no test split.
        size: side, or (height, width), to resize to; where None images keep theirs, or pictures of unequal size
            get the median.
        seed: of the hold-out.
    Raises:
        UsageError: an unknown name or an impossible argument.
        DataError: data that is missing, damaged or does not fit; the message names the file.
        MissingExtra: the download needs the extra `hub`.
    """
    if size is not None:
        as_sides(size)
    if not isinstance(holdout, (int, float)) or not 0 < holdout < 1:
        raise UsageError(f"holdout={holdout!r}: need a fraction between 0 and 1")
    if mirror not in (None, True, False):
        raise UsageError(f"mirror={mirror!r}: need True, False or None")
    seed = whole("seed", seed)
    try:
        raw = _read(source, expanded(data_dir) if data_dir else default_data_dir(), download, size)
    except OSError as error:  # of a place that may not be looked into, or has no name that a disk can have
        refuse_out_of_memory(error, str(source))
        raise unreadable(error.filename or source, error) from error
    return finish(raw, normalisation=normalisation, holdout=holdout, size=size, mirror=mirror, seed=seed)


def _read(source: Any, data_dir: Path, download: bool, size: Size | None) -> RawDataset:
    source = ALIASES.get(source, source) if isinstance(source, str) else source
    if isinstance(source, str) and source in DATASETS:
        return _read_known(source, data_dir, download)
    if download:
        logger.warning("download=True has no effect: only known sets are downloaded (%s)", ", ".join(DATASETS))
    if isinstance(source, (str, os.PathLike)):
        source = _existing_path(source)
    for name in FORMATS:
        raw = FORMATS[name](source, size)
        if raw is not None:
            return raw
    if isinstance(source, Path):
        raise DataError(f"{source}: is no folder and no .npz file, expected one of them")
    raise UsageError(
        f"a data set of type {type(source).__name__} cannot be read: give a name ({', '.join(DATASETS)}), a path, "
        "a torch map-style data set (or a pair of them) or a Hugging Face data set"
    )


def _read_known(name: str, data_dir: Path, download: bool) -> RawDataset:
    known = DATASETS[name]
    try:
        return known.with_splits(*known.read(data_dir))
    except MissingFiles:
        if not download:
            raise
    return from_hub(name)


def _existing_path(source: str | os.PathLike[str]) -> Path:
    path = expanded(source)
    if path.exists():
        return path
    if isinstance(source, str) and path.name == source and not path.suffix:
        raise UsageError(
            f"unknown data set {source!r}: known are {', '.join(DATASETS)}; the path of a folder or .npz works too"
        )
    raise DataError(
        f"{path}: no such file or folder, expected a folder of pictures or an .npz file; name its new place if it moved"
    )
