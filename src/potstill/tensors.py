"""Files of named tensors: safetensors with a checksum, written when a file is made and verified wherever it is read.

The format itself notices a file cut short, but no flipped bit: numbers would be wrong without a word.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from .errors import DataError, refuse_out_of_memory, refuse_pipes, unreadable

#: Where the checksum lies among the facts of a file.
CHECKSUM = "checksum"

Tensors = dict[str, Tensor]
Facts = dict[str, str]


def pack(tensors: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of `tensors`, with `facts` and their common checksum as its metadata.

    The same content gives the same bytes: `safetensors` alone orders the metadata anew each time.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(facts or {}))
    header, start = _header(content)
    found = _checksum(header, memoryview(content)[start:])
    header["__metadata__"] = {**header.get("__metadata__", {}), CHECKSUM: found}
    return _encoded(header) + content[start:]


def checksum(content: bytes) -> str:
    """The hash of what a file holds, its own checksum aside: 24 hexadecimal digits."""
    header, start = _header(content)
    return _checksum(header, memoryview(content)[start:])


def read_tensors(path: Path, what: str, remedy: str) -> tuple[Tensors, Facts]:
    """The tensors and facts of a file. One without a checksum, from elsewhere or an older version, is taken as it is.

    Args:
        what: the file is, and `remedy`: what to do where it is damaged, for the message.
    Raises:
        DataError: missing, not such a file, or any bit of it is another than was written.
    """
    refuse_pipes(path)
    try:
        content = path.read_bytes()
        facts = _verified(content)
        return dict(sorted(load(content).items())), facts
    except Exception as error:  # safetensors raises its own type, and damaged headers fail in many ways
        raise _damaged(path, what, error, remedy) from error


def map_tensors(path: Path, what: str, remedy: str) -> tuple[Tensors, Facts]:
    """`read_tensors`, in memory that belongs to the file: the system can drop it at need."""
    refuse_pipes(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            facts = _verified(content)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118  (not a dict)
    except Exception as error:
        raise _damaged(path, what, error, remedy) from error


def _verified(content: bytes | mmap.mmap) -> Facts:
    """The facts in `content`, once its checksum, where it has one, is found right."""
    header, start = _header(content)
    facts = header.get("__metadata__", {})
    if not isinstance(facts, dict) or not all(isinstance(fact, str) for fact in facts.values()):
        raise ValueError("its metadata is not text by name")
    with memoryview(content) as whole, whole[start:] as data:
        if CHECKSUM in facts and facts[CHECKSUM] != _checksum(header, data):
            raise ValueError("its checksum is wrong: the file was changed after it was written")
    return {name: fact for name, fact in facts.items() if name != CHECKSUM}


def _header(content: bytes | mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data start."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        raise ValueError(f"{len(content):,} bytes, cut short or no safetensors file")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("no safetensors file")
    return header, 8 + length


def _checksum(header: dict[str, Any], data: memoryview) -> str:
    """Of the file with this header, without its checksum, and these data."""
    facts = header.get("__metadata__", {})
    bare = {**header, "__metadata__": {name: fact for name, fact in facts.items() if name != CHECKSUM}}
    found = blake2b(_encoded(bare), digest_size=12)
    found.update(data)
    return found.hexdigest()


def _encoded(header: dict[str, Any]) -> bytes:
    """The header in front of the data, its keys in order."""
    header = header if header.get("__metadata__") else {k: v for k, v in header.items() if k != "__metadata__"}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data
    return len(text).to_bytes(8, "little") + text


def _damaged(path: Path, what: str, error: Exception, remedy: str) -> DataError:
    refuse_out_of_memory(error, str(path))
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return unreadable(path, error)
    reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
    return DataError(f"{path}: damaged {what} ({reason}); {remedy}")
