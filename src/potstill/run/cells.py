"""One cell of a study: its set is made in a folder of its own and scored by the one evaluator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Interrupted, reason
from ..scores import Scores
from ..spec import LabelledDataset
from .distil import distill_run
from .progress import Reporter
from .score import evaluate_in_few_bits, evaluate_set
from .store import RunStore
from .study import Cell

T = TypeVar("T")


def distil_and_score(
    cell: Cell,
    holdout: int,
    data: LabelledDataset,
    store: RunStore,
    reporter: Reporter,
    cache: Path | None,
    overwrite: bool = False,
) -> Scores:
    """The scores of the cell's set; what is done already is kept. `holdout` images stand in for the test split."""
    try:
        synthetic = distill_run(cell.recipe, data, store, reporter, cache=cache, resume=True, overwrite=overwrite)
    finally:
        if store.config.exists():  # a refused recipe claims no folder
            write_cell(store, cell, holdout)
    with store.noting_failure():
        scores = evaluate_set(synthetic, data, cell.recipe, store, reporter)
        evaluate_in_few_bits(synthetic, data, cell.recipe, store, reporter)
        return scores


def write_cell(store: RunStore, cell: Cell, holdout: int) -> None:
    """What a study says of the run."""
    store.write_json("cell.json", {"label": cell.label, "paper": cell.paper, "holdout": holdout})


def attempt(reporter: Reporter, work: Callable[..., T], /, *given: Any, **keys: Any) -> tuple[T | None, str]:
    """What `work` returns, or why it failed: whatever one cell does wrong, the others are not to blame."""
    try:
        return work(*given, **keys), ""
    except Interrupted:
        raise
    except Exception as error:
        reporter.say(f"failed: {reason(error)}")
        return None, reason(error)
