"""Writing aside and renaming: the old content or the new, never a part, and nothing left over."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import potstill
from potstill import files
from potstill.errors import DataError, RunError, UsageError
from potstill.files import write_atomically
from potstill.run.store import RunStore


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(
    "content", [b"\x00new\xff", "new ✓", b"", b"x" * 300_000], ids=["bytes", "text", "empty", "long"]
)
def test_content_is_replaced_whole(content: bytes | str, target: Path) -> None:
    write_atomically(target, content)
    assert target.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(target.parent) == ["state.bin"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "new.txt", "x")
    assert (tmp_path / "a" / "b" / "new.txt").read_text() == "x"


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("blow", [KeyboardInterrupt, OSError(errno.EIO, "Input/output error")], ids=["stop", "fault"])
def test_write_cut_off_before_the_rename_leaves_the_old_content_alone(
    function: str, blow, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise blow

    monkeypatch.setattr(os, function, fail)
    with pytest.raises((KeyboardInterrupt, RunError)):
        write_atomically(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["state.bin"]


def test_content_is_on_the_disk_before_the_rename(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming first would leave an empty file after a power cut; the folder is flushed last to keep the rename."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        calls.append("flush folder" if is_folder else f"flush {os.fstat(handle).st_size} bytes")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write_atomically(target, b"12345")
    assert calls == ["flush 5 bytes", "rename", "flush folder"]


@pytest.mark.parametrize("at", ["write", "fsync"])
def test_full_disk_is_a_run_error_with_the_remedy(at: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    class FullFile:
        """What os.fdopen gives, on a disk that takes nothing."""

        def __init__(self, handle: int, mode: str):
            self.file = open(handle, mode)  # noqa: SIM115

        def __enter__(self) -> FullFile:
            return self

        def __exit__(self, *reason: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            raise full

    def fail(handle: int) -> None:
        raise full

    monkeypatch.setattr(os, *(("fdopen", FullFile) if at == "write" else ("fsync", fail)))
    with pytest.raises(RunError, match=r"cannot write .*state.bin: No space left on device; free some space") as caught:
        write_atomically(target, b"new")
    assert caught.value.exit_code == 1
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["state.bin"]


def test_folder_that_cannot_be_made_is_a_run_error(target: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*: (Not a directory|File exists); check the folder"):
        write_atomically(target / "below a file" / "x", b"new")


def test_temporary_file_lies_hidden_beside_its_target(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming across file systems would fail; visible names would be taken for results."""
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, to: (seen.append(Path(source)), replace(source, to)))
    write_atomically(target, b"new")
    assert seen[0].parent == target.parent
    assert seen[0].name.startswith(".state.bin.")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "shared.bin", b"x")
        assert stat.S_IMODE((tmp_path / "shared.bin").stat().st_mode) == mode
        assert files._umask() == umask  # asking for it leaves it as it is
    finally:
        os.umask(before)


# --- what killed processes leave


def killed_while_writing(path: Path) -> None:
    code = """if 1:
        import os, signal, sys
        from pathlib import Path
        from potstill.files import write_atomically

        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(Path(sys.argv[1]), b"half a thing")
    """
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="files are held by flock")
def test_files_of_killed_writes_are_swept_and_those_of_live_ones_stay(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_while_writing(target)
    (left,) = (path for path in target.parent.iterdir() if path != target)
    mine = target.parent / ".state.bin.notes"
    mine.write_text("a user's")
    replace = os.replace

    def sweep_meanwhile(source: str, to: Path) -> None:
        files.sweep(target.parent, target.parent / "missing")
        assert os.path.exists(source) and not left.exists()
        replace(source, to)

    monkeypatch.setattr(os, "replace", sweep_meanwhile)
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new" and names(target.parent) == [".state.bin.notes", "state.bin"]


def test_a_file_swept_before_it_is_held_is_made_again(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and holding it, another process may take it for one that a killed process left."""
    made, make = [], tempfile.mkstemp

    def make_and_lose(**given: object) -> tuple[int, str]:
        handle, name = make(**given)  # type: ignore[call-overload]
        made.append(name)
        if len(made) == 1:
            os.unlink(name)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", make_and_lose)
    write_atomically(target, b"new")
    assert len(made) == 2 and target.read_bytes() == b"new" and names(target.parent) == ["state.bin"]


# --- the cache folder


def test_a_cache_that_is_a_file_is_refused_with_the_remedy(target: Path) -> None:
    for cache in (target, target / "below"):
        with pytest.raises(RunError, match=r"the cache cannot be written \(.*\); name a folder .*--cache-dir"):
            files.require_writable(cache)


def test_trying_a_cache_leaves_nothing_there(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "cache")
    assert names(tmp_path) == ["cache"] and names(tmp_path / "cache") == []


def test_without_a_home_the_remedy_is_named_and_a_chosen_folder_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("POTSTILL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match=r"no home; name a folder .* POTSTILL_CACHE_DIR or --cache-dir"):
        files.default_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert files.default_cache() == Path("/caches/potstill")
    monkeypatch.setenv("POTSTILL_CACHE_DIR", "/mine")
    assert files.default_cache() == Path("/mine")


def test_a_home_is_written_as_a_tilde_anywhere_and_one_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POTSTILL_CACHE_DIR", "~/cache")
    assert files.default_cache() == tmp_path / "cache"
    assert RunStore("~/run").root == tmp_path / "run"
    with pytest.raises(UsageError, match="~nobody-here/run: there is no such home"):
        files.expanded("~nobody-here/run")


def test_data_of_ones_own_need_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose user has no entry: only what lies in the home would need one."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "POTSTILL_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert potstill.load_dataset(tmp_path / "mine.npz").spec.num_classes == 2
    with pytest.raises(DataError, match=r"mnist: .*looked in ~/\.cache/potstill/data"):
        potstill.load_dataset("mnist")


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_what_is_no_path_is_refused_and_not_taken_for_the_current_folder(path: str) -> None:
    with pytest.raises(UsageError, match="is no path; name a file or folder"):
        files.expanded(path)
