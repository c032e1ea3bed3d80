"""`potstill report`: tables and a page of stored runs."""

from __future__ import annotations

import argparse
from typing import Any

from . import options as shared


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(verbs, "report", run, "write report.html for a run or a folder of runs")
    parser.add_argument("folder", type=shared.place, help="run folder, or a folder of run folders")
    parser.add_argument(
        "--format", choices=["html", "markdown", "csv", "latex"], default="html", help="html writes a file"
    )


def run(options: argparse.Namespace) -> None:
    from ..report import collect, to_csv, to_latex, to_markdown, write_report

    if options.format == "html":
        path = write_report(options.folder)
        shared.show(options, {"report": str(path)}, str(path))
        return
    records = collect(options.folder)
    text = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex}[options.format](records)
    shared.show(options, results_of(records), text)


def results_of(records: Any) -> dict[str, Any]:
    """Rows and curves of stored runs, for JSON."""
    from ..report import rows_to_json
    from ..report.cost import curves_to_json

    return {"rows": rows_to_json(records), "curves": curves_to_json(records)}
