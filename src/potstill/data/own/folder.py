"""One's own data as a folder of pictures: train/CLASS/*.png and test/CLASS/*.png, or just CLASS/*.png."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import DataError
from ..records import FORMATS, RawDataset, RawSplit, Size, logger
from .pictures import Picture, decode, plan

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@FORMATS.register("folder")
def read_folder(source: Any, size: Size | None) -> RawDataset | None:
    """Pictures by class; class names are the folder names, in alphabetical order.

    Raises:
        DataError: no class folders, a class without pictures, or a picture that cannot be used.
    """
    if not isinstance(source, Path) or not source.is_dir():
        return None
    train_root, test_root = _roots(source)
    classes = _class_names(train_root)
    train = _pictures(train_root, classes)
    test = _pictures(test_root, _known(test_root, classes)) if test_root else {}
    name = source.resolve().name
    target = plan(name, _flat(train), _flat(test), size)

    def split(root: Path, pictures: dict[str, list[Picture]]) -> RawSplit:
        labels = [classes.index(cls) for cls, members in pictures.items() for _ in members]
        return RawSplit(decode(_flat(pictures), target), np.array(labels, dtype=np.int64), str(root))

    return RawDataset(name, split(train_root, train), split(test_root, test) if test_root else None, classes)


def _roots(source: Path) -> tuple[Path, Path | None]:
    folders = _subfolders(source)
    if "train" not in folders and "test" not in folders:
        return source, None
    if "train" not in folders:
        raise DataError(f"{source}: has test/ but no train/, expected train/CLASS/*.png")
    unread = sorted(set(folders) - {"train", "test"})
    if unread:
        logger.warning("%s: not read, as they are beside train/ and test/: %s", source, ", ".join(unread))
    return folders["train"], folders.get("test")


def _subfolders(root: Path) -> dict[str, Path]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: path for path in folders}


def _class_names(root: Path) -> tuple[str, ...]:
    classes = tuple(_subfolders(root))
    if not classes:
        raise DataError(f"{root}: no class folders found, expected CLASS/*.png (or {', '.join(SUFFIXES[1:])})")
    return classes


def _known(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The class folders of the test split, which must all be classes of the training split."""
    found = _class_names(root)
    for cls in found:
        if cls not in classes:
            raise DataError(f"{root / cls}: is no class of the training split, expected {', '.join(classes)}")
    return found


def _pictures(root: Path, classes: tuple[str, ...]) -> dict[str, list[Picture]]:
    pictures = {}
    for cls in classes:
        paths = sorted(path for path in (root / cls).iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise DataError(f"{root / cls}: class without pictures, expected at least one of {', '.join(SUFFIXES)}")
        pictures[cls] = [Picture(str(path), partial(Image.open, path)) for path in paths]
    return pictures


def _flat(pictures: dict[str, list[Picture]]) -> list[Picture]:
    return [picture for members in pictures.values() for picture in members]
