"""What a run ran on, for env.json: enough to judge a number and to repeat it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
import torch

from ..machine import native
from ..machine.allocator import return_freed_memory
from ..machine.runtime import Runtime

try:
    import resource
except ImportError:  # Windows
    resource = None


def environment(runtime: Runtime) -> dict[str, Any]:
    """Versions, hardware, the runtime's choices, the source's commit and the command."""
    return {
        "potstill": _version(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        **runtime.to_json(),
        "device": device_name(runtime),
        "runtime": runtime.describe(),
        "native_kernel": native.loaded() and runtime.compile and runtime.device == "cpu",
        "command": command(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


_COMMANDS = ("potstill", "__main__")


def command() -> str:
    """The command line of this process, "" where Python code called."""
    return shlex.join(["potstill", *sys.argv[1:]]) if Path(sys.argv[0]).stem in _COMMANDS else ""


def device_name(runtime: Runtime) -> str:
    return torch.cuda.get_device_name(runtime.device) if runtime.device.startswith("cuda") else cpu_name()


def forget_peak_memory() -> None:
    """Count `peak_memory_mb` from now on, where the system can (Linux, CUDA): one process may run several methods."""
    return_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> int:
    """The process's largest resident memory since it started or forgot, and the GPU's where one is used.

    Without the resident part where the system does not tell it (Windows).
    """
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0
    resident //= 1024 * 1024 if sys.platform == "darwin" else 1024
    on_gpu = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0
    return int(resident + on_gpu)


@lru_cache
def cpu_name() -> str:
    """The processor's own name, with the matrix instructions that decide bf16 speed."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    return f"{name or platform.machine()} ({', '.join(flags)})" if flags else name or platform.machine()


@lru_cache
def commit() -> str:
    """The commit of the source tree this package runs from, "-dirty" appended where it has changes.

    Elsewhere (installed, or copied to a machine without git) what POTSTILL_COMMIT says, or "".
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return f"{head}-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else head
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("POTSTILL_COMMIT", "")


def _version() -> str:
    try:
        return version("potstill")
    except PackageNotFoundError:
        return "uninstalled"
