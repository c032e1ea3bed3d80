"""From the files of run folders to tables, pictures and one HTML page. Computes no score and trains nothing."""

from __future__ import annotations

from ..sets.export.pictures import before_after, image_grid, save_preview
from .cost import CostCurve, cost_curves
from .curves import cost_figure, loss_curves
from .keep import keep
from .page import render_report, write_report
from .read import RunRecord, collect, read_run
from .rows import Row, make_rows
from .tables import rich_table, rows_to_json, terminal_table, to_csv, to_latex, to_markdown

__all__ = [
    "CostCurve",
    "Row",
    "RunRecord",
    "before_after",
    "collect",
    "cost_curves",
    "cost_figure",
    "image_grid",
    "keep",
    "loss_curves",
    "make_rows",
    "read_run",
    "render_report",
    "rich_table",
    "rows_to_json",
    "save_preview",
    "terminal_table",
    "to_csv",
    "to_latex",
    "to_markdown",
    "write_report",
]
