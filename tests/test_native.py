"""The hand-written kernels against the plain formulas, where they are used, and what happens where there are none."""

from __future__ import annotations

import logging
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from potstill.machine import native, winograd
from potstill.machine import norm_relu_pool as kernel
from potstill.machine.compiler import find_compiler
from potstill.machine.runtime import Runtime
from potstill.networks.convnet import ConvNet, norm_relu_pool
from potstill.run.environment import environment
from potstill.seeding import generator

#: torch.compile walks into deprecated corners of torch and hides the warnings itself; as errors they would stop it.
pytestmark = pytest.mark.filterwarnings("ignore")

COMPILER = find_compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture
def loaded() -> None:
    assert COMPILER and native.load(COMPILER)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No library in this process, and an empty cache."""
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_ready", False)
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(tmp_path))
    return tmp_path


def inputs(batch: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A map whose channels differ in mean and spread, affine parameters of both signs, and a gradient."""
    stream = generator(0, "map")
    x = torch.randn(batch, channels, height, width, generator=stream)
    x = 3 * torch.randn(1, channels, 1, 1, generator=stream) + x * torch.rand(1, channels, 1, 1, generator=stream)
    weight, bias = torch.randn(channels, generator=stream), torch.randn(channels, generator=stream)
    gradient = torch.randn(batch, channels, height // 2, width // 2, generator=stream)
    return x.bfloat16(), weight, bias, gradient.bfloat16()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [(3, 128, 32, 32), (2, 128, 2, 2), (1, 256, 6, 10), (5, 128, 14, 4)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_kernel_equals_the_formula_in_value_and_every_gradient(loaded: None, shape, layout, precision) -> None:
    """bf16 keeps 8 bits: .4 % a value, so .2 % in norm; a sum over a map is fp32 and far closer.

    A map value that rounding puts on the other side of ReLU's corner would be off by its whole gradient; fp64 from the
    same bf16 map decides here, so there are few.
    """
    x, weight, bias, gradient = inputs(*shape)
    x, gradient, coarse = x.to(precision), gradient.to(precision), 1.0 if precision == torch.bfloat16 else 1e-2
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = norm_relu_pool(*exact)
    expected.backward(gradient.double())
    ours = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=layout), weight, bias)]
    found = kernel.norm_relu_pool(*ours, 1e-5)
    found.backward(gradient)
    assert found.dtype == precision and found.shape == expected.shape
    assert relative_error(found.detach(), expected.detach()) < coarse * 3e-3
    for name, a, b in zip(("map", "weight", "bias"), ours, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        assert relative_error(a.grad, b.grad) < coarse * (5e-3 if name == "map" else 2e-3), name


@needs_compiler
def test_a_large_mean_does_not_cost_precision(loaded: None) -> None:
    """Mean 1000 times the spread: sums of squares around zero would have lost everything in fp32."""
    x = (1000 + torch.randn(1, 128, 8, 8, generator=generator(0, "x")) * 4).bfloat16()
    weight, bias = torch.ones(128), torch.zeros(128)
    expected = norm_relu_pool(x.double(), weight.double(), bias.double())
    assert relative_error(kernel.norm_relu_pool(x, weight, bias, 1e-5), expected) < 3e-3


@needs_compiler
def test_registered_as_torch_demands(loaded: None) -> None:
    x, weight, bias, _ = inputs(2, 128, 4, 4)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(kernel._forward, (x, weight.requires_grad_(), bias.requires_grad_(), 1e-5))


def _calls(monkeypatch: pytest.MonkeyPatch, network: ConvNet, images: Tensor, *, autocast: bool) -> int:
    """How many blocks of a compiled network took the kernel."""
    seen: list[Tensor] = []
    plain = kernel.serves
    monkeypatch.setattr(kernel, "serves", lambda x: plain(x) and not seen.append(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.compile(network, backend="eager", dynamic=False)(images)
    torch._dynamo.reset()
    return len(seen)


@needs_compiler
@pytest.mark.parametrize(
    ("width", "side", "autocast", "calls"),
    [(128, 32, True, 3), (128, 32, False, 3), (24, 32, True, 0), (128, 14, True, 1)],
    ids=["bf16", "fp32", "narrow", "odd"],
)
def test_compiled_maps_of_even_sides_take_the_kernel(
    loaded: None, monkeypatch: pytest.MonkeyPatch, width: int, side: int, autocast: bool, calls: int
) -> None:
    network, images = ConvNet((3, side, side), 10, width=width), torch.rand(2, 3, side, side)
    assert _calls(monkeypatch, network, images, autocast=autocast) == calls


@needs_compiler
def test_nothing_takes_the_kernels_where_they_are_bypassed(loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = ConvNet((3, 8, 8), 10), torch.rand(2, 3, 8, 8)
    with native.bypassed():
        assert _calls(monkeypatch, network, images, autocast=False) == 0
    assert _calls(monkeypatch, network, images, autocast=False) == len(network.blocks)


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=["gray", "colour"])
def test_maps_come_to_the_kernel_as_it_takes_them(
    loaded: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    """Else it copies the whole map first, which costs as much as all convolutions."""
    seen: list[bool] = []
    plain = kernel.serves
    ready = partial(Tensor.is_contiguous, memory_format=torch.channels_last)
    monkeypatch.setattr(kernel, "serves", lambda x: plain(x) and not seen.append(ready(x)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.compile(ConvNet(shape, 10), backend="eager", dynamic=False)(torch.rand(2, *shape))
    torch._dynamo.reset()
    assert seen == [True] * 3


@needs_compiler
def test_a_compiled_network_of_gray_images_is_the_plain_one(loaded: None) -> None:
    """Features, and the gradients of pixels and of the first weights, which get an empty channel on the way.

    Off by .5, 11 and 6 % of their norm when this was written: bf16's rounding, as for colour.
    """
    network, images = ConvNet((1, 28, 28), 10), torch.rand(4, 1, 28, 28, generator=generator(0, "gray"))
    found, expected = [], []
    for results, precision, embed in (
        (expected, torch.float32, network.embed),
        (found, torch.bfloat16, torch.compile(network.embed, backend="eager", dynamic=False)),
    ):
        pixels = images.clone().requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            features = embed(pixels).float()
        wanted = [pixels, network.blocks[0].conv.weight]
        results += [features, *torch.autograd.grad(features.square().sum(), wanted)]
    torch._dynamo.reset()
    assert found[2].shape == (128, 1, 3, 3)
    for name, a, b, limit in zip(("features", "pixels", "weights"), found, expected, (0.01, 0.2, 0.1), strict=True):
        assert relative_error(a, b) < limit, (name, relative_error(a, b))


@needs_compiler
def test_eager_code_keeps_the_formula(loaded: None) -> None:
    """So that it stays the oracle, and twice differentiable."""
    x = inputs(1, 128, 4, 4)[0]
    assert not kernel.serves(x)
    assert native.arranged(x) is x
    doubled = x.float().requires_grad_()
    (first,) = torch.autograd.grad(
        norm_relu_pool(doubled, torch.ones(128), torch.zeros(128)).square().sum(), doubled, create_graph=True
    )
    first.square().sum().backward()
    assert doubled.grad is not None and doubled.grad.abs().sum() > 0


@needs_compiler
@pytest.mark.parametrize(
    "shape",
    [(3, 128, 16, 16), (9, 64, 8, 8), (2, 64, 18, 7), (1, 96, 4, 4)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_winograd_is_the_convolution_in_value_and_every_gradient(
    loaded: None, shape: tuple[int, int, int, int]
) -> None:
    """Against fp64. Its sums have terms some ten times as large as what comes of them, so it is coarser than fp32."""
    stream = generator(0, "winograd")
    x, weight = torch.randn(shape, generator=stream), torch.randn(80, shape[1], 3, 3, generator=stream)
    bias, gradient = torch.randn(80, generator=stream), torch.randn(shape[0], 80, *shape[2:], generator=stream)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*exact, padding=1)
    expected.backward(gradient.double())
    ours = [t.clone().requires_grad_() for t in (x, weight, bias)]
    found = winograd.convolve(*ours)
    found.backward(gradient)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(found.detach(), expected.detach()) < 1e-5
    for name, a, b in zip(("map", "weight", "bias"), ours, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        assert relative_error(a.grad, b.grad) < 1e-5, name


@needs_compiler
def test_winograd_is_registered_as_torch_demands(loaded: None) -> None:
    given = torch.randn(2, 64, 8, 8), torch.randn(64, 64, 3, 3), torch.randn(64)
    torch.library.opcheck(winograd._forward, tuple(t.requires_grad_() for t in given))


@needs_compiler
@pytest.mark.parametrize(
    ("width", "side", "autocast", "sides"),
    [
        (128, 32, False, [16, 8]),
        (128, 32, True, []),
        (32, 32, False, []),
        (64, 28, False, [14, 7]),
        (64, 10, False, []),
    ],
    ids=["fp32", "bf16", "narrow", "overhang", "more overhang"],
)
def test_compiled_fp32_convolutions_of_many_channels_go_by_winograd(
    loaded: None, monkeypatch: pytest.MonkeyPatch, width: int, side: int, autocast: bool, sides: list[int]
) -> None:
    """All but the first layer, where the map's last tiles do not hang too far over its edge, as of 5 pixels."""
    taken: list[int] = []
    plain = winograd.serves
    monkeypatch.setattr(winograd, "serves", lambda x, *rest: plain(x, *rest) and not taken.append(x.shape[-1]))
    network = ConvNet((3, side, side), 10, width=width, depth=3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.compile(network, backend="eager", dynamic=False)(torch.rand(2, 3, side, side))
    torch._dynamo.reset()
    assert taken == sides


@needs_compiler
def test_a_compiled_fp32_network_is_the_plain_one(loaded: None) -> None:
    """Features and every gradient; the compiled graph goes by both kernels.

    Gradients are off by 1e-5 of their norm, unless a map value within rounding of ReLU's corner comes to lie on its
    other side: one of them moved a gradient by .4 %.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = ConvNet((3, 32, 32), 10)
    images, found = torch.rand(4, 3, 32, 32, generator=generator(0, "fp32")), []
    for embed in (network.embed, torch.compile(network.embed, backend="aot_eager", dynamic=False)):
        pixels = images.clone().requires_grad_()
        features = embed(pixels)
        # Not the convolutions' biases: a norm follows, so their gradients are rounding and nothing else.
        used = [p for name, p in network.named_parameters() if "norm" in name or name.endswith("conv.weight")]
        found.append([features, *torch.autograd.grad(features.square().sum(), [pixels, *used])])
    torch._dynamo.reset()
    assert len(found[0]) == 2 + 3 * 3 and relative_error(found[1][0], found[0][0]) < 1e-5
    for plain, ours in zip(*found, strict=True):
        assert relative_error(ours, plain) < 0.02


@needs_compiler
def test_built_once_and_kept_in_the_cache(unloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMPILER and native.load(COMPILER)
    (library,) = (unloaded / "native").iterdir()
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("built again"))
    assert native.load(COMPILER)
    assert list((unloaded / "native").iterdir()) == [library]


@needs_compiler
@pytest.mark.parametrize("damage", ["half", "flipped bit", "empty"])
def test_a_damaged_library_is_built_again_before_it_is_loaded(
    damage: str, unloaded: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Loading half a library ends the process by a signal. The compiler is stood in for: this is about the file."""

    def build(command: list[str], **_: object) -> None:
        Path(command[-1]).write_bytes(b"a whole library")

    monkeypatch.setattr(subprocess, "run", build)
    library = native._built("g++")
    whole = library.read_bytes()
    flipped = bytes([*whole[:5], whole[5] ^ 1, *whole[6:]])
    library.write_bytes({"half": whole[: len(whole) // 2], "flipped bit": flipped, "empty": b""}[damage])
    assert native._built("g++") == library and library.read_bytes() == whole
    assert caplog.messages == [f"{library}: damaged; building it again"]


@pytest.mark.parametrize("compiler", ["false", "/nowhere/g++"])
def test_without_a_working_compiler_one_line_and_the_formula(
    unloaded: Path, caplog: pytest.LogCaptureFixture, compiler: str
) -> None:
    with caplog.at_level(logging.WARNING, "potstill"):
        assert not native.load(compiler)
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert "could not be built" in caplog.messages[0]
    assert not kernel.serves(torch.zeros(1, 128, 4, 4, dtype=torch.bfloat16))


@needs_compiler
def test_a_cache_that_cannot_be_written_costs_speed_and_not_the_run(
    unloaded: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (unloaded / "a file").write_text("")
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(unloaded / "a file"))
    assert COMPILER and not native.load(COMPILER)
    assert len(caplog.messages) == 1 and "a file" in caplog.messages[0]


@needs_compiler
def test_the_record_of_a_run_says_whether_the_kernel_served(loaded: None) -> None:
    runtime = Runtime(precision="bf16", compile=True)
    assert environment(runtime)["native_kernel"] is True
    assert environment(Runtime())["native_kernel"] is False
