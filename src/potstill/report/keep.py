"""What is worth keeping of runs once they are done: a file of records, and the distilled sets in half precision.

`potstill report` reads the folder as it reads the runs themselves; `study.yaml`, where there is one, makes them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import SCHEMA_VERSION, write_atomically
from ..run.study import STUDY
from ..scores import Score
from .cost import curves_to_json
from .read import KEPT, KEPT_SET, SET_FACTS, RunRecord, collect, joined
from .tables import rows_to_json


def keep(folder: Path, out: Path, notes: Sequence[str] = ()) -> Path:
    """Write the runs of `folder` to `out`, and return their file. A set that several share is written once.

    Args:
        notes: what a reader must know.
    Raises:
        DataError: no runs, or a damaged one.
    """
    records = collect(folder)
    record = {
        "schema_version": SCHEMA_VERSION,
        "command": joined(str(run.environment.get("command") or "") for run in records),
        "notes": list(notes),
        "rows": rows_to_json(records),
        "curves": curves_to_json(records),
        "full_data_scores": _scores(records[0].full_data.scores),
        "runs": {run.name: _kept(run) for run in records},
    }
    made = [run for run in records if run.metrics]  # a choice of real images is made again sooner than it is read
    first = {run.distilled.digest(): run for run in reversed(made) if run.distilled}  # of those that share a set
    for run in made:
        if run.distilled and run is first[run.distilled.digest()]:
            half = replace(run.distilled, images=run.distilled.images.half())
            write_atomically(out / KEPT_SET.format(run.name), half.to_bytes())
    if (folder / STUDY).is_file():
        write_atomically(out / STUDY, (folder / STUDY).read_text(encoding="utf-8"))
    write_atomically(out / KEPT, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return out / KEPT


def _kept(run: RunRecord) -> dict[str, Any]:
    kept = {*run.kept_scores, run.steps_done}  # of which curves need the times
    thin = [line for i, line in enumerate(run.metrics, start=1) if i % 100 == 0 or line["step"] in kept]
    return {
        "recipe": _anywhere(run.config),
        "environment": run.environment,
        "times": run.times,
        "cell": run.cell,
        "facts": _facts(run),
        "scores": _scores(run.scores),
        "kept": {str(step): _scores(scores) for step, scores in run.kept_scores.items()},
        "in_few_bits": [{"facts": _facts(few), "scores": _scores(few.scores)} for few in run.in_few_bits],
        "metrics_every_100": thin,
        "failure": run.failure,
    }


def _anywhere(config: dict[str, Any]) -> dict[str, Any]:
    """A recipe that names its data's file, not where on this machine it lay; the fingerprint says which data it is."""
    data = config.get("data", {})
    if not data.get("fingerprint"):
        return config
    return {**config, "data": {**data, "name": Path(data["name"]).name}}


def _facts(run: RunRecord) -> dict[str, Any]:
    return {fact: getattr(run, fact) for fact in SET_FACTS}


def _scores(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [score.to_json() for score in scores]
