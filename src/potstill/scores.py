"""What networks scored: one record from the evaluator to every file, table and card that shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from .errors import DataError, counted, refuse_pipes, unreadable
from .files import SCHEMA_VERSION

#: What a field of a record may be, by its annotation.
_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


@dataclass(frozen=True)
class Score:
    """One network, trained on one set by a protocol and tested once, at its last epoch.

    Attributes:
        accuracy: share of the test split, 0..1.
        train_loss: mean of the last epoch; seconds: of training and testing.
        set_hash: of the set's content, for real training data of the whole data set's; test_hash: of the test split.
        recipe_hash: of the recipe that made the set.
        numbers_stored, bytes_stored: what the set keeps; stored_bits: the width of its stored numbers.
        device, runtime, commit: where, how and by which source the network was trained.
    """

    network: str
    protocol: str
    epochs: int
    seed: int
    accuracy: float
    train_loss: float | None = None
    seconds: float | None = None
    set_hash: str = ""
    test_hash: str = ""
    recipe_hash: str = ""
    numbers_stored: int | None = None
    bytes_stored: int | None = None
    stored_bits: int | None = None
    device: str = ""
    runtime: str = ""
    commit: str = ""

    @property
    def terms(self) -> tuple[str, str, int]:
        """What scores must share to be pooled."""
        return self.network, self.protocol, self.epochs

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, record: Any) -> Score:
        """A record of `to_json`; keys that this version does not know are passed over.

        Raises:
            DataError: not such a record; the message names the key, what it holds and what is expected.
        """
        if not isinstance(record, dict):
            raise DataError(f"expected a JSON object, found {type(record).__name__}")
        version = record.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise DataError(f"schema_version {version!r}, this potstill reads {SCHEMA_VERSION}; upgrade it")
        known: dict[str, Any] = {}
        for field in fields(cls):
            if field.default is not MISSING and field.name not in record:
                continue
            value = known[field.name] = record.get(field.name)
            kind, _, optional = str(field.type).partition(" | ")  # text: annotations are evaluated late
            if isinstance(value, bool) or not (isinstance(value, _KINDS[kind]) or (value is None and optional)):
                raise DataError(f"{field.name} is {value!r}; expected a score as evaluate stores it")
        if not 0 <= known["accuracy"] <= 1:
            raise DataError(f"accuracy is {known['accuracy']!r}; expected a share between 0 and 1")
        return cls(**known)

    @classmethod
    def read(cls, path: Path) -> Score:
        """The score in a file.

        Raises:
            DataError: missing, damaged, or something else than a score; the message names file and line.
        """
        refuse_pipes(path)
        try:
            return cls.from_json(json.loads(path.read_bytes().decode(errors="replace")))
        except OSError as error:
            raise unreadable(path, error) from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {error.lineno}: not valid JSON ({error.msg}); delete it to evaluate again"
            ) from error
        except RecursionError:
            raise DataError(f"{path}: JSON nested too deeply for a score; delete it to evaluate again") from None
        except DataError as error:
            raise DataError(f"{path}, line 1: {error}; delete it to evaluate again") from error


@dataclass(frozen=True)
class Scores:
    """The scores of `n_sets x n_nets` networks; sets are told apart by their hashes."""

    scores: tuple[Score, ...]

    @property
    def per_set(self) -> list[list[float]]:
        """The accuracies of each set's networks."""
        sets: dict[str, list[float]] = {}
        for score in self.scores:
            sets.setdefault(score.set_hash, []).append(score.accuracy)
        return list(sets.values())

    @property
    def nets_per_set(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.per_set)

    @property
    def n_sets(self) -> int:
        return len(self.per_set)

    @property
    def n_nets(self) -> int:
        """Networks per set; the fewest where sets were scored by unequal numbers."""
        return min(self.nets_per_set)

    @property
    def n(self) -> str:
        """n_sets x n_nets, as it is always shown."""
        return counts_text(self.nets_per_set)

    @property
    def mean(self) -> float:
        """Mean accuracy over all networks, 0..1."""
        return fmean(score.accuracy for score in self.scores)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over all networks; None for a single one."""
        return _deviation([score.accuracy for score in self.scores])

    @property
    def std_sets(self) -> float | None:
        """Of the sets' means; None for one set."""
        return _deviation([fmean(values) for values in self.per_set])

    @property
    def std_nets(self) -> float | None:
        """Over networks within a set, pooled; None where no set has two."""
        within = [(len(values) - 1, variance(values)) for values in self.per_set if len(values) > 1]
        freedom = sum(count for count, _ in within)
        return math.sqrt(sum(count * spread for count, spread in within) / freedom) if freedom else None

    def __str__(self) -> str:
        first, (sets, nets) = self.scores[0], self.n.split(" x ")
        counts = f"{sets} set{'s' * (self.n_sets > 1)} x {nets} nets"
        return (
            f"{percent_text(self.mean, self.std)} % (last epoch, n = {counts}, "
            f"{first.network}, protocol {first.protocol}, {counted(first.epochs, 'epoch')})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "std": self.std,
            "n_sets": self.n_sets,
            "n_nets": self.n_nets,
            "selection": "last epoch",
            "scores": [s.to_json() for s in self.scores],
        }


def percent_text(mean: float, std: float | None) -> str:
    """Shares as percent, such as "72.31 +- 0.42"."""
    return f"{100 * mean:.2f}" + ("" if std is None else f" +- {100 * std:.2f}")


def counts_text(nets_per_set: Sequence[int]) -> str:
    """Such as "2 x 5"; "2 x 3-5" where sets were scored by unequal numbers of networks."""
    fewest, most = min(nets_per_set), max(nets_per_set)
    return f"{len(nets_per_set)} x {fewest}" + (f"-{most}" if most > fewest else "")


def _deviation(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
