"""The folder of a run. Nothing else knows its file names; every write is aside, flushed and renamed.

config.yaml                      resolved recipe        env.json     versions, hardware, commit, command
metrics.jsonl                    one line per step      times.json   seconds and peak memory
state/snapshot.safetensors       where to go on from    state/kept/STEP.safetensors   kept sets
synthetic/initial.safetensors    before the first step  synthetic/distilled.safetensors, preview.png
scores/NETWORK-PROTOCOL-EPOCHS-SEED.json                report.html
scores/kept/STEP/NETWORK-...     of the kept sets, and of the initial one as step 0
search/asked.yaml, search/chosen.json, search/trials.json   of a run whose recipe left something open: what was asked
                                 and settled, the steps of a budget too; search/study.yaml, search/TRIAL/ the trials
stored_bits_N/distilled.safetensors, stored_bits_N/scores/NETWORK-...   the set in N bits a number, where asked for
state/shards/FIRST-LAST/         of shards of the classes until they are joined, each a run folder
cell.json                        its label in a study, the paper's value, images held out for scoring
failure.json                     why the last attempt failed; gone when the run is taken up again

Beside the runs of a comparison `full_data` holds scores/ (and failure.json) of the whole training split.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import DataError, Interrupted, PotstillError, RunError, UsageError, reason, refuse_pipes, unreadable
from ..files import SCHEMA_VERSION, expanded, sweep, write_atomically
from ..networks import identity
from ..sets.quantise import MOST_BITS
from ..sets.synthetic import SyntheticSet
from ..tensors import pack, read_tensors

log = logging.getLogger("potstill")

#: What to do about a file of a run that is damaged and cannot be made again.
_LOST = "restore it from a copy, or delete it"
#: The folder beside run folders where networks trained on the whole training split have their scores.
FULL_DATA = "full_data"
#: The first line of config.yaml: without it a recipe that lost its tail would be filled up with defaults.
_SEAL = "# the run's resolved recipe; checksum of what follows: "
_RESTORE = "restore it (keys are changed on the command line), or start anew with --overwrite"


class RunStore:
    """Sole owner of the paths below `root`; opens nothing until asked."""

    def __init__(self, root: str | Path):
        self.root = expanded(root)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def distilled(self) -> Path:
        return self.root / "synthetic" / "distilled.safetensors"

    @property
    def initial(self) -> Path:
        return self.root / "synthetic" / "initial.safetensors"

    @property
    def preview(self) -> Path:
        return self.root / "synthetic" / "preview.png"

    @property
    def snapshot(self) -> Path:
        return self.root / "state" / "snapshot.safetensors"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def search(self) -> Path:
        return self.root / "search"

    @property
    def asked(self) -> Path:
        return self.search / "asked.yaml"

    @property
    def chosen(self) -> Path:
        return self.search / "chosen.json"

    @property
    def failure(self) -> Path:
        return self.root / "failure.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            RunError: another process holds it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.root}: another process is working on this run; wait for it, or use another --out"
            ) from None
        except OSError as error:
            raise RunError(f"{self.root}: cannot make the run folder ({error.strerror}); use another --out") from error
        try:
            sweep(self.root, *(folder for folder in self.root.rglob("*") if folder.is_dir()))
            yield
        finally:
            lock.release()

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Keep why the block fails, for tables and reports; what an earlier attempt left is forgotten."""
        self.failure.unlink(missing_ok=True)
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            self.note_failure(error)
            raise

    def note_failure(self, error: Exception) -> None:
        """Keep why the last attempt failed; where in the source, if nobody foresaw it."""
        foreseen = isinstance(error, PotstillError)
        trace = getattr(error, "trace", "") if foreseen else "".join(traceback.format_exception(error))
        with suppress(PotstillError):  # a full disk has no room for the note either
            self.write_json(self.failure.name, {"reason": reason(error), "traceback": trace})

    def write_config(self, text: str) -> None:
        write_atomically(self.config, f"{_SEAL}{_checksum(text)}\n{text}")

    def read_config(self) -> str:
        """The text of config.yaml as it was written; one without a checksum is an older version's.

        Raises:
            DataError: it cannot be read, or is not what was written.
        """
        refuse_pipes(self.config)
        try:
            text = self.config.read_text(encoding="utf-8")
        except OSError as error:
            raise unreadable(self.config, error) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.config}: cannot be read ({error}); {_RESTORE}") from error
        seal, _, rest = text.partition("\n")
        unsealed = not seal.startswith(_SEAL)
        intact = "\n  fingerprint: " not in text if unsealed else seal == _SEAL + _checksum(rest)
        if not intact:
            raise DataError(f"{self.config}: damaged, or changed since the run wrote it; {_RESTORE}")
        return text

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        write_atomically(self.root / name, dump_json({"schema_version": SCHEMA_VERSION, **record}))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, {} where there is none.

        Raises:
            DataError: damaged.
        """
        path = self.root / name
        if not path.exists():
            return {}
        refuse_pipes(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: damaged JSON ({error}); {_LOST}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: damaged JSON (a {type(record).__name__}, expected values by name); {_LOST}")
        return record

    def read_number(self, name: str, key: str) -> float:
        """A number of a JSON file of the run, 0 where it is not there.

        Raises:
            DataError: damaged, or anything but a finite number that is not negative.
        """
        value = self.read_json(name).get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise DataError(f"{self.root / name}: {key} is {value!r}, expected a number from 0 on; {_LOST}")
        return float(value)

    def write_set(self, path: Path, synthetic: SyntheticSet) -> None:
        write_atomically(path, synthetic.to_bytes())

    def kept(self, step: int) -> Path:
        return self.root / "state" / "kept" / f"{step:06d}.safetensors"

    def kept_sets(self) -> dict[int, Path]:
        """Sets from before the end by their steps; the initial one is that of step 0."""
        paths = [(0, self.initial), *((int(p.stem), p) for p in self.kept(0).parent.glob("[0-9]*.safetensors"))]
        return {step: path for step, path in sorted(paths) if path.exists()}

    def kept_scores(self, step: int) -> Path:
        return self.scores / "kept" / f"{step:06d}"

    def in_few_bits(self, bits: int) -> RunStore:
        """The folder of the set with its stored numbers in `bits` bits."""
        return RunStore(self.root / f"stored_bits_{bits}")

    @property
    def distilled_in_few_bits(self) -> Path:
        """The set of a folder of `in_few_bits`."""
        return self.root / "distilled.safetensors"

    def sets_in_few_bits(self) -> list[RunStore]:
        """Those that were scored, widest numbers first."""
        places = [self.in_few_bits(bits) for bits in range(MOST_BITS, 0, -1)]
        return [place for place in places if any(place.scores.glob("*.json"))]

    def logged(self, step: int, key: str) -> float:
        """A number of a step's line in the metrics; 0 where there is none."""
        if step and self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()[step - 1 : step]:
                with suppress(ValueError, KeyError, TypeError):
                    return float(json.loads(line)[key])
        return 0.0

    def write_snapshot(self, tensors: dict[str, Tensor]) -> None:
        write_atomically(self.snapshot, pack(tensors))

    def read_snapshot(self) -> dict[str, Tensor] | None:
        """The tensors of the newest snapshot, None where there is none.

        Raises:
            DataError: damaged.
        """
        if not self.snapshot.exists():
            return None
        return read_tensors(self.snapshot, "snapshot", "use --overwrite to start anew")[0]

    def reopen(self) -> None:
        """Forget the finished set and its scores, so that the run goes on from its snapshot."""
        # The set last: while it is there, a killed process leaves work to do again and nothing that is wrong.
        rounded = self.root.glob("stored_bits_[1-8]/**/*.*")
        for path in (*self.scores.glob("*.json"), *rounded, self.preview, self.distilled):
            path.unlink(missing_ok=True)

    def take(self, other: RunStore) -> None:
        """Become a run that made the other's set: all that is of it, but no scores and no place in a study."""
        self.clear()
        facts = (other.config, other.asked, other.chosen, other.search / "trials.json", other.root / "env.json")
        state = (other.metrics, other.root / "times.json", other.snapshot, *other.kept_sets().values(), other.preview)
        for path in (*facts, *state, other.distilled):  # the set last: it says that the run is finished
            if path.exists():
                write_atomically(self.root / path.relative_to(other.root), path.read_bytes())

    def clear(self) -> None:
        """Forget everything a former run left here, other people's files excepted."""
        shutil.rmtree(self.root / "state" / "shards", ignore_errors=True)
        for path in (self.distilled, self.snapshot, self.metrics, self.initial, self.preview):
            path.unlink(missing_ok=True)
        single = ("report.html", "cell.json", "env.json", "times.json", "failure.json")
        kept = ("scores/kept/*/*.json", "state/kept/*.safetensors", "stored_bits_[1-8]/**/*.*")
        for pattern in ("scores/*.json", *kept, *single):
            for path in self.root.glob(pattern):
                path.unlink()
        # Last: were it gone and a process killed here, the rest would be taken for a run of any recipe.
        self.config.unlink(missing_ok=True)

    def require_set(self) -> SyntheticSet:
        """The finished set.

        Raises:
            UsageError: the run is not finished, or there is none.
        """
        if self.distilled.exists():
            return SyntheticSet.load(self.distilled)
        if self.config.exists():
            raise UsageError(f"{self.root}: this run is not finished; go on with potstill distill --resume {self.root}")
        raise UsageError(f"{self.root}: no run here; make one with potstill distill --out {self.root}")


def _checksum(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def score_name(network: str, protocol: str, epochs: int, seed: int) -> str:
    return f"{_file_name(identity(network))}-{protocol}-{epochs}-{seed:016x}.json"


def _file_name(network: str) -> str:
    """A network's name as part of a file's: that of a factory of one's own holds colons and slashes."""
    plain = re.sub(r"[^\w.]+", "_", network)
    return plain if plain == network else f"{plain}_{blake2b(network.encode(), digest_size=4).hexdigest()}"


class MetricsLog:
    """metrics.jsonl, open for appending; cut back on resume so that steps appear once and in order."""

    def __init__(self, path: Path, steps_done: int):
        self.path = path
        _cut_back(path, steps_done)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        self._guarded(lambda: self._file.write(json.dumps(record) + "\n"))

    def flush(self) -> None:
        """On the disk, so that a snapshot never runs ahead of its metrics."""
        self._guarded(lambda: (self._file.flush(), os.fsync(self._file.fileno())))

    def close(self) -> None:
        """Lines since the last `flush` belong to no snapshot: a full disk may lose them."""
        with suppress(OSError):
            self._file.close()

    def _guarded(self, act: Any) -> None:
        try:
            act()
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}; free some space and resume") from error


def _cut_back(path: Path, steps_done: int) -> None:
    """Leave the lines up to `steps_done`.

    What follows them is of lost steps, or the half line of a killed process. They themselves were on the disk before
    the snapshot: one that is damaged or missing was lost since.

    Raises:
        DataError: lines between the first and that of `steps_done` are damaged or missing.
    """
    refuse_pipes(path)
    records = _leading_records(path, steps_done) if steps_done else []
    if steps_done and not path.exists():
        log.warning("%s: is gone; it goes on after step %d", path, steps_done)
    elif steps_done and (
        not records or [r["step"] for r in records] != [*range(steps_done - len(records) + 1, steps_done + 1)]
    ):
        raise DataError(
            f"{path}: damaged after {len(records)} lines, steps up to {steps_done} are missing or out of order; "
            "restore it, or delete it to go on without the metrics of the steps before"
        )
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def _leading_records(path: Path, steps_done: int) -> list[dict[str, Any]]:
    """The records at the start of the file, until one is damaged or of a later step."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and type(record.get("step")) is int and record["step"] <= steps_done:
                    records.append(record)
                    continue
            break
    return records


def dump_json(record: Any) -> str:
    return json.dumps(record, indent=2, sort_keys=True) + "\n"
