"""The table rows that runs give. Computes means of stored scores, never a score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from ..run.store import FULL_DATA
from ..scores import Score, Scores, counts_text
from ..sets.parameterisations import Factor
from .read import RunRecord, joined, marked

#: The rows that a gain is counted from; the first keeps whole images, the second is the undistilled mosaic.
RANDOM_METHODS = ("random", "random_mix")
#: What the row of networks trained on the whole training split is called.
FULL_DATA_ROW = "full data"


@dataclass(frozen=True)
class Row:
    """One line of a results table: a method under one network, protocol and number of epochs, or the full data.

    Attributes:
        ipc, factor: budget of a class in images, and (rows, columns) of tiles; None for the full data, and factor for
            what is stored otherwise: `stored_as` says how.
        network, protocol, epochs: None where nothing has been evaluated yet.
        mean: accuracy at the last epoch over all networks, a share 0..1.
        std: sample standard deviation over all networks; None for one.
        std_sets: of the sets' means; None for one set.
        std_nets: over networks within a set, pooled; None where no set has two.
        nets_per_set: networks that each set was scored by.
        numbers_stored, bytes_stored: per set; bytes as the scores have them, None in those of older versions.
        pool_seconds: the longest of the runs (later ones found the pool made); distill_seconds: mean over runs.
        peak_memory_mb: of the process while distilling, the most over runs.
        gain: `mean` less the better Random row's, a share; None for Random itself and where there is no such row.
        device, commit: of the evaluations; like recipe_hash they list all there are, separated by commas.
        share: `mean` as a share of the full data's, under the same network and protocol; None where that is unknown.
        steps_done: the fewest of the runs; steps_planned: of each, None for a method without steps.
        budget_minutes: what distilling was limited to.
        stopped: where a budget cut runs short, "" where none did.
        failure: why runs failed, "" where none did; both with the seed in front where the row is of several runs.
        runs: names of the folders.
        label: the cell of a study, the method's name elsewhere; paper: what was published for it, in percent.
        holdout: training samples that were held out and scored on, in place of the test split; 0 for that.
        modality: of the data, "image" or "sound".
        stored_bits: of a stored number; None for the full data.
        same_as: the method that this one is without augmentation, where nothing of it suits the data; "" elsewhere.
    """

    method: str
    dataset: str
    fingerprint: str
    ipc: int | None
    factor: Factor | None
    network: str | None = None
    protocol: str | None = None
    epochs: int | None = None
    mean: float | None = None
    std: float | None = None
    std_sets: float | None = None
    std_nets: float | None = None
    nets_per_set: tuple[int, ...] = (0,)
    numbers_stored: int | None = None
    bytes_stored: int | None = None
    pool_seconds: float | None = None
    distill_seconds: float | None = None
    peak_memory_mb: float | None = None
    recipe_hash: str = ""
    device: str = ""
    commit: str = ""
    gain: float | None = None
    share: float | None = None
    steps_done: int | None = None
    steps_planned: int | None = None
    budget_minutes: float | None = None
    stopped: str = ""
    failure: str = ""
    runs: tuple[str, ...] = ()
    label: str = ""
    paper: float | None = None
    holdout: int = 0
    stored_as: str = ""
    modality: str = "image"
    stored_bits: int | None = None
    same_as: str = ""

    @property
    def name(self) -> str:
        """What readers know the row by: its cell in a study, else its method."""
        return marked(self.label or self.method, self.same_as)

    @property
    def shown_method(self) -> str:
        """The method, and which one it is equal to on this data: `dsa (= dc)`."""
        return marked(self.method, self.same_as)

    @property
    def over_paper(self) -> float | None:
        """`mean` less what was published, a share; None where nothing was, or where a hold-out was scored on."""
        return None if self.paper is None or self.mean is None or self.holdout else self.mean - self.paper / 100

    @property
    def n_sets(self) -> int:
        return len(self.nets_per_set)

    @property
    def n_nets(self) -> int:
        """Networks per set; the fewest where sets were scored by unequal numbers."""
        return min(self.nets_per_set)

    @property
    def n(self) -> str:
        """n_sets x n_nets, as it is always shown."""
        return counts_text(self.nets_per_set)

    @property
    def partition(self) -> str:
        """The factor as "2 x 2", or how else samples are stored; "" where there are none."""
        return "{} x {}".format(*self.factor) if self.factor else self.stored_as

    @property
    def bits(self) -> str:
        """The width of stored numbers as "8 bits"; "" for the usual fp32."""
        return f"{self.stored_bits} bits" if self.stored_bits and self.stored_bits < 32 else ""

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        counted = {"n_sets": self.n_sets, "n_nets": self.n_nets, "over_paper": self.over_paper}
        return {**record, **counted, "selection": "last epoch"}


def group_runs(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Runs that differ only in their seed (and in how many networks scored them, or kept snapshots) stand together.

    Groups come in the order of table rows, Random first.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        same = {k: v for k, v in record.config.items() if k not in ("seed", "evaluation", "saving", "budget")}
        if record.planned:  # for one budget, from times that are not the same twice
            same["method"] = {k: v for k, v in record.config["method"].items() if k != "steps"}
        subject = [record.label, record.cell.get("holdout"), record.dataset, record.fingerprint]
        subject += [record.budget_minutes, record.planned, *_asked_terms(record)]
        key = json.dumps([same, *subject, record.stored_bits], sort_keys=True, default=str)
        groups.setdefault(key, []).append(record)
    return sorted(groups.values(), key=lambda group: (_subject(group[0]), _rank(group[0].method), group[0].name))


def _asked_terms(record: RunRecord) -> list[Any]:
    """What the run was to be scored by; other scores may lie beside those."""
    evaluation = record.config.get("evaluation") or {}
    return [evaluation.get(key) for key in ("network", "protocol", "epochs")]


def make_rows(records: Iterable[RunRecord]) -> list[Row]:
    """Table rows: Random first, then by method name. Different protocols or epochs are neither pooled nor compared.

    Sets in few bits have rows of their own, below those of all exact ones, and gain over Random rows of the same bits.
    A set is known by its hash and a network by its seed, so that a copied folder or a score stored twice counts once.
    """
    records = list(records)
    if not records:
        return []
    sets = [one for record in records for one in (record, *record.in_few_bits)]
    rows = [row for group in group_runs(sets) for row in _rows_of_group(group)] + _rows_of_full_data(records)
    return sorted((replace(row, gain=_gain(row, rows), share=_share(row, rows)) for row in rows), key=_order)


def better_random(row: Row, rows: Iterable[Row]) -> Row | None:
    """The Random row that `row`'s gain is counted from."""
    if row.method in RANDOM_METHODS or row.mean is None:
        return None
    rivals = [r for r in rows if r.method in RANDOM_METHODS and r.mean is not None and _terms(r) == _terms(row)]
    return max(rivals, key=lambda r: r.mean or 0.0, default=None)


def _gain(row: Row, rows: Iterable[Row]) -> float | None:
    rival = better_random(row, rows)
    return None if rival is None or rival.mean is None or row.mean is None else row.mean - rival.mean


def full_data_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """The full data's row that `row` is a share of: that of the longest training, should there be several."""
    if row.method == FULL_DATA_ROW or row.mean is None:
        return None
    same = [r for r in rows if r.method == FULL_DATA_ROW and r.mean and _content(r) == _content(row)]
    return max(same, key=lambda r: r.epochs or 0, default=None)


def _share(row: Row, rows: Iterable[Row]) -> float | None:
    full = full_data_of(row, rows)
    return None if full is None or full.mean is None or row.mean is None else row.mean / full.mean


def _content(row: Row) -> tuple[Any, ...]:
    """What a row and the full data's must share; the full data need fewer epochs."""
    return row.fingerprint, row.network, row.protocol


def _terms(row: Row) -> tuple[Any, ...]:
    """What two rows must share to be compared."""
    return row.dataset, row.fingerprint, row.ipc, row.stored_bits, row.network, row.protocol, row.epochs


def _order(row: Row) -> tuple[Any, ...]:
    measured = (row.mean is None, row.network or "", row.protocol or "", row.epochs or 0)
    return _subject(row), measured, -(row.stored_bits or 0), _rank(row.method), row.runs


def _subject(item: Row | RunRecord) -> tuple[Any, ...]:
    """Data set and IPC, by which tables are ordered; the full data close their data set."""
    return item.dataset, item.ipc is None, item.ipc or 0, not item.fingerprint, item.fingerprint


def _rank(method: str) -> tuple[int, str]:
    """Random first, the others by name."""
    return RANDOM_METHODS.index(method) if method in RANDOM_METHODS else len(RANDOM_METHODS), method


def _rows_of_group(group: Sequence[RunRecord]) -> list[Row]:
    terms = dict.fromkeys(score.terms for record in group for score in record.scores)
    rows = [_scored_row(group, found) for found in terms] or [_row_of_runs(group)]
    stopped, failure = _told(group, "stopped"), _told(group, "failure")
    return [replace(row, stopped=stopped, failure=failure) for row in rows]


def _told(group: Sequence[RunRecord], fact: str) -> str:
    """What runs say in the attribute `fact`, with their seeds where there are several."""
    told = {str(record.config.get("seed")): getattr(record, fact) for record in group if getattr(record, fact)}
    return "; ".join(text if len(group) == 1 else f"seed {seed}: {text}" for seed, text in told.items())


def _scored_row(group: Sequence[RunRecord], terms: tuple[str, str, int]) -> Row:
    runs = [r for r in group if any(s.terms == terms for s in r.scores)]
    scores = scores_of_sets((r.name, [s for s in r.scores if s.terms == terms]) for r in runs)
    row = _measured(_row_of_runs(runs), scores)
    return replace(row, recipe_hash=joined(s.recipe_hash for s in scores.scores) or row.recipe_hash)


def scores_of_sets(sets: Iterable[tuple[str, Iterable[Score]]]) -> Scores:
    """Scores of named runs, the name standing in for a hash; a copy of a run folder adds no network."""
    named = [replace(s, set_hash=s.set_hash or name) for name, scores in sets for s in scores]
    return Scores(tuple({(s.set_hash, s.seed): s for s in named}.values()))


def _measured(row: Row, scores: Scores) -> Row:
    """The row with what its networks scored; they share network, protocol and epochs."""
    first = scores.scores[0]
    return replace(
        row,
        network=first.network,
        protocol=first.protocol,
        epochs=first.epochs,
        device=joined(s.device for s in scores.scores),
        commit=joined(s.commit for s in scores.scores),
        mean=scores.mean,
        std=scores.std,
        std_sets=scores.std_sets,
        std_nets=scores.std_nets,
        nets_per_set=scores.nets_per_set,
        bytes_stored=first.bytes_stored,
    )


def _rows_of_full_data(records: Sequence[RunRecord]) -> list[Row]:
    """A row for each number of epochs (network, protocol) of the data sets that the runs are of."""
    known = {record.fingerprint: record for record in records if record.fingerprint}
    failure = joined(record.full_data.failure for record in records)
    measured: dict[tuple[Any, ...], dict[int, Score]] = {}
    for score in (score for record in records for score in record.full_data.scores):
        if score.set_hash in known:
            measured.setdefault((score.set_hash, *score.terms), {})[score.seed] = score
    plain = Row(FULL_DATA_ROW, records[0].dataset, records[0].fingerprint, None, None, failure=failure)
    if not measured:
        return [plain] if failure else []
    return [_full_data_row(plain, known, Scores(tuple(nets.values()))) for nets in measured.values()]


def _full_data_row(plain: Row, known: dict[str, RunRecord], scores: Scores) -> Row:
    first = scores.scores[0]
    record = known[first.set_hash]
    facts = {"fingerprint": first.set_hash, "numbers_stored": first.numbers_stored, "runs": (FULL_DATA,)}
    return replace(_measured(plain, scores), dataset=record.dataset, modality=record.modality, **facts)


def _row_of_runs(runs: Sequence[RunRecord]) -> Row:
    """What a row says besides scores."""
    first = runs[0]
    pool, distill = _times(runs, "pool_seconds"), _times(runs, "distill_seconds")
    return Row(
        method=first.method,
        dataset=first.dataset,
        fingerprint=first.fingerprint,
        ipc=first.ipc,
        factor=first.factor,
        stored_as=first.stored_as,
        nets_per_set=(0,) * len(runs),
        numbers_stored=first.numbers_stored,
        pool_seconds=max(pool, default=None),
        distill_seconds=fmean(distill) if distill else None,
        peak_memory_mb=max(_times(runs, "peak_memory_mb"), default=None),
        steps_done=min(r.steps_done for r in runs) if first.steps_planned else None,
        steps_planned=first.steps_planned,
        budget_minutes=first.budget_minutes,
        recipe_hash=joined(r.recipe_hash for r in runs),
        runs=tuple(r.name for r in runs),
        label=first.label,
        paper=first.cell.get("paper"),
        holdout=int(first.cell.get("holdout") or 0),
        modality=first.modality,
        stored_bits=first.stored_bits,
        same_as=first.same_as,
    )


def _times(runs: Sequence[RunRecord], key: str) -> list[float]:
    return [float(r.times[key]) for r in runs if isinstance(r.times.get(key), (int, float))]
