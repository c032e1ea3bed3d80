"""Runs as tables of the paper need them, read from wherever they were stored: reproductions, comparisons, JSON records.

A record holds scores and how its set came about, not the set. Records of several machines are put together; two that
say different things of the same cell are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import DataError, counted, unreadable
from ..files import SCHEMA_VERSION
from ..learning.pool import SCHEDULES
from ..methods import METHODS
from ..networks import is_own
from ..run.paper import stored_as
from ..run.reproduce import RUNS
from ..run.score import stored_scores
from ..run.store import RunStore
from ..scores import Score
from .read import KEPT, KEPT_SET, RunRecord, is_run, joined, read_kept, read_run

#: The file in a reproduction's folder that holds all its records; a copy of it is enough for another machine.
RECORDS = "runs.json"


@dataclass(frozen=True)
class StoredRun:
    """One set, or the whole data of a reproduction: how it was made, and what its networks scored.

    Attributes:
        name: of its folder.
        source: the folder or file that it was read from, for messages.
        exact: whether a reproduction made it: its name tells which cells it is of.
        factor: or how else its samples are stored, see `stored_as`.
        made_by: its length and pool, in words.
        kept: scores of the sets on the way, by their steps.
        set_file: where the set lies, "" where only its record is here.
        recipe: as it was resolved.
    """

    name: str
    source: str
    exact: bool
    dataset: str = ""
    ipc: int | None = None
    method: str = ""
    label: str = ""
    factor: str = ""
    seed: int = 0
    steps: int | None = None
    made_by: str = ""
    recipe_hash: str = ""
    hardware: str = ""
    pool_seconds: float | None = None
    distill_seconds: float | None = None
    scores: tuple[Score, ...] = ()
    kept: dict[int, tuple[Score, ...]] = field(default_factory=dict)
    failure: str = ""
    set_file: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        return self.name.partition("-seed")[0]

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        del record["source"], record["set_file"]
        scores = [score.to_json() for score in self.scores]
        kept = {str(step): [score.to_json() for score in scores] for step, scores in self.kept.items()}
        return {**record, "scores": scores, "kept": kept}


def stored_in(place: Path) -> list[StoredRun]:
    """All runs of a reproduction's folder, of a folder of runs, or of a file of records.

    Raises:
        DataError: none of these, or a damaged file.
    """
    if (place / RUNS).is_dir():
        return _in_folders(place / RUNS, exact=True)
    for file in (place, place / RECORDS, place / "results.json"):
        if file.is_file():
            return _in_file(file)
    if place.is_dir() and any(is_run(path) for path in place.iterdir() if path.is_dir()):
        return _in_folders(place, exact=False)
    raise DataError(
        f"{place}: holds no runs; expected the --out of a reproduction, a folder of run folders, or a {RECORDS} or "
        "results.json"
    )


def records_of(runs: Iterable[StoredRun]) -> dict[str, Any]:
    """What `runs.json` holds."""
    return {"schema_version": SCHEMA_VERSION, "runs": [run.to_json() for run in runs]}


def _in_folders(folder: Path, *, exact: bool) -> list[StoredRun]:
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if is_run(path):
            found.append(_of_run(read_run(path), exact))
        elif path.name.endswith("-whole"):
            found.append(_of_whole(path))
    return found


def _of_run(record: RunRecord, exact: bool) -> StoredRun:
    store = RunStore(record.folder)
    return replace(
        _of_config(record.name, str(record.folder), record.config, record.environment, record.times),
        exact=exact,
        dataset=record.dataset,
        label=record.label,
        factor=stored_as({"factor": record.factor} if record.factor else record.config),
        recipe_hash=record.recipe_hash,
        scores=record.scores,
        kept=record.kept_scores,
        failure=record.failure,
        set_file=str(store.distilled) if record.distilled else "",
    )


def _of_whole(path: Path) -> StoredRun:
    store = RunStore(path)
    scores = stored_scores(store.scores)
    return StoredRun(
        name=path.name,
        source=str(path),
        exact=True,
        dataset=path.name.removesuffix("-whole"),
        method="whole",
        label="whole",
        made_by="the whole training split",
        hardware=joined(score.device for score in scores),
        scores=scores,
        failure=str(store.read_json(store.failure.name).get("reason", "")),
    )


def _of_config(
    name: str, source: str, config: Mapping[str, Any], environment: Mapping[str, Any], times: Mapping[str, Any]
) -> StoredRun:
    """From a resolved recipe, of any version, and what was noted of its run."""
    device = str(environment.get("device") or "")
    return StoredRun(
        name=name,
        source=source,
        exact=False,
        dataset=str(config["data"]["name"]),
        ipc=config["ipc"],
        method=config["method"]["name"],
        label=config["method"]["name"],
        factor=stored_as(config),
        seed=int(config.get("seed", 0)),
        steps=config["method"].get("steps"),
        made_by=describe_making(config),
        recipe_hash=str(environment.get("recipe_hash") or ""),
        hardware=str(environment.get("cpu") or "") if device in ("", "cpu") else device,
        pool_seconds=times.get("pool_seconds"),
        distill_seconds=times.get("distill_seconds"),
        recipe=dict(config),
    )


def describe_making(config: Mapping[str, Any]) -> str:
    """How a run stores samples where these are no tiles, its length and its pool, from its resolved recipe."""
    method, pool = config["method"], config.get("pool") or {}
    known, way = method["name"] in METHODS, config.get("parameterisation", "tiles")
    parts = [f"stored as {way}"] if way != "tiles" and known and METHODS[method["name"]].uses_factor else []
    if isinstance(method.get("steps"), int):
        parts.append(f"{method['steps']:,} steps")
    if not known or METHODS[method["name"]].needs_pool:
        members, schedule = pool.get("members"), str(pool.get("schedule"))
        epochs = pool.get("epochs") or (SCHEDULES[schedule].epochs if schedule in SCHEDULES else None)
        length = counted(epochs, "epoch") if epochs else "? epochs"
        untrained = "as given" if is_own(str(pool.get("network"))) else "untrained"
        trained = f"of {length} ({schedule})" if pool.get("pretrained", True) else untrained
        parts.append(f"{members} network{'s' * (members != 1)} {trained}")
        if snapshots := pool.get("snapshots"):
            parts[-1] += f" and their snapshots at {', '.join(f'{s:g}' for s in snapshots)}"
    if isinstance(method.get("real_batch"), int):
        parts.append(f"real batch {method['real_batch']}")
    if config.get("fidelity", "potstill") != "potstill":
        parts.append(f"fidelity {config['fidelity']}")
    return "; ".join(parts) or "no steps"


def _in_file(path: Path) -> list[StoredRun]:
    """`runs.json` of a reproduction, `results.json` of kept runs, or what `potstill evaluate --json` printed."""
    record = _read_json(path)
    try:
        if isinstance(record.get("runs"), list):
            return [_from_record(entry, str(path)) for entry in record["runs"]]
        if isinstance(record.get("runs"), dict):
            return [_of_kept(run) for run in read_kept(path)]
        scores = tuple(Score.from_json(entry) for entry in record["scores"])
        device = joined([str(record.get("device") or ""), *(score.device for score in scores)])
        recipe_hash = joined([str(record.get("recipe_hash") or ""), *(score.recipe_hash for score in scores)])
        return [StoredRun("", str(path), False, recipe_hash=recipe_hash, hardware=device, scores=scores)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: no records of runs ({what}); expected a {RECORDS} or results.json") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); expected a {RECORDS} or results.json") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(record).__name__}")
    return record


def _from_record(record: Mapping[str, Any], source: str) -> StoredRun:
    known = {key: value for key, value in record.items() if key in StoredRun.__dataclass_fields__}
    known["scores"] = tuple(Score.from_json(score) for score in record["scores"])
    known["kept"] = {int(step): tuple(map(Score.from_json, scores)) for step, scores in record["kept"].items()}
    return StoredRun(**{**known, "source": source, "set_file": _small_set(Path(source).parent, str(record["name"]))})


def _small_set(folder: Path, name: str) -> str:
    """A set in half precision beside its record."""
    path = folder / KEPT_SET.format(name)
    return str(path) if path.is_file() else ""


def _of_kept(record: RunRecord) -> StoredRun:
    folder, name = record.folder.parent, record.name
    return replace(_of_run(record, exact=False), source=str(folder / KEPT), set_file=_small_set(folder, name))


def with_further_scores(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """Records that are scores alone, joined to the run of their recipe's hash.

    Raises:
        DataError: there is no such run.
    """
    whole = [run for run in runs if run.method]
    for extra in (run for run in runs if not run.method):
        place = next((i for i, run in enumerate(whole) if run.recipe_hash == extra.recipe_hash), None)
        if place is None:
            raise DataError(
                f"{extra.source}: scores of a set of recipe {extra.recipe_hash or 'unknown'}, whose run is not here; "
                "merge its folder as well"
            )
        run = whole[place]
        scores = tuple(replace(score, device=score.device or extra.hardware) for score in extra.scores)
        whole[place] = replace(run, scores=run.scores + scores)
    return whole
