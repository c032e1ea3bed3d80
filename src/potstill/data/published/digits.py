"""The embedded set: 1,797 handwritten digits of 8x8 pixels, for first runs and tests without any download.

From the UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak), its
test part, CC BY 4.0, DOI 10.24432/C50P49. The 17 grey levels 0 to 16 are stored as bytes, 16 becoming 255; the
stratified split into 1,437 and 360 images was drawn once and is part of the file.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from ...errors import DataError
from ..own.npz import read_npz
from ..records import DATASETS, KnownSet, RawSplit


def read_digits(data_dir: Path) -> tuple[RawSplit, RawSplit]:
    """Both splits, out of the package; `data_dir` is not looked at."""
    with as_file(files("potstill.data.published").joinpath("digits.npz")) as path:
        raw = read_npz(path, None)
        if raw is None or raw.test is None:
            raise DataError(f"{path}: is missing or incomplete, expected the embedded digits: reinstall potstill")
    return raw.train, raw.test


DATASETS.register("digits")(
    KnownSet(
        "digits",
        read_digits,
        classes=tuple("0123456789"),
        mirror=False,
        published=(1437, 360),
        licence="CC BY 4.0",
    )
)
