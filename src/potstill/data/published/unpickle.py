"""Reads old pickles of byte arrays without running anything they ask for.

A pickle may name any function and have it called. Here every name is answered with a stand-in that only keeps what
it is given: numpy's three names for arrays get one, any other name is refused. No numpy function is called by the
file; arrays are built afterwards, from bytes of the right length.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, refuse_out_of_memory
from ..records import reason

_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}


class _Type:
    """Stands in for numpy.dtype. Both stand-ins take their state themselves: so a file cannot set attributes."""

    def __init__(self, code: Any, *_: Any):
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and alignment mean nothing for single bytes


class _Array:
    """Stands in for numpy's `_reconstruct`, which makes an empty array to be filled by its state."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def build(self) -> np.ndarray:
        _, shape, dtype, is_fortran, values = self.state
        if dtype.code not in ("u1", "|u1") or is_fortran or len(values) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of type {dtype.code} and shape {shape} with {len(values)} bytes")
        return np.frombuffer(values, np.uint8).reshape(shape)


class _ForeignName(Exception):
    """The pickle asked for something other than an array."""


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in _RECONSTRUCT:
            return _Array
        if (module_name, global_name) == ("numpy", "dtype"):
            return _Type
        if (module_name, global_name) == ("numpy", "ndarray"):
            return "ndarray"  # only ever an argument of _reconstruct
        raise _ForeignName(f"{module_name}.{global_name}")


def read_arrays(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain containers and uint8 arrays (Python 2 or 3), keys as str.

    Raises:
        DataError: the file is damaged, asks for anything but arrays, or is no dictionary.
    """
    try:
        content = _Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"a {type(content).__name__}, not a dictionary")
        return {
            key.decode("latin1") if isinstance(key, bytes) else str(key): _built(value)
            for key, value in content.items()
        }
    except _ForeignName as foreign:
        raise DataError(
            f"{path}: asks for {foreign}, expected nothing but uint8 arrays: refused, as a pickle can run any code; "
            "fetch the published file"
        ) from None
    except Exception as problem:  # a damaged pickle fails in any way: it is a program that lost its end
        refuse_out_of_memory(problem, str(path))
        raise DataError(
            f"{path}: is no readable pickle ({reason(problem)}), expected a dictionary of arrays"
        ) from problem


def _built(value: Any) -> Any:
    return value.build() if isinstance(value, _Array) else value
