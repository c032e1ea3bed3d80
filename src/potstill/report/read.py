"""Runs read back: what each says of its recipe, environment, times, losses, sets and scores.

They lie in folders, or are entries of a `results.json` (`keep`), where a set may be missing and its facts are written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..data import known_set
from ..data.records import KnownSet
from ..errors import DataError, UsageError, refuse_pipes, unreadable
from ..learning.augment import suited
from ..methods import METHODS
from ..recipe.text import from_yaml, to_yaml
from ..run.score import stored_scores
from ..run.store import FULL_DATA, RunStore
from ..scores import Score
from ..sets.parameterisations import Factor
from ..sets.synthetic import SyntheticSet
from ..spec import DatasetSpec

#: The file of runs that were kept without their folders, and the sets beside it.
KEPT, KEPT_SET = "results.json", "{}.fp16.safetensors"
#: What a run's set says of itself.
SET_FACTS: list[str] = []
R = TypeVar("R")

#: Methods that differ by their augmentation alone from another.
AUGMENTED = {"dsa": "dc", "cafe_dsa": "cafe"}


def of_the_set(say: Callable[[Any], R]) -> R:
    """A property of a run that its set says; a run that was kept without it has this among its `facts`."""
    SET_FACTS.append(name := say.__name__)
    return property(lambda run: run.facts[name] if name in run.facts else say(run), doc=say.__doc__)  # type: ignore[return-value]


@dataclass(frozen=True)
class FullData:
    """What networks scored that were trained on the whole training split: a comparison's yardstick."""

    scores: tuple[Score, ...] = ()
    failure: str = ""


@dataclass(frozen=True, eq=False)
class RunRecord:
    """All that is stored of a run. Parts that it has not come to yet are empty or None.

    Attributes:
        config, config_text: `config.yaml`, read and as written.
        environment, times: `env.json` and `times.json`.
        metrics: lines of `metrics.jsonl`.
        distilled, initial: the set, and the set before the first step.
        cell: `cell.json`, what a study says of the run.
        failure: why the last attempt failed, in one line; "" where it did not.
        kept_scores: of the sets that were kept on the way, by their steps.
        full_data: as it lies beside the run's folder.
        in_few_bits: the same run with its set in few bits a number, and that one's scores.
        facts: what the set said of itself, of a run that was kept.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any] = field(default_factory=dict)
    times: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()
    scores: tuple[Score, ...] = ()
    distilled: SyntheticSet | None = None
    initial: SyntheticSet | None = None
    cell: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    kept_scores: dict[int, tuple[Score, ...]] = field(default_factory=dict)
    full_data: FullData = FullData()
    in_few_bits: tuple[RunRecord, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def method(self) -> str:
        return self.config["method"]["name"]

    @property
    def label(self) -> str:
        """The name of the run's cell in a study; its method's where it has none."""
        return str(self.cell.get("label") or self.method)

    @property
    def ipc(self) -> int:
        return self.config["ipc"]

    @of_the_set
    def dataset(self) -> str:
        """The name in the set's spec, which is a folder's last part; before there is a set, as the recipe has it."""
        shown = self.distilled or self.initial
        return shown.spec.name if shown else self.config["data"]["name"]

    @of_the_set
    def fingerprint(self) -> str:
        """Hash of the data's content; "" before there is a set."""
        shown = self.distilled or self.initial
        return shown.spec.fingerprint if shown else ""

    @of_the_set
    def stored_as(self) -> str:
        """What the set's parameterisation says of itself; the recipe's words before there is a set."""
        return self.distilled.way.describe() if self.distilled else str(self.config.get("parameterisation", ""))

    @of_the_set
    def factor(self) -> Factor | None:
        """As in the set: `random` keeps whole images whatever the recipe says. None where no tiles are stored."""
        if self.distilled:
            return self.distilled.factor
        if self.config.get("parameterisation", "tiles") != "tiles":
            return None
        rows, columns = self.config["factor"]
        return rows, columns

    @of_the_set
    def modality(self) -> str:
        """The kind of data, "image" or "sound"; before there is a set, of a known name's, else images."""
        facts = self._facts
        return facts.modality if facts else "image"

    @property
    def same_as(self) -> str:
        """The method that this one is without augmentation, where nothing of it suits the data; else ""."""
        facts, augment = self._facts, self.config["method"].get("augment")
        return plain_method(self.method, augment, facts.modality, facts.mirror) if facts else ""

    @property
    def shown_label(self) -> str:
        """The label, and which method this one is equal to on its data."""
        return marked(self.label, self.same_as)

    @property
    def _facts(self) -> DatasetSpec | KnownSet | None:
        shown = self.distilled or self.initial
        return shown.spec if shown else known_set(str(self.config["data"]["name"]))

    @of_the_set
    def numbers_stored(self) -> int | None:
        return self.distilled.numbers_stored if self.distilled else None

    @of_the_set
    def stored_bits(self) -> int:
        """Of a stored number; before there is a set, of the fp32 ones that it will have."""
        return self.distilled.stored_bits if self.distilled else 32

    @property
    def steps_planned(self) -> int | None:
        return self.config["method"].get("steps")

    @property
    def steps_done(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def budget_minutes(self) -> float | None:
        return (self.config.get("budget") or {}).get("minutes")

    @property
    def planned(self) -> bool:
        """Whether its steps were planned for its budget, which then cuts nothing."""
        planned = (self.config.get("budget") or {}).get("planned")
        return planned is not None and planned == self.steps_planned

    @of_the_set
    def stopped(self) -> str:
        """Where a budget cut the run short, in words; "" where it did not."""
        facts = self.distilled.provenance if self.distilled else {}
        if "budget_minutes" not in facts:
            return ""
        done, planned = int(facts["steps"]), int(facts["steps_planned"])
        return f"after {done:,} of {planned:,} steps by its budget of {facts['budget_minutes']} min"

    @property
    def recipe_hash(self) -> str:
        hashes = [*(s.recipe_hash for s in self.scores), str(self.environment.get("recipe_hash") or "")]
        return joined(hashes)


def plain_method(method: str, augment: str | None, modality: str, mirror: bool) -> str:
    """The method that `method` is where none of its operations suits the data, as `dc` for `dsa` on sound; else ""."""
    if method not in AUGMENTED:
        return ""
    try:
        kept = suited(METHODS[method].Config().augment if augment is None else augment, modality, mirror=mirror)
    except UsageError:  # operations of another version
        return ""
    return "" if kept.operations else AUGMENTED[method]


def marked(name: str, same_as: str) -> str:
    """`dsa (= dc)`."""
    return f"{name} (= {same_as})" if same_as else name


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def collect(folder: str | Path) -> list[RunRecord]:
    """The run in `folder`, or all runs whose folders lie directly in it, by name; or those that were kept there.

    Raises:
        DataError: neither a run folder nor a folder of run folders, or a damaged file; the message names file and
            line.
    """
    folder = Path(folder)
    if (folder / KEPT).is_file():
        return read_kept(folder / KEPT)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a run folder or a folder of run folders")
    if is_run(folder):
        return [read_run(folder)]
    runs = sorted((path for path in folder.iterdir() if path.is_dir() and is_run(path)), key=lambda path: path.name)
    if not runs:
        raise DataError(
            f"{folder}: holds no run; expected a config.yaml here (a run folder) or in folders directly below "
            "(a collection of runs)"
        )
    return [read_run(path) for path in runs]


def read_run(folder: str | Path) -> RunRecord:
    """Read one run folder, finished or not.

    Raises:
        DataError: no `config.yaml`, or a damaged file; the message names file and line.
    """
    store = RunStore(folder)
    config, text = _read_config(store.config)
    record = RunRecord(
        folder=store.root,
        config=config,
        config_text=text,
        environment=_read_optional(store.root / "env.json"),
        times=_read_optional(store.root / "times.json"),
        metrics=_read_metrics(store.metrics),
        scores=_read_scores(store.scores),
        distilled=_load_optional(store.distilled),
        initial=_load_optional(store.initial),
        cell=_read_optional(store.root / "cell.json"),
        failure=_read_failure(store),
        kept_scores={step: _read_scores(store.kept_scores(step)) for step in store.kept_sets()},
        full_data=_read_full_data(RunStore(store.root.parent / FULL_DATA)),
    )
    return replace(record, in_few_bits=tuple(_in_few_bits(record, place) for place in store.sets_in_few_bits()))


def read_kept(path: Path) -> list[RunRecord]:
    """The runs in a `results.json`, with those of their sets that lie beside it.

    Raises:
        DataError: not such a file, or a damaged one.
    """
    record = _parse_object(_read_text(path), path)
    try:
        full_data = FullData(_scores_of(record.get("full_data_scores") or ()))
        runs = [_kept_run(path, name, run, record.get("rows") or ()) for name, run in record["runs"].items()]
        return [replace(run, full_data=full_data) for run in runs]
    except (AttributeError, KeyError, TypeError, ValueError, DataError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: no records of runs ({what}); expected what potstill report --keep writes") from error


def _kept_run(path: Path, name: str, run: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> RunRecord:
    config = _checked(run["recipe"], path)
    row = next((row for row in rows if name in row["runs"]), {})  # which told a set's facts before runs did
    facts = run.get("facts") or {fact: row[fact] for fact in SET_FACTS if row.get(fact) is not None}
    record = RunRecord(
        folder=path.parent / name,
        config=config,
        config_text=to_yaml(config),
        environment=run["environment"],
        times=run["times"],
        metrics=tuple(run["metrics_every_100"]),
        scores=_scores_of(run["scores"]),
        distilled=_load_optional(path.parent / KEPT_SET.format(name)),
        cell=run.get("cell") or {},
        failure=run.get("failure", ""),
        kept_scores={int(step): _scores_of(scores) for step, scores in (run.get("kept") or {}).items()},
        facts=_with_factor(facts),
    )
    few = [
        replace(record, facts=_with_factor(one["facts"]), scores=_scores_of(one["scores"]), failure="")
        for one in run.get("in_few_bits") or ()
    ]
    return replace(record, in_few_bits=tuple(few))


def _with_factor(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts, **({"factor": tuple(facts["factor"])} if facts.get("factor") else {})}


def _scores_of(records: Iterable[Any]) -> tuple[Score, ...]:
    return tuple(Score.from_json(record) for record in records)


def _in_few_bits(record: RunRecord, place: RunStore) -> RunRecord:
    """The run with the set and the scores in `place`; what failed, and the full data, are told once."""
    distilled = SyntheticSet.load(place.root)
    return replace(record, distilled=distilled, scores=_read_scores(place.scores), failure="", full_data=FullData())


def joined(values: Iterable[str]) -> str:
    """All there are, each once, with commas between."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def _read_text(path: Path) -> str:
    refuse_pipes(path)
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise unreadable(path, error) from error


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        raise DataError(f"{path.parent}: not a run folder; expected a config.yaml in it")
    text = _read_text(path)
    try:
        config = from_yaml(text)
    except ValueError as error:
        raise DataError(f"{path}: not valid YAML ({error}); restore the recipe that the run was made by") from error
    return _checked(config, path), text


def _checked(config: Any, path: Path) -> dict[str, Any]:
    """A recipe as rows need it, whatever the version that resolved it."""
    for keys, kind in ((("data", "name"), str), (("method", "name"), str), (("ipc",), int)):
        value = config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise DataError(f"{path}: {'.'.join(keys)} is {value!r}; expected a resolved recipe, as a run saves it")
    factor = config.setdefault("factor", [1, 1])
    if not isinstance(factor, list) or len(factor) != 2:
        raise DataError(f"{path}: factor is {factor!r}; expected two numbers, rows and columns")
    return config


def _read_optional(path: Path) -> dict[str, Any]:
    return _parse_object(_read_text(path), path) if path.is_file() else {}


def _parse_object(text: str, path: Path, line: int | None = None) -> dict[str, Any]:
    """A JSON object; `line` is given for a line of a longer file."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {line or error.lineno}: not valid JSON ({error.msg}); remove or restore it"
        ) from error
    except RecursionError:
        raise DataError(f"{path}, line {line or 1}: JSON nested too deeply; remove or restore it") from None
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {line or 1}: expected a JSON object, found {type(record).__name__}")
    return record


def _read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """Lines of numbers. What follows the last newline is what a killed run was writing: kept only if it is whole."""
    if not path.is_file():
        return ()
    *whole, rest = _read_text(path).split("\n")
    lines = [_metric(text, path, i) for i, text in enumerate(whole, start=1) if text.strip()]
    if rest.strip():
        with suppress(DataError):
            lines.append(_metric(rest, path, len(whole) + 1))
    return tuple(lines)


def _metric(text: str, path: Path, line: int) -> dict[str, Any]:
    record = _parse_object(text, path, line)
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise DataError(f"{path}, line {line}: step is {step!r}; expected a whole number")
    return record


def _read_failure(store: RunStore) -> str:
    return str(_read_optional(store.failure).get("reason", ""))


def _read_full_data(store: RunStore) -> FullData:
    return FullData(stored_scores(store.scores), _read_failure(store))


def _read_scores(folder: Path) -> tuple[Score, ...]:
    """The scores of one set."""
    scores = stored_scores(folder)
    hashes = {score.set_hash for score in scores}
    if len(hashes) > 1:
        raise DataError(
            f"{folder}: scores of {len(hashes)} different sets ({', '.join(sorted(hashes))}); one set is expected: "
            "remove the scores of the older ones"
        )
    return scores


def _load_optional(path: Path) -> SyntheticSet | None:
    return SyntheticSet.load(path) if path.is_file() else None
