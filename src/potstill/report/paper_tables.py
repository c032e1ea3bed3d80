"""Filled tables of the paper as Markdown, LaTeX, CSV and JSON.

For readers a cell is ours, the paper's value and the difference, in percent and points, with an en dash where there is
none yet and blanks where the paper has no cell; below stand the notes, what is empty and why, and for each value how
and where it was measured.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from ..errors import counted
from ..escape import csv_cell, latex, markdown
from ..run.paper import PaperTable
from ..run.reproduce import span
from ..scores import percent_text
from .paper import Entry, Panel, panels
from .tables import MISSING

#: Headings of the list of values, one line for each cell that has one.
DETAILS = ("cell", "ours", "n", "recipe", "made by", "scored by", "hardware", "pool", "distil", "evaluate")


#: What a star means.
OTHERWISE = "* Made or scored otherwise than this schedule says: see made by and scored by, below."

#: One more heading, and what must be said of it.
BEST_ON_TEST = "best on test, not a result"
BEST_ON_TEST_TOLD = (
    "Best on test: of the sets on the way and the last one the best on the test split, chosen as the paper's code does "
    "it. It is no result of ours, and tells how much of a difference such a choice makes."
)


@dataclass(frozen=True)
class Filled:
    """A table with its entries, and the sentence that says under which schedule."""

    table: PaperTable
    entries: tuple[Entry, ...]
    schedule: str

    @property
    def panels(self) -> list[Panel]:
        return panels(self.entries)

    @property
    def general_notes(self) -> list[str]:
        otherwise = any(not entry.of_schedule for entry in self.measured)
        star = [OTHERWISE] if otherwise else []
        chosen = [BEST_ON_TEST_TOLD] if any(entry.selected for entry in self.measured) else []
        return [*star, *chosen, *(note.text for note in self.table.plan.notes if not note.on)]

    @property
    def numbered_notes(self) -> list[tuple[int, str]]:
        return [(i, note.text) for i, note in enumerate(self.table.plan.numbered_notes, start=1)]

    @property
    def details(self) -> tuple[list[str], list[list[str]]]:
        """The list of values: headings, and a line for each; what the test split would choose where it is known."""
        chosen = any(entry.selected for entry in self.measured)
        rows = [[*details_of(entry), *([selected_text(entry)] if chosen else [])] for entry in self.measured]
        return [*DETAILS, *([BEST_ON_TEST] if chosen else [])], rows

    @property
    def measured(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.scores]

    @property
    def counts(self) -> str:
        return f"{len(self.measured)} of {len(self.entries)} cells are measured."

    @property
    def empty(self) -> list[str]:
        """Why cells are empty, each reason once with the number of its cells."""
        reasons: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.empty_because and entry.empty_because != "not run":
                reasons.setdefault(entry.empty_because, []).append(entry.cell.name)
        return [f"{why} ({len(names)} cell{'s' * (len(names) > 1)})" for why, names in reasons.items()]

    def to_json(self) -> dict[str, Any]:
        notes = [{"number": i, "text": text} for i, text in self.numbered_notes]
        return {
            "table": self.table.name,
            "title": self.table.plan.title,
            "about": self.table.plan.about,
            "schedule": self.schedule,
            "notes": [*({"number": None, "text": text} for text in self.general_notes), *notes],
            "cells": [entry.to_json() for entry in self.entries],
        }


def ours_text(entry: Entry | None) -> str:
    """Mean and deviation, with a star where it was made or scored otherwise than the schedule says."""
    if entry is None:
        return ""
    if not entry.scores:
        return MISSING
    return percent_text(entry.scores.mean, entry.scores.std) + ("" if entry.of_schedule else " *")


def paper_text(entry: Entry | None) -> str:
    """The published value and the numbers of its notes: `26.0 +- 1.2 [3]`."""
    if entry is None or entry.cell.draft.paper is None:
        return MISSING
    draft = entry.cell.draft
    text = f"{draft.paper:.1f}" + ("" if draft.paper_std is None else f" +- {draft.paper_std:.1f}")
    return " ".join([text, *(f"[{number}]" for number in entry.cell.notes)])


def selected_text(entry: Entry) -> str:
    """What a choice on the test split would give: `63.10 +- 0.20, step 8,000, of 9`."""
    if entry.selected is None:
        return MISSING
    scores = entry.selected.scores
    return f"{percent_text(scores.mean, scores.std)}, step {entry.selected.step:,}, of {entry.selected.of}"


def difference_text(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return MISSING if entry.difference is None else f"{entry.difference:+.2f}"


def heads_of(panel: Panel) -> list[str]:
    return ["cell", *(text for head in panel.heads for text in (head, "paper", "diff."))]


def cells_of(entries: Iterable[Entry | None]) -> list[str]:
    return [text for entry in entries for text in (ours_text(entry), paper_text(entry), difference_text(entry))]


def details_of(entry: Entry) -> list[str]:
    """A line of the list of values, see DETAILS."""
    scores = entry.scores
    assert scores
    network, protocol, epochs = scores.scores[0].terms
    times = (entry.pool_seconds, entry.distill_seconds, entry.evaluate_seconds)
    return [
        ", ".join([entry.label, *(str(value) for value in entry.cell.draft.at.values())]),
        ours_text(entry),
        scores.n,
        entry.recipes or MISSING,
        entry.made_by or MISSING,
        f"{network}, {protocol}, {counted(epochs, 'epoch')}",
        entry.hardware or MISSING,
        *(MISSING if seconds is None else span(seconds) for seconds in times),
    ]


def to_markdown(filled: Filled) -> str:
    """A section with its tables, without a newline at the end."""
    plan = filled.table.plan
    lines = [f"## {markdown(plan.title)}", "", markdown(f"{plan.about} {filled.counts}"), ""]
    for panel in filled.panels:
        lines += [f"**{markdown(panel.title)}**", ""] if panel.title else []
        rows = [[label, *cells_of(entries)] for label, entries in panel.rows]
        lines += [*_markdown_table(heads_of(panel), rows), ""]
    notes = [*filled.general_notes, *(f"[{i}] {text}" for i, text in filled.numbered_notes)]
    notes += [f"Empty: {why}." for why in filled.empty]
    lines += [f"- {markdown(note)}" for note in notes] + [""] * bool(notes)
    if filled.measured:
        heads, rows = filled.details
        lines += [*_markdown_table(heads, rows, left=len(heads)), ""]
    return "\n".join(lines).rstrip("\n")


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    line = ["---" if i < left else "---:" for i in range(len(heads))]
    return [f"| {' | '.join(cells)} |" for cells in (heads, line, *([*map(markdown, row)] for row in rows))]


def to_latex(filled: Filled) -> str:
    """A `table` with a `tabular` for each part, without packages; without a newline at the end."""
    plan = filled.table.plan
    notes = [*filled.general_notes, *(f"[{i}] {text}" for i, text in filled.numbered_notes)]
    caption = " ".join([f"{plan.title}. {plan.about} {filled.counts} {filled.schedule}", *notes])
    lines = ["\\begin{table}", f"\\caption{{{_latex(caption)}}}"]
    for panel in filled.panels:
        rows = [[label, *cells_of(entries)] for label, entries in panel.rows]
        body = [" & ".join(map(_latex, cells)) + " \\\\" for cells in (heads_of(panel), *rows)]
        lines += [f"\\par {_latex(panel.title)}\\par"] if panel.title else []
        lines += [
            f"\\begin{{tabular}}{{l{'r' * 3 * len(panel.heads)}}}",
            body[0],
            "\\hline",
            *body[1:],
            "\\end{tabular}",
        ]
    return "\n".join([*lines, "\\end{table}"])


def _latex(text: str) -> str:
    return latex(text).replace(" +- ", " $\\pm$ ").replace(MISSING, "--")


def to_csv(filled: Sequence[Filled]) -> str:
    """Every field of every cell, one line each; without a newline at the end."""
    records = [entry.to_json() for one in filled for entry in one.entries]
    buffer = StringIO()
    writer = csv.DictWriter(buffer, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _csv_value(value) for key, value in record.items()})
    return buffer.getvalue().rstrip("\n")


def _csv_value(value: Any) -> Any:
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    text = "; ".join(f"{k} {v}" for k, v in text.items()) if isinstance(text, dict) else text
    return csv_cell(text) if isinstance(text, str) else text


#: How a table is written, by the ending of its file.
WRITERS: dict[str, Callable[[Filled], str]] = {"md": to_markdown, "tex": to_latex, "csv": lambda one: to_csv([one])}
