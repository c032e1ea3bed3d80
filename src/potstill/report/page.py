"""The report: one self-contained HTML page for a run or for a folder of runs. No script, nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..errors import DataError, counted
from ..files import write_atomically
from ..sets.export.pictures import image_grid, png
from ..sets.export.wav import is_playable, sounds, wav_bytes
from ..sets.synthetic import SyntheticSet
from .cost import CostCurve, cost_curves
from .curves import cost_figure, loss_curves
from .read import RunRecord, collect, marked
from .rows import FULL_DATA_ROW, group_runs, make_rows
from .tables import noun, shown_table
from .words import describe_missing, describe_protocol, describe_results, describe_runs, describe_title

#: Rows of a picture; a page with more would be slow to open.
MOST_CLASSES = 20
#: Readable on light and on dark pages.
_INK = "#7f7f7f"


class Picture(NamedTuple):
    """A grid of images with its caption. `data` is a base64 PNG; `alt` is read where it cannot be seen.

    Of sound there is a clip for each class: its name, and a base64 WAV.
    """

    caption: str
    alt: str
    data: str
    width: int
    height: int
    clips: tuple[tuple[str, str], ...] = ()


class CurveFigure(NamedTuple):
    """Curves as an inline SVG."""

    caption: str
    svg: str


class RunDetails(NamedTuple):
    """What to look up about one run."""

    name: str
    command: str
    recipe_hash: str
    recipe: str
    environment: str
    times: str


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder, or into a folder of run folders, and return its path.

    Raises:
        DataError: neither of the two, or a damaged file; the message names what was expected, or file and line.
        RunError: the page cannot be written.
    """
    path = Path(folder) / "report.html"
    write_atomically(path, render_report(collect(folder)))
    return path


def render_report(records: Sequence[RunRecord]) -> str:
    """The page as text; the same runs give the same text.

    Raises:
        DataError: no runs.
    """
    if not records:
        raise DataError("no runs to report on: expected at least one run folder")
    rows = make_rows(records)
    # One set stands for all seeds: pictures of the others would differ by nothing one can see.
    groups = _once(group_runs(records))
    shown = [group[0] for group in groups]
    return template("report.html.j2").render(
        title=describe_title(records),
        done=[describe_runs(group) for group in groups],
        results=describe_results(rows),
        table=shown_table(rows),
        missing=[line for record in records for line in describe_missing(record)],
        pictures=[picture for record in shown for picture in _pictures(record, _label(record, shown))],
        classes=_classes(shown),
        nouns=" and ".join(dict.fromkeys(map(noun, shown))),
        most_classes=MOST_CLASSES,
        full_data=any(row.method == FULL_DATA_ROW for row in rows),
        curves=[
            CurveFigure(_label(record, shown), inline_svg(loss_curves(record.metrics), f"c{i}-"))
            for i, record in enumerate(shown)
            if record.metrics
        ],
        costs=_cost_figures(cost_curves(records)),
        protocols=[
            describe_protocol(*used)
            for used in sorted({(r.protocol, r.epochs) for r in rows if r.protocol and r.epochs})
        ],
        runs=[_details(record) for record in records],
    )


def _once(groups: Sequence[Sequence[RunRecord]]) -> list[Sequence[RunRecord]]:
    """Without groups whose sets, under the same label, are those of an earlier one, scored otherwise."""
    different: dict[tuple[str, ...], Sequence[RunRecord]] = {}
    for group in groups:
        different.setdefault((group[0].label, *(run.recipe_hash or run.name for run in group)), group)
    return list(different.values())


def _cost_figures(curves: Sequence[CostCurve]) -> list[CurveFigure]:
    """A figure for each data set, IPC, way of scoring and unit of cost."""
    figures = []
    for i, subject in enumerate(dict.fromkeys(curve.subject for curve in curves)):
        dataset, ipc, network, protocol, epochs, _unit = subject
        drawn = [curve for curve in curves if curve.subject == subject]
        methods = [marked(curve.method, curve.same_as) for curve in drawn]
        labels = [m if methods.count(m) == 1 else f"{m} ({c.runs[0]})" for m, c in zip(methods, drawn, strict=True)]
        caption = f"{dataset}, IPC {ipc}: {network}, protocol {protocol}, {counted(epochs, 'epoch')}"
        figures.append(CurveFigure(caption, inline_svg(cost_figure(drawn, labels), f"a{i}-")))
    return figures


def template(name: str) -> Template:
    """A page's template; what it is given is untrusted text: names of classes and data sets, recipes."""
    environment = Environment(
        loader=PackageLoader("potstill", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    return environment.get_template(name)


def typeset(text: str) -> str:
    """Our own plain signs as proper ones."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "\u2212", text.replace("+-", "\u00b1"))
    return re.sub(r"(?<=[\d_a-z]) x (?=[\dn])", " \u00d7 ", text)


def _label(record: RunRecord, shown: Sequence[RunRecord]) -> str:
    """The cell's or method's name, with the folder's where several runs share it."""
    shared = sum(other.label == record.label for other in shown) > 1
    return f"{record.shown_label} ({record.name})" if shared else record.shown_label


def _pictures(record: RunRecord, label: str) -> list[Picture]:
    """Before and after, or the set alone where nothing was learned or one of the two is missing."""
    before, after = record.initial, record.distilled
    if before is not None and after is not None and not _same(before, after):
        return [_picture(before, f"{label}: before"), _picture(after, f"{label}: after {record.steps_done:,} steps")]
    if after is not None:
        return [_picture(after, label)]
    return [] if before is None else [_picture(before, f"{label}: before the first step")]


def _picture(synthetic: SyntheticSet, caption: str) -> Picture:
    grid = image_grid(synthetic, max_classes=MOST_CLASSES, ink=_INK, paper=None)
    count = min(len(synthetic.classes), MOST_CLASSES)
    alt = f"{caption}: a row of {synthetic.spec.noun}s for each of {count} classes"
    return Picture(caption, alt, b64encode(png(grid)).decode(), grid.width, grid.height, _clips(synthetic))


def _clips(synthetic: SyntheticSet) -> tuple[tuple[str, str], ...]:
    """The first sample of each class to listen to; none where samples are no sound, or of another front end."""
    if not is_playable(synthetic.spec):
        return ()
    few = replace(synthetic, images=synthetic.images[:MOST_CLASSES], classes=synthetic.classes[:MOST_CLASSES])
    names = (synthetic.spec.classes[cls] for cls in few.classes)
    return tuple(
        (name, b64encode(wav_bytes(wave)).decode()) for name, (wave,) in zip(names, sounds(few, 1), strict=True)
    )


def _same(one: SyntheticSet, other: SyntheticSet) -> bool:
    return one.images.shape == other.images.shape and bool((one.images == other.images).all())


def _classes(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Class names of each data set that has a picture, in the order of the pictures' rows."""
    found: dict[str, list[str]] = {}
    for record in records:
        if shown := record.distilled or record.initial:
            found.setdefault(record.dataset, [shown.spec.classes[c] for c in shown.classes])
    return list(found.items())


def _details(record: RunRecord) -> RunDetails:
    given = record.environment.get("command") or ""
    return RunDetails(
        name=record.name,
        command=shlex.join(map(str, given)) if isinstance(given, list) else str(given),
        recipe_hash=record.recipe_hash,
        recipe=record.config_text.rstrip("\n"),
        environment=_as_lines({k: v for k, v in record.environment.items() if k != "command"}),
        times=_as_lines(record.times),
    )


def _as_lines(record: dict[str, Any]) -> str:
    entries = ((key, value) for key, value in sorted(record.items()) if key != "schema_version")
    return "\n".join(f"{k}: {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for k, v in entries)


def inline_svg(svg: str, prefix: str) -> str:
    """An SVG as part of a page: without prolog and namespaces, and with ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}", svg).strip()
