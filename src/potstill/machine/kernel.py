"""The hand-written CPU kernel: instance norm, ReLU and pool of bf16 maps, which no compiler fuses well.

Only compiled graphs on a CPU use it; eager code keeps the plain formula in `networks.convnet`, which is its oracle and
which can be differentiated any number of times. It is built once per machine by the C++ compiler that torch.compile
needs anyway; where that fails, the plain formula serves everywhere, with one line saying so.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import subprocess
import tempfile
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RunError, UsageError
from ..files import default_cache, sweep, write_atomically

log = logging.getLogger("potstill")

SOURCE = Path(__file__).with_name("norm_relu_pool.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")

_kernels: ctypes.CDLL | None = None
_group = 0  # channels that the kernel takes at a time; 0 while it is not loaded


def load(compiler: str) -> bool:
    """Build (once per machine and source) and load the kernels; False, and one line, where that is impossible."""
    global _kernels, _group
    if _kernels is None:
        try:
            _kernels = _declared(ctypes.CDLL(str(_built(compiler))))
            _group = _kernels.potstill_group()
        except (OSError, RunError, UsageError, subprocess.SubprocessError) as error:  # or no cache to write to
            log.warning("the C++ kernels could not be built (%s): somewhat slower without", _first_complaint(error))
    return loaded()


def loaded() -> bool:
    """Whether compiled bf16 graphs of this process use the kernel."""
    return _kernels is not None


def arranged(images: Tensor) -> Tensor:
    """`images` in the memory layout the kernels and the convolutions around them like, where they will be used.

    Images of one channel get an empty second: with one, both layouts have the same strides, the convolution takes them
    for channels first, and its whole map would have to be turned around, forward and backward.
    """
    usable = _group and images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not (usable and torch.compiler.is_compiling()):
        return images
    if images.shape[1] == 1:
        images = F.pad(images, (0, 0, 0, 0, 0, 1))
    return images.contiguous(memory_format=torch.channels_last)


def serves(x: Tensor) -> bool:
    """Whether the kernel takes this map `(B, C, H, W)`: bf16 in a compiled CPU graph, even sides, C in whole groups."""
    if not (_group and torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.bfloat16):
        return False
    return x.shape[1] % _group == 0 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0


def norm_relu_pool(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The kernel's `(B, C, H // 2, W // 2)` of a map that it `serves`; differentiable once."""
    return _forward(x, weight, bias, eps)[0]


@torch.library.custom_op("potstill::norm_relu_pool", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    assert _kernels is not None
    x, weight, bias = x.contiguous(memory_format=torch.channels_last), weight.contiguous(), bias.contiguous()
    pooled, mean, scale = _empty_results(x)
    _kernels.potstill_forward(*_pointers(x, weight, bias, pooled, mean, scale), *_sizes(x), eps)
    return pooled, mean, scale


@torch.library.custom_op("potstill::norm_relu_pool_backward", mutates_args=())
def _backward(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    assert _kernels is not None
    x, gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    weight, bias = weight.contiguous(), bias.contiguous()
    to_map, to_weight, to_bias = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    results = (to_map, to_weight, to_bias)
    _kernels.potstill_backward(*_pointers(x, gradient, weight, bias, mean, scale, *results), *_sizes(x))
    return results


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(x)


@_backward.register_fake
def _(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    to_map = torch.empty_like(x, memory_format=torch.channels_last)
    return to_map, torch.empty_like(mean), torch.empty_like(mean)


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1], output[2])


def _differentiate(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, *rest = ctx.saved_tensors
    to_map, to_weight, to_bias = _backward(x, gradient, *rest)
    return to_map, to_weight.sum(0), to_bias.sum(0), None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _empty_results(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    pooled = torch.empty(
        batch, channels, height // 2, width // 2, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    mean = torch.empty(batch, channels, device=x.device)
    return pooled, mean, torch.empty_like(mean)


def _pointers(*tensors: Tensor) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, height, width, channels


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.potstill_group.restype = size
    library.potstill_forward.argtypes = [pointer] * 6 + [size] * 4 + [ctypes.c_float]
    library.potstill_backward.argtypes = [pointer] * 9 + [size] * 4
    return library


def _built(compiler: str) -> Path:
    """The shared library in the cache, named by all that it depends on and by what it holds."""
    key = "\n".join([SOURCE.read_text(), compiler, *FLAGS, platform.machine(), _cpu_features()])
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
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(target)]
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
