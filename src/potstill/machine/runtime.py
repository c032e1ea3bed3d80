"""Where and how the numbers are computed: device, precision, threads, chunk size, compiled or not.

One `Runtime` is resolved at the start of a run, printed in one line and recorded in `env.json`; nothing below
decides again. Eager fp32 stays available everywhere and is the oracle that the compiled bf16 path is tested against.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import UsageError, counted
from . import compiler, native
from .allocator import keep_freed_memory
from .capture import Captured

log = logging.getLogger("potstill")

F = TypeVar("F", bound=Callable[..., Any])

#: Compiling costs some ten to thirty seconds a graph: as much as it saves on 5,000 images. Below this many network
#: passes (images), eight graphs' worth, a run is over sooner without it.
COMPILE_PAYS_FROM = 40_000
#: Pixels of a network pass at most. On a CPU twice as many gained 2 to 10 % more, but were tried on one kind only.
CPU_CHUNK_PIXELS, GPU_CHUNK_PIXELS = 128 * 32 * 32, 1024 * 32 * 32
#: Of a map of 128 channels in bf16. The largest map fills a CPU's last cache at most (docs/performance.md has chunk
#: sizes measured), or a 32nd of a GPU's memory, which holds all maps of a pass for its gradient. Eight images go
#: together always.
MAP_BYTES_PER_PIXEL = 128 * 2


@dataclass(frozen=True)
class Runtime:
    """The choices of one run. Build it with `resolve`; the default is the plain oracle.

    Attributes:
        device: "cpu", "cuda", "cuda:1" or "mps".
        precision: "fp32", or "bf16" for autocast in the network passes (losses and statistics stay fp32).
        threads: threads of one process on a CPU.
        compile: whether network passes and augmentation go through torch.compile.
        chunk: images per network pass at most.
    """

    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    compile: bool = False
    chunk: int = 16

    @classmethod
    def resolve(
        cls,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | str = "auto",
        compile: bool | str = "auto",
        chunk: int | str = "auto",
        passes: int = 0,
        side: int = 32,
    ) -> Runtime:
        """Settle every "auto" for this machine and job.

        Args:
            passes: network passes (images) the job will make; decides whether compiling pays.
            side: image side; small images are not worth compiling or bf16 for.
        Raises:
            UsageError: a value that this machine or torch cannot serve.
        """
        device = _resolve_device(device)
        small = passes * side * side < COMPILE_PAYS_FROM * 32 * 32
        return cls(
            device=device,
            precision=_resolve_precision(precision, device, small),
            threads=_resolve_threads(threads),
            compile=_resolve_compile(compile, device, small),
            chunk=_resolve_chunk(chunk, device, side),
        )

    def start(self) -> None:
        """Make the process-wide settings: threads, precision, memory, kernels, how many graphs the compiler keeps."""
        if self.compile:
            compiler.keep_compiled_code()
        torch.set_num_threads(self.threads)
        _keep_fp32_whole()
        # One graph per network, chunk and augmentation op; the default of 8 would silently fall back to eager.
        torch._dynamo.config.recompile_limit = 64
        if self.device == "cpu":
            keep_freed_memory()
            if self.compile and (path := compiler.find_compiler()):
                native.load(path)

    def chunk_of(self, count: int) -> int:
        """Images in a pass when `count` are to go through in passes of one size: compiled graphs have static shapes.

        At most `chunk`, and as few as the same number of passes allows, so that little is computed for nothing: 400
        images are 13 passes of 31 rather than of 32. A multiple of the threads, where it can be: they share a pass
        evenly.
        """
        passes = math.ceil(count / self.chunk)
        even = math.ceil(count / passes / self.threads) * self.threads
        return min(even, self.chunk, count)

    def compiled(self, function: F) -> F:
        """`function` through torch.compile with static shapes, or itself where compiling is off."""
        if not self.compile:
            return function
        return compiler.compiled(function)

    def captured(self, function: F) -> F:
        """`function` replayed as one graph where a GPU can, see `capture.Captured`; what it returns does not last."""
        if not self.compile or not self.device.startswith("cuda"):
            return function
        return Captured(function)  # type: ignore[return-value]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of network passes; statistics and losses must stay outside."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def describe(self) -> str:
        mode = "compiled" if self.compile else "eager"
        threads = counted(self.threads, "thread")
        return f"runtime: {self.device}, {self.precision}, {mode}, {threads}, chunks of {self.chunk} images"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _resolve_device(device: str) -> str:
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"device={device!r}: use auto, cpu, cuda, cuda:N or mps") from None
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device={device!r}: use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={device!r}: this torch sees no CUDA device; use --device cpu")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={device!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device={device!r}: this torch sees no MPS device; use --device cpu")
    return device


def has_bf16(device: str) -> bool:
    """Whether bf16 matrix products run in hardware, so that autocast pays."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return bool(capable())
    return False


def _resolve_precision(precision: str, device: str, small: bool) -> str:
    if precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision={precision!r}: use auto, fp32 or bf16")
    if precision != "auto":
        return precision
    return "bf16" if has_bf16(device) and not small else "fp32"


def _resolve_threads(threads: int | str) -> int:
    if threads == "auto":
        return usable_threads()
    if not str(threads).isdecimal() or int(threads) < 1:
        raise UsageError(f"threads={threads}: use auto or at least 1")
    return int(threads)


def usable_threads() -> int:
    """What this process may use: OMP_NUM_THREADS where it is set, else its cores."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return int(limit) if limit.isdigit() and int(limit) > 0 else len(usable_cores())


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def _resolve_chunk(chunk: int | str, device: str, side: int) -> int:
    if chunk == "auto":
        return max(8, 2 ** round(math.log2(max(1, _chunk_pixels(device) / side**2))))
    if not str(chunk).isdecimal() or int(chunk) < 1:
        raise UsageError(f"runtime.chunk={chunk}: use auto or at least 1 image per pass")
    return int(chunk)


def _chunk_pixels(device: str) -> float:
    if device == "cpu":
        cache = last_cache_bytes()
        return min(CPU_CHUNK_PIXELS, cache / MAP_BYTES_PER_PIXEL) if cache else CPU_CHUNK_PIXELS
    if device.startswith("cuda"):
        memory = torch.cuda.get_device_properties(device).total_memory
        return min(GPU_CHUNK_PIXELS, memory / 32 / MAP_BYTES_PER_PIXEL)
    return GPU_CHUNK_PIXELS


def last_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int | None:
    """The size of the first core's largest cache as Linux tells it (`32768K`); None where it does not."""
    sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
    return max((int(size[:-1]) * 1024 for size in sizes if size[:-1].isdigit() and size.endswith("K")), default=None)


def _keep_fp32_whole() -> None:
    """No TF32, which a GPU would take for fp32 convolutions and products: the oracle and all statistics are fp32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores.* not enabled")  # the compiler's advice


@cache
def _warn_once(text: str) -> None:
    log.warning(text)


def _resolve_compile(compile: bool | str, device: str, small: bool) -> bool:
    if compile not in ("auto", True, False):
        raise UsageError(f"compile={compile!r}: use auto, true or false")
    wanted = (not small) if compile == "auto" else bool(compile)
    if wanted and not compiler.find_compiler():  # also what is compiled for a GPU is called from C++
        _warn_once("no C++ compiler (g++ or clang++) found: running eagerly, several times slower")
        return False
    return wanted
