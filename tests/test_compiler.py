"""Compiled code between processes: kept, found again, and mended where a killed run left it half written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch._inductor.exc import InductorError

from potstill.compiler import _mending

COMPILES = """
import torch
from potstill.runtime import Runtime

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


def test_other_errors_of_the_compiler_are_passed_on() -> None:
    calls = []

    def fails(reason: Exception) -> None:
        calls.append(reason)
        raise InductorError(reason, None)

    for reason in (RuntimeError("no room"), ImportError("/nowhere/x.so: file too short")):
        with pytest.raises(InductorError, match=str(reason)):
            _mending(fails)(reason)
    assert len(calls) == 1 + 2  # a library that stays unloadable is made anew once
