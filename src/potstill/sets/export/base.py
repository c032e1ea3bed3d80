"""What an export is: a pure function from a set to bytes. Leaves the disk to `publish`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...registry import Registry
from ..synthetic import SyntheticSet

logger = logging.getLogger("potstill")

#: One file, or a folder as its files by their path in it, "/" between parts.
Content = bytes | dict[str, bytes]


@dataclass(frozen=True)
class Form:
    """One way to write a set.

    Attributes:
        content: from a set, and facts that it does not know itself, to what is to be written.
        suffixes: of the file, the usual one first; none for a folder.
    """

    content: Callable[[SyntheticSet, Mapping[str, Any]], Content]
    suffixes: tuple[str, ...] = ()

    def named(self, destination: Path) -> Path:
        """The destination with the form's suffix, by which `read_set` knows it again.

        Raises:
            UsageError: a folder's name where a file's is needed.
        """
        if self.suffixes and destination.name in ("", ".."):
            raise UsageError(f"{destination}: is a folder: name a file in it, with suffix {self.suffixes[0]}")
        if not self.suffixes or destination.suffix in self.suffixes:
            return destination
        return destination.with_name(destination.name + self.suffixes[0])


EXPORTS: Registry[Form] = Registry("export form")
