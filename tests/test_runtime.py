"""How every "auto" is settled, what is refused, and what the one line says."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from potstill.errors import UsageError
from potstill.machine import runtime as module
from potstill.machine.runtime import Runtime, has_bf16, last_cache_bytes

LONG = {"passes": 10_000_000}
MB = 2**20


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator, bf16 in hardware, a compiler, a large cache, three usable cores and no limit on them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(module, "has_bf16", lambda device: device != "mps")
    monkeypatch.setattr(module, "last_cache_bytes", lambda: 64 * MB)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 5}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    module._warn_once.cache_clear()


def test_a_long_job_on_a_cpu_is_compiled_in_bf16() -> None:
    expected = Runtime(device="cpu", precision="bf16", threads=3, compile=True, chunk=128)
    assert Runtime.resolve(**LONG) == expected


def test_a_short_job_is_the_plain_oracle() -> None:
    """Compiling takes longer than 40,000 passes of 32x32 images do."""
    assert Runtime.resolve(passes=39_999, threads=1) == Runtime(chunk=128)
    assert Runtime.resolve(passes=40_000).compile
    assert Runtime.resolve(passes=40_000).precision == "bf16"


def test_small_images_count_for_less() -> None:
    """A 16x16 image is a quarter of the work."""
    assert not Runtime.resolve(passes=159_999, side=16).compile
    assert Runtime.resolve(passes=160_000, side=16).compile


def test_no_hardware_bf16_means_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda device: False)
    assert Runtime.resolve(**LONG).precision == "fp32"
    assert Runtime.resolve(**LONG, precision="bf16").precision == "bf16"


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_hardware_only(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported, raising=False)
    asked = {}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **keys: asked.update(keys) or supported)
    assert has_bf16("cpu") is has_bf16("cuda:1") is supported
    assert asked == {"including_emulation": False}
    assert not has_bf16("mps")


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_fastest_device_is_taken(cuda: bool, mps: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert Runtime.resolve().device == device
    assert Runtime.resolve(device="cpu").device == "cpu"


@pytest.mark.parametrize(("side", "chunk"), [(32, 128), (28, 128), (16, 512), (8, 2048), (64, 32), (224, 8)])
@pytest.mark.parametrize("cache", [None, 32 * MB, 300 * MB])
def test_chunks_on_a_cpu_follow_the_image_side(
    cache: int | None, side: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power of two near 128 images of 32x32 in pixels, but never below 8."""
    monkeypatch.setattr(module, "last_cache_bytes", lambda: cache)
    assert Runtime.resolve(device="cpu", side=side).chunk == chunk


@pytest.mark.parametrize(("cache", "chunk"), [(16 * MB, 64), (8 * MB, 32), (1 * MB, 8)])
def test_chunks_are_smaller_where_the_last_cache_is(cache: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of 64 images of 32x32, 128 channels and two bytes, is 16 MB."""
    monkeypatch.setattr(module, "last_cache_bytes", lambda: cache)
    assert Runtime.resolve(device="cpu", side=32).chunk == chunk


@pytest.mark.parametrize(
    ("count", "chunk", "threads", "expected"),
    [(400, 32, 1, 31), (400, 32, 2, 32), (400, 31, 2, 31), (64, 32, 1, 32), (5, 32, 4, 5), (33, 32, 1, 17)],
)
def test_passes_are_as_even_as_their_number_allows(count: int, chunk: int, threads: int, expected: int) -> None:
    assert Runtime(chunk=chunk, threads=threads).chunk_of(count) == expected


def test_the_last_cache_is_the_largest_that_the_system_tells_of(tmp_path: Path) -> None:
    assert last_cache_bytes(tmp_path) is None
    for i, text in enumerate(["32K\n", "1024K\n", "16384K\n", "\n"]):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(text)
    assert last_cache_bytes(tmp_path) == 16 * MB


@pytest.mark.parametrize(
    ("gigabytes", "side", "chunk"), [(80, 32, 1024), (80, 64, 256), (8, 32, 1024), (4, 32, 512), (0.01, 32, 8)]
)
def test_chunks_on_a_gpu_are_large_where_its_memory_is(
    gigabytes: float, side: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of 512 images of 32x32, 128 channels and two bytes, is 128 MB: a 32nd of 4 GB."""
    memory = SimpleNamespace(total_memory=gigabytes * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert Runtime.resolve(side=side).chunk == chunk


@pytest.mark.parametrize(("limit", "threads"), [("2", 2), ("", 3), ("0", 3), ("many", 3)])
def test_threads_follow_the_usual_limit_else_the_usable_cores(
    limit: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert Runtime.resolve().threads == threads
    assert Runtime.resolve(threads=5).threads == 5


def test_chosen_values_are_kept() -> None:
    chosen = Runtime.resolve(device="cpu", precision="fp32", threads="2", compile=False, chunk="7", **LONG)
    assert chosen == Runtime("cpu", "fp32", 2, False, 7)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"device": "gpu"}, "device='gpu': use auto, cpu, cuda"),
        ({"device": "meta"}, "device='meta': use auto, cpu, cuda"),
        ({"device": "cuda:1"}, "device='cuda:1': this torch sees no CUDA device; use --device cpu"),
        ({"device": "mps"}, "device='mps': this torch sees no MPS device; use --device cpu"),
        ({"precision": "fp16"}, "precision='fp16': use auto, fp32 or bf16"),
        ({"threads": 0}, "threads=0: use auto or at least 1"),
        ({"threads": "all"}, "threads=all: use auto or at least 1"),
        ({"chunk": -8}, "chunk=-8: use auto or at least 1"),
        ({"chunk": "big"}, "chunk=big: use auto or at least 1"),
        ({"compile": "yes"}, "compile='yes': use auto, true or false"),
    ],
)
def test_wrong_values_are_refused_by_name(keys: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Runtime.resolve(**keys)


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Runtime.resolve(device="cuda:1").device == "cuda:1"
    with pytest.raises(UsageError, match="device='cuda:2': there are 2 CUDA devices, counted from 0"):
        Runtime.resolve(device="cuda:2")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("wanted", ["auto", True])
def test_without_a_compiler_one_warning_and_eager(
    wanted: bool | str, device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING, "potstill"):
        resolved = Runtime.resolve(compile=wanted, device=device, **LONG)
        Runtime.resolve(compile=wanted, device=device, **LONG)
    assert not resolved.compile
    assert resolved.compiled(len) is len
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert "no C++ compiler" in caplog.messages[0]


def test_no_warning_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    Runtime.resolve()
    Runtime.resolve(compile=False, **LONG)
    assert not caplog.messages


@pytest.mark.parametrize("present", ["clang++", "my-g++"])
def test_any_of_the_usual_compilers_will_do(present: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "my-g++")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == present else None)
    assert Runtime.resolve(compile=True).compile


def test_the_choices_are_said_in_one_line() -> None:
    assert Runtime().describe() == "runtime: cpu, fp32, eager, 1 thread, chunks of 16 images"
    assert (
        Runtime("cuda:1", "bf16", 4, True, 512).describe()
        == "runtime: cuda:1, bf16, compiled, 4 threads, chunks of 512 images"
    )


def test_the_record_is_complete() -> None:
    chosen = Runtime("cpu", "bf16", 2, True, 7)
    assert Runtime(**chosen.to_json()) == chosen


def test_autocast_reaches_products_in_bf16_only() -> None:
    x = torch.ones(2, 2)
    with Runtime().autocast():
        assert (x @ x).dtype == torch.float32
    with Runtime(precision="bf16").autocast():
        assert (x @ x).dtype == torch.bfloat16


@pytest.fixture
def process_settings() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    limit = torch._dynamo.config.recompile_limit
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch._dynamo.config.recompile_limit = limit


def test_start_makes_the_settings_of_the_process(process_settings: None) -> None:
    Runtime(threads=2, precision="bf16").start()
    assert torch.get_num_threads() == 2
    assert torch.get_float32_matmul_precision() == "highest"  # of the statistics, which autocast leaves in fp32
    assert not torch.backends.cudnn.allow_tf32
    assert torch._dynamo.config.recompile_limit >= 64
    Runtime().start()
    assert torch.get_num_threads() == 1
    assert torch.get_float32_matmul_precision() == "highest"
