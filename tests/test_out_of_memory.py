"""A reader that runs out of memory says so: the file is not damaged, and another copy may not help."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import potstill
from potstill import tensors
from potstill.data.published import unpickle
from potstill.errors import RunError
from potstill.networks import build_network
from potstill.spec import DatasetSpec, LabelledDataset

Read = Callable[[], Any]


def pt(path: Path, spec: DatasetSpec) -> Read:
    torch.save([1], path)
    return partial(potstill.read_set, path, spec)


def npz(path: Path, spec: DatasetSpec) -> Read:
    np.savez(path, x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.zeros(4, int))
    return partial(potstill.load_dataset, path)


def picture(path: Path, spec: DatasetSpec) -> Read:
    (path / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(path / "a" / "1.png")
    return partial(potstill.load_dataset, path)


def safetensors(path: Path, spec: DatasetSpec) -> Read:
    path.write_bytes(tensors.pack({"x": torch.zeros(3)}))
    return partial(tensors.read_tensors, path, "set", "take another copy")


def pickle(path: Path, spec: DatasetSpec) -> Read:
    path.write_bytes(b"")
    return partial(unpickle.read_arrays, path)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 96 bytes."), "96 bytes"),
        (MemoryError("Unable to allocate 3.73 GiB for an array"), "3.73 GiB"),
        (OSError(12, "Cannot allocate memory"), ""),
    ],
    ids=["torch", "numpy", "system"],
)
@pytest.mark.parametrize(
    ("prepare", "fails"),
    [
        (pt, "torch.load"),
        (npz, "numpy.lib.format.read_array"),
        (picture, "PIL.Image.Image.convert"),
        (safetensors, "potstill.tensors.load"),
        (pickle, "potstill.data.published.unpickle._Reader"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_reader_tells_a_lack_of_memory_from_damage(
    prepare: Callable[[Path, DatasetSpec], Read],
    fails: str,
    error: Exception,
    asked: str,
    toy_dataset: LabelledDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / f"x.{prepare.__name__}"
    read = prepare(path, toy_dataset.spec)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(fails, fail)
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}.*: out of memory.*{asked}.*free some memory"):
        read()


def test_a_network_of_ones_own_that_fills_the_memory_is_no_wrong_network(
    tmp_path: Path, toy_dataset: LabelledDataset
) -> None:
    (tmp_path / "big.py").write_text("def make(shape, classes):\n    raise MemoryError\n")
    with pytest.raises(RunError, match=r"big\.py:make': out of memory; free"):
        build_network(f"{tmp_path}/big.py:make", toy_dataset.spec, 0)
