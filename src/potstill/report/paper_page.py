"""What a reproduction shows: files of each table, one Markdown text of all, one HTML page, and their records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..escape import markdown
from ..files import SCHEMA_VERSION, write_atomically
from ..run.environment import command as command_line
from ..run.store import dump_json
from .page import template
from .paper_figures import Drawing
from .paper_tables import WRITERS, Filled, cells_of, to_markdown
from .stored import RECORDS, StoredRun, records_of
from .tables import MISSING

#: The page and the text of all tables.
PAGE, TEXT = "index.html", "results.md"


def write_reproduction(
    out: Path, filled: Sequence[Filled], figures: Mapping[str, Sequence[Drawing]], runs: Sequence[StoredRun]
) -> Path:
    """Write everything below `out` and return the page's path.

    Raises:
        RunError: a file cannot be written.
    """
    for one in filled:
        name = one.table.name
        for ending, text_of in WRITERS.items():
            write_atomically(out / f"{name}.{ending}", text_of(one) + "\n")
        write_atomically(out / f"{name}.json", dump_json({"schema_version": SCHEMA_VERSION, **one.to_json()}))
        for drawing in figures.get(name, ()):
            write_atomically(out / f"{drawing.name}.svg", drawing.svg)
            write_atomically(out / f"{drawing.name}.png", drawing.png)
    write_atomically(out / RECORDS, json.dumps(records_of(runs), indent=1, sort_keys=True) + "\n")
    write_atomically(out / TEXT, render_text(filled, figures))
    write_atomically(out / PAGE, render_page(filled, figures))
    return out / PAGE


def schedule_of(out: Path, name: str) -> str:
    """The schedule that an earlier call wrote a table under, "" where none did."""
    try:
        return str(json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["schedule"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def render_text(filled: Sequence[Filled], figures: Mapping[str, Sequence[Drawing]]) -> str:
    """All tables in Markdown, with figures by the names of their files."""
    parts = [
        "# Results beside the paper's",
        "Each cell: ours, the paper's value, and the difference in points. Ours is the mean +- sample standard "
        "deviation over all networks, tested after their last epoch; n is the number of sets x networks. "
        f"{MISSING} marks what was not measured, or not published; where the paper has no cell, ours is blank.",
        markdown(filled[0].schedule),
        *([f"Written by `{command}`."] if (command := command_line().replace("`", "'")) else []),
    ]
    for one in filled:
        heading, _, rest = to_markdown(one).partition("\n")
        pictures = [f"![{markdown(d.caption)}]({d.name}.png)" for d in figures.get(one.table.name, ())]
        parts += [heading, *pictures, rest.strip("\n")]
    return "\n\n".join(parts) + "\n"


def render_page(filled: Sequence[Filled], figures: Mapping[str, Sequence[Drawing]]) -> str:
    """One HTML page without scripts or anything from elsewhere; the same records give the same text."""
    return template("paper.html.j2").render(
        filled=filled,
        figures={one.table.name: figures.get(one.table.name, ()) for one in filled},
        schedule=filled[0].schedule,
        cells_of=cells_of,
        missing=MISSING,
    )
