"""The folder of a run: one process at a time, whole files or none, and metrics that never run ahead of a snapshot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from potstill.errors import DataError, PotstillError, RunError, UsageError
from potstill.files import ASIDE
from potstill.run.store import MetricsLog, RunStore
from potstill.scores import Score
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset
from potstill.tensors import map_tensors


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


def toy_set(data: LabelledDataset) -> SyntheticSet:
    return SyntheticSet(torch.full((3, 1, 1, 8, 8), 0.5), data.spec)


def lines(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


# --- the lock


def test_a_run_held_by_another_process_is_refused(store: RunStore) -> None:
    store.root.mkdir()
    code = """if 1:
        import sys, filelock
        lock = filelock.FileLock(sys.argv[1])
        with lock:
            print("held", flush=True)
            sys.stdin.read()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is working on this run; wait for it"), store.locked():
            pass
        other.kill()
    with store.locked():  # a dead process holds nothing
        pass


def test_the_lock_is_given_back_after_a_failure(store: RunStore) -> None:
    with pytest.raises(ZeroDivisionError), store.locked():
        raise ZeroDivisionError
    with FileLock(store.root / ".lock", timeout=0):
        pass


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = RunStore(tmp_path / "file" / "run")
    with pytest.raises(RunError, match=r"file/run: cannot make the run folder \(Not a directory\)"), below.locked():
        pass


# --- files


def test_a_snapshot_reads_back_every_tensor_exactly(store: RunStore, seeded: torch.Generator) -> None:
    tensors = {
        "step": torch.tensor(7),
        "images": torch.rand(3, 2, 1, 8, 8, generator=seeded),
        "memory": torch.empty(0, 3, 2),  # what an optimiser without memory keeps
        "updates": torch.tensor([1, 2]),
    }
    store.write_snapshot(tensors)
    again = store.read_snapshot()
    assert again is not None and again.keys() == tensors.keys()
    assert all(again[k].dtype == v.dtype and torch.equal(again[k], v) for k, v in tensors.items())


def test_there_is_no_snapshot_before_the_first(store: RunStore) -> None:
    assert store.read_snapshot() is None


def test_a_damaged_snapshot_is_one_clear_line_with_the_remedy(store: RunStore) -> None:
    store.write_snapshot({"step": torch.tensor(1)})
    store.snapshot.write_bytes(store.snapshot.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"damaged snapshot .*use --overwrite to start anew"):
        store.read_snapshot()


def test_json_carries_its_schema_and_reads_back(store: RunStore) -> None:
    assert store.read_json("times.json") == {}
    store.write_json("times.json", {"seconds": 1.5})
    assert store.read_json("times.json") == {"schema_version": 1, "seconds": 1.5}
    (store.root / "times.json").write_text('{"seconds": ')
    with pytest.raises(DataError, match=r"times\.json: damaged JSON"):
        store.read_json("times.json")


def test_nothing_but_the_named_files_is_left_in_the_folder(store: RunStore, toy_dataset: LabelledDataset) -> None:
    """Files written aside are renamed or removed, never forgotten."""
    store.write_snapshot({"step": torch.tensor(1)})
    store.write_snapshot({"step": torch.tensor(2)})
    store.write_set(store.distilled, toy_set(toy_dataset))
    found = sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file())
    assert found == ["state/snapshot.safetensors", "synthetic/distilled.safetensors"]


def test_the_same_set_is_written_as_the_same_bytes(store: RunStore, toy_dataset: LabelledDataset) -> None:
    facts = {"method": "dsdm", "seed": "0", "recipe_hash": "abc"}
    written = set()
    for _ in range(10):
        store.write_set(store.distilled, SyntheticSet(torch.zeros(3, 1, 1, 8, 8), toy_dataset.spec, provenance=facts))
        written.add(store.distilled.read_bytes())
    assert len(written) == 1


def test_asking_for_a_set_says_whether_there_is_no_run_or_an_unfinished_one(store: RunStore) -> None:
    with pytest.raises(UsageError, match="no run here; make one with potstill distill --out"):
        store.require_set()
    store.write_config("ipc: 1\n")
    with pytest.raises(UsageError, match="not finished; go on with potstill distill --resume"):
        store.require_set()


def test_clearing_forgets_the_run_and_keeps_other_peoples_files(store: RunStore, toy_dataset: LabelledDataset) -> None:
    fill(store, toy_dataset)
    mine = [store.root / "notes.txt", store.root / "state" / "mine.safetensors"]
    for path in mine:
        path.write_text("mine")
    store.clear()
    assert sorted(p for p in store.root.rglob("*") if p.is_file()) == sorted(mine)


def test_a_clearing_that_is_killed_leaves_no_orphans_without_their_recipe(
    store: RunStore, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without config.yaml, a set or snapshot left behind would be taken for a run of whatever recipe comes next."""
    fill(store, toy_dataset)
    unlink = Path.unlink
    for allowed in range(20):
        left = [allowed]

        def counted(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", counted)
            try:
                store.clear()
            except KeyboardInterrupt:
                pass
            else:
                break
        assert store.config.exists() or not (store.distilled.exists() or store.snapshot.exists())
    assert allowed > 5 and not store.config.exists()


def fill(store: RunStore, data: LabelledDataset) -> None:
    store.write_config("ipc: 1\n")
    store.write_snapshot({"step": torch.tensor(3)})
    for path in (store.distilled, store.initial, store.kept(2)):
        store.write_set(path, toy_set(data))
    for name in ("env.json", "times.json", "failure.json", "scores/convnet-dsdm-1-0.json", "scores/kept/000002/x.json"):
        store.write_json(name, {})
    store.metrics.write_text("{}\n")
    for path in (store.preview, store.root / "report.html"):
        path.write_text("x")


# --- metrics


def test_metrics_are_cut_back_to_the_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in range(1, 8)))
    log = MetricsLog(path, 4)
    log.append({"step": 5, "loss": 2.0})
    log.close()
    assert lines(path) == [1, 2, 3, 4, 5]
    assert json.loads(path.read_text().splitlines()[4])["loss"] == 2.0


@pytest.mark.parametrize("half", ['{"step": 5, "lo', '{"st', "\x00\x00\x00", '{"loss": 1}', "[1]", "5"])
def test_a_half_written_last_line_is_dropped(half: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3}\n{"step": 4}\n' + half)
    log = MetricsLog(path, 4)
    log.append({"step": 5})
    log.close()
    assert lines(path) == [3, 4, 5]


def test_a_line_torn_inside_a_character_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 3}\n{"note": "\xc3')
    MetricsLog(path, 3).close()
    assert lines(path) == [3]


@pytest.mark.parametrize(
    "content",
    ["", '{"step": 1}\n{"st\n{"step": 3}\n', '{"step": 1}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n', "[1]\n" * 3],
    ids=["empty", "damaged line", "lost line", "cut", "foreign"],
)
def test_lines_that_were_lost_are_said_and_not_passed_over(content: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"metrics.jsonl: damaged after \d lines.*restore it, or delete it to go on"):
        MetricsLog(path, 3)
    assert path.read_text() == content


def test_deleted_metrics_are_said_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for done in (3, 4):  # and again after the next snapshot
        log = MetricsLog(tmp_path / "metrics.jsonl", done)
        log.append({"step": done + 1, "seconds": 2.5})
        log.close()
    assert lines(tmp_path / "metrics.jsonl") == [4, 5]
    assert len(caplog.messages) == 1 and "is gone; it goes on after step 3" in caplog.messages[0]


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1'])
def test_json_that_is_damaged_or_foreign_is_one_line(content: bytes, store: RunStore) -> None:
    store.root.mkdir()
    (store.root / "times.json").write_bytes(content)
    with pytest.raises(DataError, match=r"times\.json: damaged JSON .*restore it from a copy, or delete it"):
        store.read_json("times.json")


@pytest.mark.parametrize("value", ['"long"', "null", "[]", "-1", "NaN", "Infinity", "true"])
def test_a_number_that_cannot_be_is_one_line(value: str, store: RunStore) -> None:
    assert store.read_number("times.json", "seconds") == 0
    store.root.mkdir()
    (store.root / "times.json").write_text(f'{{"seconds": {value}}}')
    with pytest.raises(DataError, match=r"times\.json: seconds is .*expected a number from 0 on"):
        store.read_number("times.json", "seconds")


def test_a_folder_in_place_of_json_is_one_line(store: RunStore) -> None:
    (store.root / "times.json").mkdir(parents=True)
    with pytest.raises(DataError, match=r"times\.json: cannot be read \(Is a directory\); check the file and its"):
        store.read_json("times.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_pipes_in_place_of_a_runs_files_are_not_waited_for(store: RunStore, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for name in ("config.yaml", "times.json", "state/snapshot.safetensors", "metrics.jsonl"):
        (store.root / name).parent.mkdir(parents=True, exist_ok=True)
        (store.root / name).hardlink_to(pipe)
    reads = [
        store.read_config,
        lambda: store.read_json("times.json"),
        store.read_snapshot,
        lambda: MetricsLog(store.metrics, 3),
        lambda: Score.read(pipe),
        lambda: map_tensors(pipe, "thing", "make it again"),
    ]
    for read in reads:
        with pytest.raises(DataError, match="is a pipe or a device, expected a file"):
            read()


def test_taking_up_a_run_sweeps_what_killed_writes_left_in_its_folders(store: RunStore) -> None:
    left = [store.root / "state" / f".snapshot.safetensors.x{ASIDE}", store.root / f".env.json.y{ASIDE}"]
    left[0].parent.mkdir(parents=True)
    for path in left:
        path.touch()
    with store.locked():
        assert not any(path.exists() for path in left)


def test_a_run_from_the_start_begins_with_empty_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    MetricsLog(path, 0).close()
    assert path.read_text() == ""


def test_flushed_metrics_are_on_the_disk_while_the_log_is_open(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.append({"step": 1})
    log.flush()
    assert lines(log.path) == [1]
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics_is_a_run_error_and_closes_quietly(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.close()
    log._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    log.append({"step": 1})
    with pytest.raises(PotstillError, match=r"cannot write .*metrics\.jsonl: No space left on device.*resume"):
        log.flush()
    log.close()
    assert log._file.closed
