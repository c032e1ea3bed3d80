"""Compiled code between processes: kept, found again, and mended where a killed run left it half written."""

from __future__ import annotations

import _multiprocessing
import base64
import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch._inductor.exc import InductorError

from potstill.errors import UsageError
from potstill.machine.compiled_code import mend
from potstill.machine.compiler import _mending, compiled

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
    assert f"{folder}: 1 files left half written by a run that was stopped; compiling them again" in said
    assert library.stat().st_size > 1000


DAMAGES = """
import os
from pathlib import Path

import torch
from potstill.machine.runtime import Runtime

runtime = Runtime(compile=True)
runtime.start()
for library in Path(os.environ["POTSTILL_CACHE_DIR"]).rglob("*.main.so"):
    library.write_bytes(b"")
x = torch.ones(3, requires_grad=True)
runtime.compiled(lambda x: (x * 2).square().sum())(x).backward()
print(x.grad.tolist())
"""


@pytest.mark.slow
def test_libraries_damaged_after_the_start_are_compiled_again_that_of_the_backward_graph_too(tmp_path: Path) -> None:
    """As another process leaves them that is killed while it links what this one needs as well."""
    surroundings = {**os.environ, "POTSTILL_CACHE_DIR": str(tmp_path)}
    surroundings.pop("TORCHINDUCTOR_CACHE_DIR", None)
    for mended in (0, 2):
        done = subprocess.run(
            [sys.executable, "-c", DAMAGES], env=surroundings, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[8.0, 8.0, 8.0]"
        assert done.stderr.count("left half written by a run that was stopped; compiling it again") == mended


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


# --- what a killed run leaves in the folder of compiled code


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A real library under a name of torch's, with its source."""
    path = tmp_path / "ab" / "cabc.main.so"
    path.parent.mkdir()
    path.write_bytes(Path(_multiprocessing.__file__).read_bytes())
    path.with_suffix(".cpp").write_text("int main")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="ELF files alone are looked into")
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_library_cut_anywhere_is_removed_with_its_source(library: Path, share: float, tmp_path: Path) -> None:
    """Loading one may end the process by a signal."""
    mend(tmp_path)
    assert library.exists() and library.with_suffix(".cpp").exists()
    content = library.read_bytes()
    library.write_bytes(content[: int(len(content) * share)])
    mend(tmp_path)
    assert not library.exists() and not library.with_suffix(".cpp").exists()


def test_a_library_whose_header_is_not_yet_written_is_removed(library: Path, tmp_path: Path) -> None:
    """Linkers write it last, over zeros."""
    library.write_bytes(bytes(64) + library.read_bytes()[64:])
    mend(tmp_path)
    assert library.exists() == (sys.platform != "linux")


def test_a_library_that_another_process_links_is_left_to_it(library: Path, tmp_path: Path) -> None:
    library.write_bytes(b"")
    (tmp_path / "locks").mkdir()
    with FileLock(tmp_path / "locks" / "cabc.lock"):
        mend(tmp_path)
        assert library.exists()
    mend(tmp_path)
    assert not library.exists()


def test_code_and_records_that_were_cut_are_removed_and_whole_ones_stay(tmp_path: Path) -> None:
    code = "def call(args):\n    return args\n"
    text = "c" + base64.b32encode(hashlib.sha256(code.strip().encode()).digest()).decode().lower()[:51]
    files = {
        tmp_path / "x" / f"{text}.py": code.encode(),
        tmp_path / "fxgraph" / "ab" / "key" / "entry": pickle.dumps({"graph": code}),
        tmp_path / "aotautograd" / "key" / "entry": pickle.dumps([code]),
    }
    foreign = {tmp_path / "x" / "notes.py": b"print(", tmp_path / "notes": b"abc", tmp_path / "x" / "a.cpp": b""}
    for path, content in {**files, **foreign}.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    mend(tmp_path)
    assert all(path.exists() for path in {**files, **foreign})
    for path, content in files.items():
        path.write_bytes(content[: len(content) // 2])
    mend(tmp_path)
    assert not any(path.exists() for path in files) and all(path.exists() for path in foreign)


def test_files_written_aside_by_killed_compilers_are_removed_once_they_are_a_minute_old(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".12.34.tmp", tmp_path / ".56.78.tmp"
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 120,) * 2)
    mend(tmp_path)
    assert not old.exists() and fresh.exists()


def test_code_that_cannot_be_compiled_is_refused_in_one_line_with_the_remedy() -> None:
    """A network of the user's own, as all of ours compiles."""

    def branching(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(
        UsageError, match=r"torch.compile does not take a network \(.+\): add --compile false"
    ) as refused:
        compiled(branching)(torch.zeros(2))
    assert "\n" not in str(refused.value)
