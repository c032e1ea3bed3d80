"""Compiled code between processes: kept, found again, and mended where a killed run left it half written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch._inductor.exc import InductorError

from potstill.machine.compiler import _mending

COMPILES = """
import torch
from potstill.machine.runtime import Runtime

runtime = Runtime(compile=True)
runtime.start()
from torch._dynamo.utils import counters  # after `start`, which is to come before the compiler

print(runtime.compiled(lambda x: (x * 2).relu().sum())(torch.ones(3)).item())
found = counters["inductor"]
print(found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], torch._inductor.runtime.cache_dir_utils.cache_dir())
"""


@pytest.mark.slow
def test_compiled_code_is_kept_between_processes_and_mended_after_a_kill(tmp_path: Path) -> None:
    chosen = {"POTSTILL_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": ""}
    surroundings = {key: value for key, value in {**os.environ, **chosen}.items() if value}

    def compile_once() -> tuple[list[str], str]:
        done = subprocess.run(
            [sys.executable, "-c", COMPILES], env=surroundings, capture_output=True, text=True, check=True
        )
        return done.stdout.split(), done.stderr

    folder = str(tmp_path / "inductor")
    assert compile_once()[0] == ["6.0", "0", "1", folder]
    assert compile_once()[0] == ["6.0", "1", "0", folder]
    (library,) = tmp_path.glob("inductor/**/*.main.so")
    library.write_bytes(library.read_bytes()[:100])
    answer, said = compile_once()
    assert answer[0] == "6.0"
    assert f"{library}: left half written by a run that was stopped; compiling it again" in said
    assert library.stat().st_size > 1000


def failing(reason: Exception, calls: list[Exception]) -> Callable[[], None]:
    def fails() -> None:
        calls.append(reason)
        raise InductorError(reason, None)

    return _mending(fails)


def test_other_errors_of_the_compiler_are_passed_on() -> None:
    calls: list[Exception] = []
    with pytest.raises(InductorError, match="no room"):
        failing(RuntimeError("no room"), calls)()
    assert len(calls) == 1


@pytest.mark.parametrize(("place", "tries"), [("cache", 2), ("system", 1)])
def test_only_libraries_of_the_cache_are_removed(
    place: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stays unloadable is made anew once; one that lies elsewhere is nobody's to remove."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    library, calls = tmp_path / place / "x.so", []
    library.parent.mkdir()
    library.write_bytes(b"")
    with pytest.raises(InductorError, match="file too short"):
        failing(ImportError(f"{library}: file too short"), calls)()
    assert len(calls) == tries
    assert library.exists() == (place == "system")
