"""torch.compile and its surroundings: the C++ compiler, the place of compiled code, mending what a kill left there."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import UsageError
from ..files import default_cache
from .compiled_code import mend

log = logging.getLogger("potstill")

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` through torch.compile, with static shapes and as one graph."""
    from torch._functorch import config  # not above: the compiler takes seconds to import

    # The backward graph too within the call, where it can be mended; autograd would compile it far from here.
    config.force_non_lazy_backward_lowering = True
    return _mending(torch.compile(function, dynamic=False, fullgraph=True))  # type: ignore[return-value]


def count_graphs() -> int:
    """How many graphs this process has compiled, or found compiled, so far."""
    known = sys.modules.get("torch._dynamo.utils")  # importing it would take seconds, and there are none before
    return int(known.counters["stats"]["unique_graphs"]) if known else 0


def find_compiler() -> str | None:
    """Path of a C++ compiler, `CXX` first; None where there is none."""
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


def keep_compiled_code() -> None:
    """In the cache folder, for the next run; before the compiler is imported, which then settles its own place."""
    with suppress(OSError, UsageError):  # no cache that can be written: torch's own place, in the temporary folder
        folder = default_cache() / "inductor"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
            mend(folder)


def _mending(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, which makes anew what a run killed while compiling left half written in the cache."""
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported  # not above: the compiler takes seconds to import

    @wraps(compiled)
    def call(*given: Any, **keys: Any) -> Any:
        removed: set[Path] = set()
        while True:
            try:
                return compiled(*given, **keys)
            except BackendCompilerFailed as error:
                torn = _unloadable_library(error)
                if torn is None or torn in removed:
                    raise
                log.warning("%s: left half written by a run that was stopped; compiling it again", torn)
                torn.unlink(missing_ok=True)
                removed.add(torn)
            except Unsupported as error:  # code of the user's: all of ours compiles
                line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
                raise UsageError(f"torch.compile does not take a network ({line}): add --compile false") from error

    return call


def _unloadable_library(error: Exception) -> Path | None:
    """The library of the compiler's cache that could not be loaded, if that is what `error` tells."""
    named = re.search(r"ImportError: (/\S+\.so): ", str(error))
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # set by us or, once imported, by the compiler
    if not named or not cache:
        return None
    # Nothing outside is ours to remove: a system's library may be unloadable too.
    return Path(named[1]) if Path(named[1]).is_relative_to(Path(cache).absolute()) else None
