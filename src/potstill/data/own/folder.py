"""One's own data as a folder of pictures: train/CLASS/*.png and test/CLASS/*.png, or just CLASS/*.png.

Pictures may lie in folders below their class. What is left out is counted and named once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..records import FORMATS, RawDataset, RawSplit, Size, logger, reason
from .pictures import SUFFIXES, Picture, decode, open_file, plan

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "dev")

Files = dict[str, list[Path]]  # by class


@FORMATS.register("folder")
def read_folder(source: Any, size: Size | None) -> RawDataset | None:
    """Pictures by class; class names are the folder names, in alphabetical order.

    Raises:
        DataError: no class folders, a class without pictures, or a picture that cannot be used.
    """
    if not isinstance(source, Path) or not source.is_dir() or is_saved_by_datasets(source):
        return None
    train_root, test_root = split_roots(source, SUFFIXES)
    train = class_files(train_root, SUFFIXES)
    test = class_files(test_root, SUFFIXES, known=tuple(train)) if test_root else {}
    name = source.resolve().name
    train_pictures, test_pictures = (
        [Picture(str(path), partial(open_file, path)) for path in paths_of(files)] for files in (train, test)
    )
    target = plan(name, train_pictures, test_pictures, size)

    def split(root: Path, files: Files, members: list[Picture]) -> RawSplit:
        return RawSplit(decode(members, target), labels_of(files, tuple(train)), str(root))

    held = split(test_root, test, test_pictures) if test_root else None
    return RawDataset(name, split(train_root, train, train_pictures), held, tuple(train))


def is_saved_by_datasets(root: Path) -> bool:
    """Whether the Hugging Face library wrote this folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def split_roots(source: Path, suffixes: tuple[str, ...]) -> tuple[Path, Path | None]:
    """The folders of both splits; where there are none, `source` itself holds the classes.

    A folder called train that holds files of its own is a class.
    """
    folders = _subfolders(source)
    splits = [name for name in (*TRAIN, *TEST) if name in folders and _is_split(folders[name], suffixes)]
    if not splits:
        return source, None
    train = next((name for name in TRAIN if name in splits), None)
    if train is None:
        raise DataError(f"{source}: has the split {splits[0]}/ but no train/, expected train/CLASS/*{suffixes[0]}")
    test = next((name for name in TEST if name in splits), None)
    unread = sorted(set(folders) - {train, test})
    if unread:
        beside = f"the split {train}/" + (f" and the split {test}/" if test else "")
        logger.warning("%s: not read, as they are beside %s: %s", source, beside, ", ".join(unread))
    if test not in (*TEST[:2], None):
        logger.warning("%s: no test split found; %s/ takes its place", source, test)
    return folders[train], folders[test] if test else None


def would_read(source: Path, place: Path) -> bool:
    """Whether files in the folder `place` would be read as data of the folder `source`, or lie loose among them."""
    source, place = source.resolve(), place.resolve()
    if not place.is_relative_to(source):
        return False
    has_splits = any((source / name).is_dir() and _subfolders(source / name) for name in TRAIN)
    return place == source or not has_splits or place.relative_to(source).parts[0] in (*TRAIN, *TEST)


def class_files(root: Path, suffixes: tuple[str, ...], known: tuple[str, ...] = ()) -> Files:
    """The files of each class below `root`, those in deeper folders too, in alphabetical order.

    Raises:
        DataError: no class folders, one without files, one that is none of `known`, or one that cannot be listed.
    """
    folders = _subfolders(root)
    usual = ", ".join(suffixes)
    if not folders:
        raise DataError(f"{root}: no class folders found, expected CLASS/*{suffixes[0]} (or {usual})")
    left_out: Counter[str] = Counter()
    files: Files = {}
    for cls, folder in folders.items():
        if known and cls not in known:
            raise DataError(f"{folder}: is no class of the training split, expected {', '.join(known)}")
        found = [(path, _kind(path, suffixes)) for path in _walk(folder)]
        files[cls] = sorted(path for path, kind in found if not kind)
        left_out.update(kind for _, kind in found if kind)
        if not files[cls]:
            kind = "pictures" if suffixes == SUFFIXES else "sound"
            raise DataError(f"{folder}: class without {kind}, expected at least one of {usual}")
    left_out.update("beside the classes" for path in _list(root) if path.is_file() and path.suffix in suffixes)
    if left_out:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        logger.warning("%s: %d files are not read (%s); read are %s", root, left_out.total(), counts, usual)
    return files


def paths_of(files: Files) -> list[Path]:
    return [path for members in files.values() for path in members]


def labels_of(files: Files, classes: tuple[str, ...]) -> np.ndarray:
    """The label of each of `paths_of(files)`."""
    return np.array([classes.index(cls) for cls, members in files.items() for _ in members], dtype=np.int64)


def _kind(path: Path, suffixes: tuple[str, ...]) -> str:
    """Why this is left out: its suffix, or that it is no file at all; "" for what is read."""
    if not path.is_file():  # a pipe or a device would be waited for
        return "that are no files"
    return "" if path.suffix.lower() in suffixes else path.suffix.lower() or "without a suffix"


def _is_split(folder: Path, suffixes: tuple[str, ...]) -> bool:
    return bool(_subfolders(folder)) and not any(path.suffix.lower() in suffixes for path in _list(folder))


def _subfolders(root: Path) -> dict[str, Path]:
    return {path.name: path for path in _list(root) if path.is_dir()}


def _list(root: Path) -> list[Path]:
    """What lies in a folder, hidden entries left out, sorted."""
    try:
        return sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as problem:
        raise DataError(f"{root}: cannot be listed ({reason(problem)}), expected a readable folder") from problem


def _walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every entry below that is no folder; links to a folder above are not followed again."""
    place = os.path.realpath(folder)
    if place in above:
        return
    for path in _list(folder):
        if path.is_dir():
            yield from _walk(path, above | {place})
        else:
            yield path
