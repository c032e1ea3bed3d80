"""potstill distils a labelled data set into a tiny synthetic one on which networks train almost as well.

data = potstill.load_dataset("cifar10")
run = potstill.distill(data, method="dsdm", ipc=10)
print(potstill.evaluate(run.synthetic, data.test, nets=5))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._moved import MOVED

if TYPE_CHECKING:
    from .data import load_dataset
    from .errors import DataError, Interrupted, MissingExtra, PotstillError, RunError, UsageError
    from .networks import Frozen
    from .run.api import Run, distill
    from .run.score import evaluate
    from .scores import Scores
    from .sets.export import export
    from .sets.read import read_set
    from .sets.synthetic import SyntheticSet
    from .spec import DatasetSpec, LabelledDataset, Split

#: Public name -> module. Resolved on first use, so that `potstill --help` does not wait for torch.
_PUBLIC = {
    "load_dataset": "data",
    "distill": "run.api",
    "Run": "run.api",
    "Frozen": "networks",
    "evaluate": "run.score",
    "Scores": "scores",
    "SyntheticSet": "sets.synthetic",
    "export": "sets.export",
    "read_set": "sets.read",
    "DatasetSpec": "spec",
    "LabelledDataset": "spec",
    "Split": "spec",
    "PotstillError": "errors",
    "UsageError": "errors",
    "DataError": "errors",
    "RunError": "errors",
    "MissingExtra": "errors",
    "Interrupted": "errors",
}
__all__ = [
    "DataError",
    "DatasetSpec",
    "Frozen",
    "Interrupted",
    "LabelledDataset",
    "MissingExtra",
    "PotstillError",
    "Run",
    "RunError",
    "Scores",
    "Split",
    "SyntheticSet",
    "UsageError",
    "distill",
    "evaluate",
    "export",
    "load_dataset",
    "read_set",
]


def __getattr__(name: str) -> Any:
    if name in MOVED:
        return import_module(f"{__name__}.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
