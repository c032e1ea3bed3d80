"""The hand-written CPU kernels: built once per machine by the C++ compiler that torch.compile needs anyway.

Only compiled graphs on a CPU use them; eager code keeps the plain formulas in `networks`, which are their oracle and
which can be differentiated any number of times. Where they cannot be built the plain formulas serve everywhere, with
one line saying so.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RunError, UsageError
from ..files import default_cache, sweep, write_atomically

log = logging.getLogger("potstill")

SOURCES = tuple(Path(__file__).with_name(f"{name}.cpp") for name in ("norm_relu_pool", "winograd"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-Wno-psabi", "-shared", "-fPIC", "-fopenmp")

_library: ctypes.CDLL | None = None
_group = 0  # as a number, which compiled graphs can read
_ready = False  # loaded and not bypassed: what compiled graphs ask, and are compiled anew for where it changes


def load(compiler: str) -> bool:
    """Build (once per machine and source) and load the kernels; False, and one line, where that is impossible."""
    global _library, _ready, _group
    if _library is None:
        try:
            _library = _declared(ctypes.CDLL(str(_built(compiler))))
            _ready, _group = True, _library.norm_relu_pool_group()
        except (OSError, RunError, UsageError, subprocess.SubprocessError) as error:  # or no cache to write to
            log.warning("the C++ kernels could not be built (%s): somewhat slower without", _first_complaint(error))
    return loaded()


def loaded() -> bool:
    """Whether compiled CPU graphs of this process use the kernels."""
    return _library is not None


def library() -> ctypes.CDLL:
    assert _library is not None, "a graph that calls a kernel was compiled with it"
    return _library


@contextmanager
def bypassed() -> Iterator[None]:
    """Compiled graphs by the plain formulas alone, which unlike the kernels can be differentiated twice."""
    global _ready
    before, _ready = _ready, False
    try:
        yield
    finally:
        _ready = before


def group() -> int:
    """Channels that norm_relu_pool takes at a time, in vector registers."""
    return _group


def usable(x: Tensor) -> bool:
    """Whether a kernel may take `x`: in a compiled CPU graph."""
    return _ready and torch.compiler.is_compiling() and x.device.type == "cpu"


def arranged(images: Tensor) -> Tensor:
    """`images` in the memory layout the kernels and the convolutions around them like, where they will be used.

    Images of one channel get an empty second: with one, both layouts have the same strides, the convolution takes them
    for channels first, and its whole map would have to be turned around, forward and backward.
    """
    if not usable(images) or images.dtype == torch.float64:
        return images
    if images.shape[1] == 1:
        images = F.pad(images, (0, 0, 0, 0, 0, 1))
    return images.contiguous(memory_format=torch.channels_last)


def channels_last(*maps: Tensor) -> list[Tensor]:
    return [x.contiguous(memory_format=torch.channels_last) for x in maps]


def pointers(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Of a map `(B, C, H, W)`, in the order of its memory."""
    batch, channels, height, width = x.shape
    return batch, height, width, channels


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for precision in ("bf16", "fp32"):
        getattr(library, f"norm_relu_pool_{precision}").argtypes = [pointer] * 6 + [size] * 4 + [ctypes.c_float]
        getattr(library, f"norm_relu_pool_backward_{precision}").argtypes = [pointer] * 9 + [size] * 4
    library.norm_relu_pool_group.restype = size
    library.winograd_from_map.argtypes = library.winograd_from_gradient.argtypes = [pointer] * 2 + [size] * 4
    library.winograd_to_map.argtypes = [pointer] * 3 + [size] * 4
    return library


def _built(compiler: str) -> Path:
    """The shared library in the cache, named by all that it depends on and by what it holds."""
    texts = [source.read_text() for source in SOURCES]
    key = "\n".join([*texts, compiler, *FLAGS, platform.machine(), _cpu_features()])
    folder, stem = default_cache() / "native", _digest(key.encode())
    sweep(folder)
    for path in folder.glob(f"{stem}-*.so"):
        if path.name == f"{stem}-{_digest(path.read_bytes())}.so":
            return path
        log.warning("%s: damaged; building it again", path)  # loading it could end the process
        with suppress(OSError):
            path.unlink()
    with tempfile.TemporaryDirectory() as building:
        target = Path(building) / "kernels.so"
        command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        library = target.read_bytes()
    path = folder / f"{stem}-{_digest(library)}.so"
    write_atomically(path, library)
    return path


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=12).hexdigest()


def _cpu_features() -> str:
    """What -march=native depends on: a cache may be shared by machines of different kinds."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    return next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])


def _first_complaint(error: Exception) -> str:
    """The first line of what the compiler said, or of the error itself."""
    text = getattr(error, "stderr", None) or str(error)
    return text.strip().splitlines()[0]
