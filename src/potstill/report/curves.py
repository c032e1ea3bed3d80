"""Curves as SVG, drawn from what is stored alone. Figures are objects of their own: no pyplot, no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, NamedTuple

import numpy as np

from ..escape import figure as figure_text
from .cost import CostCurve
from .read import joined

#: Mid-tones, told apart on white and on black and by most colour-blind readers; the total comes first.
COLOURS = ("#808080", "#4477aa", "#ee6677", "#228833", "#aa3377", "#b8860b", "#0099aa")
#: Points of a drawn line; more would only make the file larger.
MOST_POINTS = 200
#: Stands for "the colour of the text around it" until the SVG is written.
_INK = "#010203"


class Curve(NamedTuple):
    """A smoothed series: moving median, and the 10th and 90th percentile in the same window."""

    steps: list[float]
    median: list[float]
    low: list[float]
    high: list[float]


def loss_curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The terms of the loss over steps, and where logged the spread of the synthetic features in a second panel.

    Args:
        metrics: one record per step with "step", "loss" and its weighted "terms"; in "notes" "spread" is
            log(tr Cov_S / tr Cov_T). Values that are missing or not finite, and on the logarithmic axis not positive,
            are left out.
    Returns:
        A stand-alone SVG without a date; the same metrics give the same text. Lines and letters take the colour of
        the text around them.
    """
    from matplotlib.figure import Figure

    window = smoothing_window(len(metrics))
    with style():
        panels = 2 if _series(metrics, _spread)[0] else 1
        figure = Figure(figsize=(5.4, 3.3 if panels == 1 else 4.8), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[:panels])[:, 0]
        _draw_terms(axes[0], metrics, window)
        if panels == 2:
            _draw_spread(axes[1], metrics, window)
        axes[-1].set_xlabel(_step_label(window))
        return svg_of(figure)


def cost_figure(curves: Sequence[CostCurve], labels: Sequence[str]) -> str:
    """Accuracy against core-minutes from nothing, a line with bars of one standard deviation for each curve.

    Args:
        labels: what the lines are called in the legend.
    Returns:
        A stand-alone SVG, as `loss_curves`.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.subplots()
        for i, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            axes.errorbar(
                [point.core_minutes for point in curve.points],
                [100 * point.mean for point in curve.points],
                yerr=[100 * (point.std or 0.0) for point in curve.points],
                color=COLOURS[1:][i % len(COLOURS[1:])],
                label=figure_text(label),
                marker="o",
                markersize=3,
                elinewidth=0.8,
                capsize=2,
            )
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{joined(curve.unit for curve in curves)} from nothing (pool and distilling)")
        axes.set_ylabel("accuracy, %")
        axes.grid(True)
        legend(axes, len(curves))
        return svg_of(figure)


@contextmanager
def style() -> Iterator[None]:
    """Our settings alone: a user's own matplotlibrc must not change the picture."""
    import matplotlib.style

    settings = {"svg.hashsalt": "potstill", "svg.fonttype": "none", "font.size": 10, "lines.linewidth": 1.5}
    colours = {f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")}
    settings |= colours | {"axes.edgecolor": _INK, "axes.labelcolor": _INK, "axes.axisbelow": True, "grid.alpha": 0.2}
    with matplotlib.style.context(["default", settings]):
        yield


def svg_of(figure: Any) -> str:
    """A stand-alone SVG without a date, in the colour of the text around it."""
    buffer = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue().replace(_INK, "currentColor")


def legend(axes: Any, entries: int) -> None:
    """Above the axes, where it hides nothing."""
    columns = 4 if entries <= 4 else 3
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
    axes.legend(ncols=columns, handlelength=1.2, columnspacing=1.2, **place)


def smoothing_window(count: int) -> int:
    """Steps of the moving median: an odd number, about a fortieth of the run; 1 leaves a short run as it is."""
    return max(1, count // 40) | 1


def smooth(steps: Sequence[float], values: Sequence[float], window: int) -> Curve:
    """Moving median and percentiles over `window` values around each of at most `MOST_POINTS` places."""
    series, half = np.asarray(values, dtype=float), window // 2
    places = np.unique(np.linspace(0, len(series) - 1, min(len(series), MOST_POINTS)).round().astype(int))
    quantiles = [np.quantile(series[max(0, i - half) : i + half + 1], (0.5, 0.1, 0.9)) for i in places]
    median, low, high = np.array(quantiles).T.tolist()
    return Curve([float(steps[i]) for i in places], median, low, high)


def _draw_terms(axes: Any, metrics: Sequence[Mapping[str, Any]], window: int) -> None:
    drawn = 0
    for term in dict.fromkeys(term for line in metrics for term in _loss_and_terms(line)):
        steps, values = _series(metrics, lambda line, term=term: _loss_and_terms(line).get(term), positive=True)
        if steps:
            _draw(
                axes, smooth(steps, values, window), COLOURS[drawn % len(COLOURS)], figure_text(term), band=window > 1
            )
            drawn += 1
    axes.set_ylabel("loss terms, weighted (no unit)")
    axes.grid(True)
    if drawn:
        axes.set_yscale("log")
        legend(axes, drawn)


def _draw_spread(axes: Any, metrics: Sequence[Mapping[str, Any]], window: int) -> None:
    steps, values = _series(metrics, _spread)
    axes.axhline(0, color=_INK, linewidth=0.8, linestyle="--")
    _draw(axes, smooth(steps, values, window), COLOURS[1], None, band=window > 1)
    axes.set_ylabel("log spread ratio\n(0: as the real data)")
    axes.grid(True)


def _draw(axes: Any, curve: Curve, colour: str, label: str | None, *, band: bool) -> None:
    marker = "o" if len(curve.steps) == 1 else None  # a line of one point is invisible
    axes.plot(curve.steps, curve.median, color=colour, label=label, marker=marker)
    if band:
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def _step_label(window: int) -> str:
    return "step" if window == 1 else f"step (line: median of {window} steps, band: 10th to 90th percentile)"


def _loss_and_terms(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"loss": line.get("loss"), **_part(line, "terms")}


def _spread(line: Mapping[str, Any]) -> Any:
    return _part(line, "notes").get("spread")


def _part(line: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = line.get(name)
    return part if isinstance(part, Mapping) else {}


def _series(
    metrics: Sequence[Mapping[str, Any]], value_of: Callable[[Mapping[str, Any]], Any], *, positive: bool = False
) -> tuple[list[float], list[float]]:
    steps, values = [], []
    for line in metrics:
        value = value_of(line)
        if isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not positive):
            steps.append(float(line["step"]))
            values.append(float(value))
    return steps, values
