"""The C library's allocator: told to keep freed memory while maps come and go, and to hand it back between runs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable


def keep_freed_memory() -> None:
    """Let the C library keep freed maps for the next chunk: handed back, each would be paged in again, page by page."""
    if mallopt := _glibc("mallopt"):
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def return_freed_memory() -> None:
    """Hand back what `keep_freed_memory` made the C library keep."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where it has no such one (it is not glibc)."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
