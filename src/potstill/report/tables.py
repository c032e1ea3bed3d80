"""Rows as Markdown, CSV, JSON and a table for the terminal, all from the same columns.

For readers, accuracies and gains are in percent, columns that say the same in every row move into the caption, and a
missing value is an en dash. For programs (CSV and JSON) every field is there, accuracies are shares 0..1, and a missing
value is an empty cell or null.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from ..escape import csv_cell, latex, markdown, one_line
from ..scores import percent_text
from ..spec import noun_of
from .read import RunRecord
from .rows import Row, make_rows

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Shown for a value that is not there.
MISSING = "–"
#: Characters that sentences in a terminal's table get at least.
LEAST_PROSE = 24
#: Characters in a line where the output is no terminal.
WIDTH_OF_FILES = 200


@dataclass(frozen=True)
class Column:
    """A column for readers.

    Attributes:
        cell: text of a row, "" where missing.
        shared: whether it moves into the caption when all rows that have a value agree.
        number: whether it is set flush right.
        sparse: whether it is left out when no row has a value.
        prose: whether it holds sentences: they wrap, and a narrow terminal keeps them.
    """

    heading: str
    cell: Callable[[Row], str]
    shared: bool = False
    number: bool = False
    sparse: bool = False
    prose: bool = False

    def text(self, row: Row) -> str:
        return self.cell(row) or MISSING


@dataclass(frozen=True)
class ShownTable:
    """A table as readers see it: headings and cells, and the caption that says what holds for all of it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str

    @property
    def cells(self) -> list[list[str]]:
        return [[column.text(row) for column in self.columns] for row in self.rows]


def accuracy_text(row: Row) -> str:
    """Percent, sample standard deviation and n_sets x n_nets, as "72.31 +- 0.42 (1 x 3)"; "" before an evaluation."""
    if row.mean is None:
        return ""
    return f"{percent_text(row.mean, row.std)} ({row.n})"


def noun(item: Row | RunRecord) -> str:
    """What the data set is of."""
    return f"{noun_of(item.modality)}s"


def _scored_on(row: Row) -> str:
    return f"{row.holdout:,} held-out training {noun(row)}" if row.holdout else ""


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.2f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _note(row: Row) -> str:
    told = {"stopped": row.stopped, "failed:": row.failure}
    return "; ".join(f"{how} {text}" for how, text in told.items() if text)


COLUMNS = (
    Column("cell", lambda row: row.name if row.name != row.shown_method else "", sparse=True),
    Column("method", lambda row: ", ".join(filter(None, (row.shown_method, row.bits)))),
    Column("accuracy, %", accuracy_text, number=True),
    Column("paper, %", lambda row: "" if row.paper is None else f"{row.paper:g}", number=True, sparse=True),
    Column("over paper, points", lambda row: _percent(row.over_paper, "+"), number=True, sparse=True),
    Column("scored on", _scored_on, sparse=True),
    Column("gain, points", lambda row: _percent(row.gain, "+"), number=True),
    Column("share of full data, %", lambda row: _percent(row.share), number=True, sparse=True),
    Column("std over sets", lambda row: _percent(row.std_sets), number=True, sparse=True),
    Column("std over nets", lambda row: _percent(row.std_nets) if row.n_sets > 1 else "", number=True, sparse=True),
    Column("data set", lambda row: row.dataset, shared=True),
    Column("IPC", lambda row: str(row.ipc or ""), shared=True, number=True),
    Column("factor", lambda row: row.partition, shared=True),
    Column("network", lambda row: row.network or "", shared=True),
    Column("protocol", lambda row: row.protocol or "", shared=True),
    Column("epochs", lambda row: str(row.epochs or ""), shared=True, number=True),
    Column("numbers stored", lambda row: f"{row.numbers_stored:,}" if row.numbers_stored else "", number=True),
    Column("bytes stored", lambda row: f"{row.bytes_stored:,}" if row.bytes_stored else "", number=True, sparse=True),
    Column("pool, s", lambda row: _seconds(row.pool_seconds), number=True),
    Column("distil, s", lambda row: _seconds(row.distill_seconds), number=True),
    Column("peak memory, MB", lambda row: f"{row.peak_memory_mb:,.0f}" if row.peak_memory_mb else "", number=True),
    Column("recipe", lambda row: row.recipe_hash),
    Column("device", lambda row: row.device, shared=True),
    Column("commit", lambda row: row.commit, shared=True),
    Column("note", _note, sparse=True, prose=True),
)


def shown_table(given: Sequence[RunRecord] | Sequence[Row]) -> ShownTable:
    """What the tables for readers show of runs, or of rows made from them."""
    rows = _as_rows(given)
    filled = [column for column in COLUMNS if not column.sparse or any(map(column.cell, rows))]
    values = {column.heading: sorted({column.cell(row) for row in rows} - {""}) for column in filled}
    common = [column for column in filled if column.shared and len(values[column.heading]) <= 1]
    facts = [f"{column.heading} {values[column.heading][0]}" for column in common if values[column.heading]]
    split = {bool(row.holdout): f"held-out training {noun(row)}" if row.holdout else "the test split" for row in rows}
    caption = f"Accuracy on {' or '.join(split.values()) or 'the test split'} at the last epoch"
    if any(row.mean is not None for row in rows):
        caption += ": mean +- sample standard deviation (n_sets x n_nets)"
    same = ", ".join(["data set", "IPC", *(["bits"] if any(row.bits for row in rows) else []), "network"])
    caption += f". Gain over the better Random row of the same {same}, protocol and epochs."
    if any(row.share is not None for row in rows):
        caption += " Share of the accuracy of networks trained on the whole training split, the row full data."
    if facts:
        caption += f" Throughout: {', '.join(facts)}."
    return ShownTable(tuple(column for column in filled if column not in common), tuple(rows), caption)


def to_markdown(given: Sequence[RunRecord] | Sequence[Row]) -> str:
    """A Markdown table and its caption, without a newline at the end."""
    table = shown_table(given)
    lines = [
        [column.heading for column in table.columns],
        ["---:" if column.number else "---" for column in table.columns],
        *([markdown(cell) for cell in cells] for cells in table.cells),
    ]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", markdown(table.caption)])


def rows_to_json(given: Sequence[RunRecord] | Sequence[Row]) -> list[dict[str, Any]]:
    """Every field of every row, ready for `json.dumps`."""
    return [row.to_json() for row in _as_rows(given)]


def to_csv(given: Sequence[RunRecord] | Sequence[Row]) -> str:
    """Every field of every row; lists are joined by blanks. Without a newline at the end."""
    records = rows_to_json(given)
    buffer = StringIO()
    writer = csv.DictWriter(buffer, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({key: _csv_value(value) for key, value in record.items()})
    return buffer.getvalue().rstrip("\n")


def _csv_value(value: Any) -> Any:
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return csv_cell(text) if isinstance(text, str) else text


def to_latex(given: Sequence[RunRecord] | Sequence[Row]) -> str:
    """A `table` with a `tabular` and its caption, without packages; without a newline at the end."""
    table = shown_table(given)
    places = "".join("r" if column.number else "l" for column in table.columns)
    head = " & ".join(latex(column.heading) for column in table.columns)
    lines = [" & ".join(map(_latex_cell, cells)) for cells in table.cells]
    body = [f"{line} \\\\" for line in (head, "\\hline", *lines)]
    body[1] = "\\hline"
    caption = f"\\caption{{{_latex_cell(table.caption)}}}"
    return "\n".join(
        ["\\begin{table}", caption, f"\\begin{{tabular}}{{{places}}}", *body, "\\end{tabular}", "\\end{table}"]
    )


def _latex_cell(text: str) -> str:
    return latex(text).replace(" +- ", " $\\pm$ ").replace(" x ", " $\\times$ ").replace(MISSING, "--")


def rich_table(given: Sequence[RunRecord] | Sequence[Row], *, width: int | None = None) -> Table:
    """The table for the terminal; where `width` characters do not hold all columns, it says which are left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = shown_table(given)
    needed = [_least_width(column, cells) for column, *cells in zip(shown.columns, *shown.cells, strict=True)]
    fitting = list(range(len(needed)))
    while width and len(fitting) > 3 and sum(needed[i] + 2 for i in fitting) > width:
        fitting.remove(max(i for i in fitting if not shown.columns[i].prose))
    left_out = ", ".join(column.heading for i, column in enumerate(shown.columns) if i not in fitting)
    caption = shown.caption + (f" Left out for want of width: {left_out}." if left_out else "")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.caption, table.caption_justify = Text(one_line(caption)), "left"
    for column, least in ((shown.columns[i], needed[i]) for i in fitting):
        table.add_column(
            column.heading,
            justify="right" if column.number else "left",
            width=None if column.prose else least,
            min_width=least,
            overflow="fold",
        )
    for cells in shown.cells:
        table.add_row(*(Text(one_line(cells[i])) for i in fitting))  # as text: a data set's name is not markup
    return table


def _least_width(column: Column, cells: Sequence[str]) -> int:
    """Headings break between words, and so do sentences; other cells do not."""
    widest = max(map(len, cells), default=0)
    return max(*map(len, column.heading.split()), min(widest, LEAST_PROSE) if column.prose else widest)


def terminal_table(given: Sequence[RunRecord] | Sequence[Row], console: Console | None = None) -> None:
    """Print the table to stdout, or to `console`; wide where stdout is no terminal."""
    from rich.console import Console

    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH_OF_FILES
    console.print(rich_table(given, width=console.width))


def _as_rows(given: Sequence[RunRecord] | Sequence[Row]) -> list[Row]:
    rows = [item for item in given if isinstance(item, Row)]
    return rows or make_rows([item for item in given if isinstance(item, RunRecord)])
