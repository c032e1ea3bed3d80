"""The paper's figures, drawn from stored runs and stored measurements alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, unreadable
from ..escape import figure as figure_text
from ..run.paper_features import FEATURES
from ..scores import Score, Scores
from ..sets.export.pictures import image_grid
from ..sets.synthetic import SyntheticSet
from .curves import COLOURS, legend, style, svg_of
from .page import MOST_CLASSES, inline_svg
from .paper import Entry, place
from .paper_tables import Filled

#: Inches of one plot; dots per inch of a PNG.
WIDTH, HEIGHT, DOTS = 5.4, 3.3, 120
#: A ratio of the largest to the least value from which an axis is logarithmic.
WIDE = 50


@dataclass(frozen=True)
class Drawing:
    """A picture as stand-alone SVG and as PNG on white."""

    name: str
    caption: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG as part of a page."""
        return inline_svg(self.svg, f"{self.name}-")


def draw(filled: Filled, places: Sequence[Path]) -> list[Drawing]:
    """The pictures of a figure; none of a table, nor where nothing is stored for them.

    Args:
        places: folders where measurements of features may lie, the first one that has them counts.
    Raises:
        DataError: a damaged measurement.
    """
    kinds: dict[str, Callable[[Filled, Sequence[Path]], Any]] = {
        "steps": _steps,
        "values": _values,
        "images": _images,
        "networks": _networks,
        "embedding": _embedding,
    }
    kind = kinds.get(filled.table.plan.draw)
    if kind is None:
        return []
    with style():
        figure = kind(filled, places)
        if figure is None:
            return []
        picture = BytesIO()
        svg = svg_of(figure)
        figure.savefig(picture, format="png", dpi=DOTS, facecolor="white", metadata={"Software": None})
    return [Drawing(filled.table.name, filled.table.plan.title, svg, picture.getvalue())]


def _axes(count: int) -> tuple[Any, list[Any]]:
    """A figure with plots side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * max(1, count), HEIGHT), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _steps(filled: Filled, places: Sequence[Path]) -> Any:
    """Accuracy of the sets on the way, a plot for each place and a line for each cell."""
    if not any(_line_of(entry) for entry in filled.entries):
        return None
    titles = list(dict.fromkeys(_title(entry) for entry in filled.entries))
    figure, axes = _axes(len(titles))
    for ax, title in zip(axes, titles, strict=True):
        drawn = [entry for entry in filled.entries if _title(entry) == title and _line_of(entry)]
        for i, entry in enumerate(drawn):
            points = _line_of(entry)
            colour = COLOURS[1:][i % len(COLOURS[1:])]
            _line(ax, [step for step, _ in points], [scores for _, scores in points], colour, entry.label)
            if entry.cell.draft.paper is not None:
                ax.plot(points[-1][0], entry.cell.draft.paper, marker="D", mfc="none", color=colour, linestyle="")
        ax.set_title(figure_text(title))
        ax.set_xlabel("step (diamond: the paper's end)")
        ax.set_ylabel("accuracy, %")
        ax.grid(True)
        _legend_or_nothing(ax, bool(drawn))
    return figure


def _legend_or_nothing(ax: Any, measured: bool) -> None:
    """An empty plot says that it is."""
    if measured:
        ax.legend(frameon=False)
    else:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")


def _line_of(entry: Entry) -> list[tuple[int, Scores]]:
    """(step, scores) of the sets on the way and of the last one, under the terms of the entry; [] without any."""
    if not entry.scores:
        return []
    terms = entry.scores.scores[0].terms
    found: dict[int, list[Score]] = {}
    for run in entry.runs:
        for step, scores in run.kept.items():
            found.setdefault(step, []).extend(score for score in scores if score.terms == terms)
        if run.steps:
            found.setdefault(run.steps, []).extend(run.scores)
    points = [(step, Scores(tuple(scores))) for step, scores in sorted(found.items()) if scores]
    return points if len(points) > 1 else []


def _line(ax: Any, x: Sequence[float], scores: Sequence[Scores], colour: str, label: str) -> None:
    """Means with bars of one standard deviation."""
    ax.errorbar(
        x,
        [100 * one.mean for one in scores],
        yerr=[100 * (one.std or 0.0) for one in scores],
        color=colour,
        label=figure_text(label),
        marker="o",
        markersize=3,
        elinewidth=0.8,
        capsize=2,
    )


def _values(filled: Filled, places: Sequence[Path]) -> Any:
    """Accuracy over the values of one key, a plot for each cell of the study and a line for each of the rest."""
    if not filled.measured:
        return None
    labels = list(dict.fromkeys(entry.cell.label for entry in filled.entries))
    figure, axes = _axes(len(labels))
    for ax, label in zip(axes, labels, strict=True):
        part = [entry for entry in filled.entries if entry.cell.label == label]
        for i, title in enumerate(dict.fromkeys(_title(entry) for entry in part)):
            line = sorted((entry for entry in part if _title(entry) == title), key=_value)
            colour = COLOURS[1:][i % len(COLOURS[1:])]
            measured = [(_value(entry), entry.scores) for entry in line if entry.scores]
            if measured:
                _line(ax, [x for x, _ in measured], [scores for _, scores in measured if scores], colour, title)
            published = [(_value(e), e.cell.draft.paper) for e in line if e.cell.draft.paper is not None]
            ax.plot(*zip(*published, strict=True), marker="D", mfc="none", color=colour, linestyle="")
        least, most = min(map(_value, part)), max(map(_value, part))
        if least > 0 and most / least >= WIDE:
            ax.set_xscale("log")
        ax.set_xlabel(figure_text(f"{label} (diamond: the paper's value)"))
        ax.set_ylabel("accuracy, %")
        ax.grid(True)
        _legend_or_nothing(ax, any(entry.scores for entry in part))
    return figure


def _title(entry: Entry) -> str:
    """Where an entry stands besides its last value: `IPC 10`. A figure over steps has no other value."""
    at = list(entry.cell.draft.at.items())
    return ", ".join(place(key, value) for key, value in (at[:-1] or at))


def _value(entry: Entry) -> float:
    return float(list(entry.cell.draft.at.values())[-1])


def _images(filled: Filled, places: Sequence[Path]) -> Any:
    """The stored images of each cell's first set, side by side."""
    sets = [(entry, path) for entry in filled.entries for run in entry.runs[:1] if (path := run.set_file)]
    if not sets:
        return None
    figure, axes = _axes(len(sets))
    figure.set_size_inches(WIDTH * len(sets), WIDTH)
    for ax, (entry, path) in zip(axes, sets, strict=True):
        ax.imshow(np.asarray(image_grid(SyntheticSet.load(Path(path)), max_classes=MOST_CLASSES)), interpolation="none")
        ax.set_title(figure_text(entry.label))
        ax.set_axis_off()
    return figure


def read_features(table: str, places: Sequence[Path]) -> list[dict[str, Any]]:
    """The measurements of a figure, [] where there are none."""
    for folder in places:
        path = folder / FEATURES.format(table)
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))["cells"]
            except OSError as error:
                raise unreadable(path, error) from error
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: damaged measurement ({error}); delete it and run the call again") from error
    return []


def _networks(filled: Filled, places: Sequence[Path]) -> Any:
    """One class of a set in several networks: its features side by side, and its loss in each."""
    cells = read_features(filled.table.name, places)
    if not cells:
        return None
    figure, (left, right) = _axes(2)
    for i, network in enumerate(cells[0]["networks"]):
        colour = (*COLOURS[1:], COLOURS[0])[i % len(COLOURS)]
        left.scatter(*np.array(network["distilled"]).T, s=12, color=colour, label=f"network {i + 1}")
        right.bar(i + 1, network["loss"], color=colour)
    left.set_xticks([])
    left.set_yticks([])
    legend(left, len(cells[0]["networks"]))
    left.set_xlabel(figure_text(f"t-SNE of the features of class {cells[0]['class']}"))
    right.set_xticks(range(1, 1 + len(cells[0]["networks"])))
    right.set_xlabel("network of the pool")
    right.set_ylabel(figure_text(f"matching loss, class {cells[0]['class']}"))
    right.grid(True, axis="y")
    return figure


def _embedding(filled: Filled, places: Sequence[Path]) -> Any:
    """Real and distilled features of one class in two dimensions, a plot for each cell."""
    cells = read_features(filled.table.name, places)
    if not cells:
        return None
    figure, axes = _axes(len(cells))
    for ax, cell in zip(axes, cells, strict=True):
        (network,) = cell["networks"]
        ax.scatter(*np.array(network["real"]).T, s=6, color="#66bb66", label="real")
        ax.scatter(*np.array(network["distilled"]).T, s=40, marker="*", color="#cc2233", label="distilled")
        words = [cell["cell"], *(place(key, value) for key, value in cell["at"].items())]
        ax.set_title(figure_text(f"{', '.join(words)} (class {cell['class']})"))
        ax.set_xticks([])
        ax.set_yticks([])
        ax.legend(frameon=False)
    return figure
