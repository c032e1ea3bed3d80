"""Modules by the names they had before they moved into rooms: each still imports, with a line that says the new one."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

#: Old name -> new name, both below `potstill`.
MOVED = {
    "augment": "learning.augment",
    "compiler": "machine.compiler",
    "config": "recipe",
    "extractor": "learning.extractor",
    "memory": "machine.allocator",
    "native": "machine.native",
    "objectives": "matching.features",
    "pool": "learning.pool",
    "run.scoring": "run.score",
    "run.stages": "run.distil",
    "runtime": "machine.runtime",
    "statistics": "matching.statistics",
    "synthetic": "sets.synthetic",
    "training": "learning.fit",
}


class OldNames(MetaPathFinder, Loader):
    """Asked last, for names that no file has."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == "potstill" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"potstill.{MOVED[module.__name__.removeprefix('potstill.')]}"
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


sys.meta_path.append(OldNames())
