"""`potstill report`: tables and a page of stored runs."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from . import options as shared


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(verbs, "report", run, "write report.html for a run or a folder of runs")
    parser.add_argument("folder", type=shared.place, help="run folder, a folder of run folders, or what --keep wrote")
    parser.add_argument(
        "--format", choices=["html", "markdown", "csv", "latex"], default="html", help="html writes a file"
    )
    parser.add_argument(
        "--keep",
        type=shared.place,
        metavar="FOLDER",
        help="write there what is worth keeping: records in results.json, and the sets in half precision",
    )
    parser.add_argument("--note", action="append", default=[], help="with --keep: what a reader must know (repeatable)")


def run(options: argparse.Namespace) -> None:
    from ..report import collect, keep, to_csv, to_latex, to_markdown, write_report

    if options.note and not options.keep:
        raise UsageError("--note goes with --keep FOLDER, whose results.json has it")
    if options.keep:
        path = keep(options.folder, options.keep, options.note)
        shared.show(options, {"kept": str(path)}, str(path))
        return
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
