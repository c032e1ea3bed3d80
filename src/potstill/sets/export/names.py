"""Class names where they must differ, or must be names of folders."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MOST_BYTES = 200  # file systems allow 255; leaves room for what keeps names apart

# Names of devices on Windows, with any suffix.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def distinct(names: Iterable[str], *, ignore_case: bool = False) -> tuple[str, ...]:
    """The names, where one occurred before with its label appended."""
    taken: set[str] = set()
    result = []
    for label, name in enumerate(names):
        while (name.casefold() if ignore_case else name) in taken:
            name = f"{name}_{label}"
        taken.add(name.casefold() if ignore_case else name)
        result.append(name)
    return tuple(result)


def folder_names(classes: Iterable[str]) -> tuple[str, ...]:
    """One folder name per class: allowed on every common file system, and different even where case is ignored."""
    return distinct((_folder_name(name) for name in classes), ignore_case=True)


def _folder_name(name: str) -> str:
    name = re.sub(r"[^\w .,()+&=-]", "_", unicodedata.normalize("NFC", name))
    name = name.encode()[:MOST_BYTES].decode(errors="ignore").strip(" ")
    name = re.sub(r"^\.|\.$", "_", name)  # hidden folders are not read, and Windows drops a dot at the end
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name
