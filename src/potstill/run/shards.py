"""Shards of the classes of one set: distilled apart where a method's classes are independent, then joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..errors import DataError
from ..files import write_atomically
from ..recipe import Recipe
from ..sets.export.pictures import save_preview
from ..sets.synthetic import SyntheticSet
from ..spec import LabelledDataset
from .store import RunStore

Record = Mapping[str, float]


def shards(classes: int, count: int) -> list[tuple[int, ...]]:
    """The classes of each shard: neighbours, as many in each, give or take one."""
    count = min(count, classes)
    return [tuple(range(classes * i // count, classes * (i + 1) // count)) for i in range(count)]


def split_of(recipe: Recipe, data: LabelledDataset, count: int) -> list[tuple[int, ...]]:
    """The classes of each shard of a recipe's set; none where it is made whole."""
    split = shards(data.spec.num_classes, count)
    return split if len(split) > 1 and recipe.build_method().independent_classes else []


def shard_folder(classes: tuple[int, ...]) -> str:
    """Below the run's folder."""
    return f"state/shards/{classes[0]}-{classes[-1]}"


def join(store: RunStore, parts: Sequence[RunStore]) -> None:
    """One run of its shards: sets, kept sets and metrics of all classes; seconds are summed. The shards are forgotten.

    Raises:
        DataError: shards that were stopped at different steps.
    """
    with store.locked():
        first = parts[0]
        final = _joined([part.require_set() for part in parts], parts)
        store.write_config(first.read_config().partition("\n")[2])
        for path in first.kept_sets().values():
            name = path.relative_to(first.root)
            store.write_set(store.root / name, _joined([SyntheticSet.load(p.root / name) for p in parts], parts))
        if first.metrics.exists():
            write_atomically(store.metrics, "".join(json.dumps(line) + "\n" for line in _metrics(parts)))
            store.write_json("times.json", _times(parts))
        store.write_json("env.json", {**first.read_json("env.json"), "shards": len(parts)})
        store.write_set(store.distilled, final)
        before = SyntheticSet.load(store.initial) if int(final.provenance["steps"]) else None
        save_preview(store.preview, final, before)
        shutil.rmtree(first.root.parent)


def _joined(sets: Sequence[SyntheticSet], parts: Sequence[RunStore]) -> SyntheticSet:
    if len({s.provenance.get("steps") for s in sets}) > 1:
        raise DataError(f"{parts[0].root.parent}: shards of different steps; delete the folder to make them again")
    return replace(
        sets[0],
        images=torch.cat([s.images for s in sets]),
        classes=tuple(c for s in sets for c in s.classes),
        provenance={**sets[0].provenance, "shards": str(len(sets))},
        _decoded=None,
    )


def _metrics(parts: Sequence[RunStore]) -> list[dict[str, object]]:
    """A line for each step: losses are sums over classes, notes means over them."""
    texts = [part.metrics.read_text(encoding="utf-8").splitlines() for part in parts]
    weights = [len(part.require_set().classes) for part in parts]
    lines = []
    for records in zip(*([json.loads(line) for line in text] for text in texts), strict=True):
        notes = [record.get("notes", {}) for record in records]
        lines.append(
            {
                "step": records[0]["step"],
                **{
                    key: round(sum(r.get(key, r["seconds"]) for r in records), 3) for key in ("seconds", "core_seconds")
                },
                "loss": sum(record["loss"] for record in records),
                "terms": _sums([record.get("terms", {}) for record in records], [1.0] * len(parts)),
                "notes": _sums(notes, [weight / sum(weights) for weight in weights]),
            }
        )
    return lines


def _sums(records: Sequence[Record], weights: Sequence[float]) -> dict[str, float]:
    return {key: sum(w * record[key] for w, record in zip(weights, records, strict=True)) for key in records[0]}


def _times(parts: Sequence[RunStore]) -> dict[str, object]:
    times = [part.read_json("times.json") for part in parts]
    summed = ("distill_seconds", "distill_core_seconds")
    seconds = {key: round(sum(part.read_number("times.json", key) for part in parts), 3) for key in summed}
    peak = max(int(part.read_number("times.json", "peak_memory_mb")) for part in parts)
    return {**times[0], **seconds, "peak_memory_mb": peak}
