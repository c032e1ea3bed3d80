"""SVHN's cropped digits (Netzer et al. 2011) from the published train_32x32.mat and test_32x32.mat."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DataError, MissingExtra, refuse_out_of_memory
from ..records import DATASETS, KnownSet, MissingFiles, RawSplit, reason

FILES = ("train_32x32.mat", "test_32x32.mat")


def read_svhn(data_dir: Path) -> tuple[RawSplit, RawSplit]:
    """Both splits from `data_dir`/svhn or `data_dir` itself."""
    folders = [data_dir / "svhn", data_dir / "SVHN", data_dir]
    for folder in folders:
        if all((folder / file).is_file() for file in FILES):
            return _read(folder / FILES[0]), _read(folder / FILES[1])
    raise MissingFiles("svhn", "files not found", folders, " and ".join(FILES))


def _read(path: Path) -> RawSplit:
    """X `(32, 32, 3, N)` uint8 and y `(N, 1)`, in which 10 stands for the digit 0."""
    try:
        from scipy.io import loadmat  # optional
    except ImportError:
        raise MissingExtra(f"reading {path}", "audio") from None
    try:
        content = loadmat(path, variable_names=("X", "y"))
    except Exception as problem:  # a damaged file fails in any way
        refuse_out_of_memory(problem, str(path))
        raise DataError(f"{path}: cannot be read ({reason(problem)}), expected the published .mat file") from problem
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        found = {key: value.shape for key, value in content.items() if key in ("X", "y")}
        raise DataError(f"{path}: holds {found or 'neither X nor y'}, expected X (32, 32, 3, N) and y (N, 1)")
    labels = labels.astype(np.int64)
    return RawSplit(images.transpose(3, 0, 1, 2), np.where(labels == 10, 0, labels), str(path))


DATASETS.register("svhn")(
    KnownSet(
        "svhn",
        read_svhn,
        classes=tuple("0123456789"),
        mirror=False,
        published=(73_257, 26_032),
        common=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    )
)
