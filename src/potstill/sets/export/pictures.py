"""Pictures of synthetic sets: a row per class, of what is stored or of the samples it decodes to. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import UsageError
from ...files import write_atomically
from ..synthetic import SyntheticSet

#: Sides that images are enlarged towards, and by how much at most: 8x8 is shown at 48 pixels, 32x32 at 64.
READABLE_SIDE, MOST_ENLARGED = 64, 6
#: What a picture can show of a set.
VIEWS = ("stored", "decoded")
_GAP, _LONGEST_NAME = 2, 16
_SMALLEST_FONT, _LARGEST_FONT = 11, 20


def image_grid(
    synthetic: SyntheticSet,
    *,
    per_class: int = 10,
    scale: int | None = None,
    max_classes: int | None = None,
    names: bool = True,
    view: str | None = None,
    ink: str = "black",
    paper: str | None = "white",
) -> Image.Image:
    """The first `per_class` images of each class, a row per class with its name at the left.

    Args:
        synthetic: values are clamped to the spec's range. One channel is gray, three are colours, any other number
            is averaged to gray.
        scale: whole-number enlargement without smoothing; readable where None.
        max_classes: rows to show, all where None.
        names: whether class names are written.
        view: "stored" shows stored numbers (mosaics whole; chroma and coefficients around gray), "decoded" the samples
            that networks see. Where None, stored images of tiles and decoded samples of the others.
        ink, paper: colours of names and background; the background is transparent where `paper` is None.
    Raises:
        UsageError: per_class, scale or max_classes below 1, an unknown view.
    """
    for name, value in (("per_class", per_class), ("scale", scale), ("max_classes", max_classes)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: need at least 1")
    images = _to_bytes(shown(synthetic, view)[:max_classes, :per_class], synthetic.spec.value_range)
    rows, columns, _, height, width = images.shape
    scale = scale or readable_scale(height, height if view == "stored" else width)
    cell_h, cell_w = height * scale + _GAP, width * scale + _GAP
    labels = [_short(synthetic.spec.classes[c]) for c in synthetic.classes[:rows]] if names else []
    font_size = max(_SMALLEST_FONT, min(_LARGEST_FONT, cell_h // 3))
    font = ImageFont.load_default(font_size)
    left = round(max((font.getlength(label) for label in labels), default=-3 * _GAP)) + 3 * _GAP
    line = max(cell_h, font_size + _GAP if names else 0)
    canvas = _canvas((left + columns * cell_w, rows * line), paper)
    draw = ImageDraw.Draw(canvas)
    for i in range(rows):
        if labels:
            draw.text((left - 2 * _GAP, i * line + line // 2), labels[i], fill=ink, font=font, anchor="rm")
        for j in range(columns):
            picture = _picture(images[i, j]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(picture, (left + j * cell_w, i * line + (line - cell_h) // 2))
    return canvas


def shown(synthetic: SyntheticSet, view: str | None = None) -> Tensor:
    """`(K, N, C, H, W)` pixels of a view, see `image_grid`."""
    if view not in (None, *VIEWS):
        raise UsageError(f"view={view!r}: use one of {', '.join(VIEWS)}")
    stored = view == "stored" or (view is None and synthetic.factor)
    return synthetic.way.pictures(synthetic.images, synthetic.spec) if stored else synthetic.samples()


def other_view(synthetic: SyntheticSet) -> str | None:
    """What a picture leaves out by default; None where samples are stored as they are."""
    if synthetic.factor:
        return "decoded" if synthetic.factor != (1, 1) else None
    return "stored"


def before_after(
    initial: SyntheticSet,
    distilled: SyntheticSet,
    *,
    per_class: int = 10,
    scale: int | None = None,
    max_classes: int | None = None,
    headings: tuple[str, str] = ("before", "after"),
) -> Image.Image:
    """Two sets side by side under headings; class names once, where both show the same classes."""
    return side_by_side(_pair(initial, distilled, per_class, scale, max_classes), headings)


def _pair(
    initial: SyntheticSet, distilled: SyntheticSet, per_class: int, scale: int | None, max_classes: int | None = None
) -> list[Image.Image]:
    same = initial.spec.classes == distilled.spec.classes and initial.classes == distilled.classes
    return [
        image_grid(initial, per_class=per_class, scale=scale, max_classes=max_classes),
        image_grid(distilled, per_class=per_class, scale=scale, max_classes=max_classes, names=not same),
    ]


def side_by_side(grids: Sequence[Image.Image], headings: Sequence[str]) -> Image.Image:
    """Pictures in a row, each under its heading."""
    font, top, space = ImageFont.load_default(_LARGEST_FONT), _LARGEST_FONT + 6 * _GAP, 8 * _GAP
    width, height = sum(g.width for g in grids) + space * (len(grids) - 1), max(g.height for g in grids) + top
    canvas = _canvas((width, height), "white")
    draw = ImageDraw.Draw(canvas)
    left = 0
    for grid, heading in zip(grids, headings, strict=True):
        draw.text((left + grid.width // 2, top // 2), _short(heading), fill="black", font=font, anchor="mm")
        canvas.paste(grid, (left, top))
        left += grid.width + space
    return canvas


def save_preview(
    path: str | Path,
    distilled: SyntheticSet,
    initial: SyntheticSet | None = None,
    *,
    per_class: int = 10,
    scale: int | None = None,
) -> Path:
    """Write a PNG of the set, beside its start where that is given.

    Where samples are not stored as they are, both are shown: what is stored and what it decodes to.
    """
    grids = [image_grid(distilled, per_class=per_class, scale=scale)]
    headings = ["decoded" if other_view(distilled) == "stored" else "stored"]
    if initial is not None:
        grids, headings = _pair(initial, distilled, per_class, scale), ["before", "after"]
    if view := other_view(distilled):
        grids.append(image_grid(distilled, per_class=per_class, scale=scale, view=view))
        headings.append(view)
    write_atomically(Path(path), png(side_by_side(grids, headings) if len(grids) > 1 else grids[0]))
    return Path(path)


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file; the same picture gives the same bytes."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def readable_scale(height: int, width: int) -> int:
    """How much to enlarge an image of this size without smoothing."""
    return max(1, min(MOST_ENLARGED, round(READABLE_SIDE / max(height, width))))


def _to_bytes(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    low, high = value_range
    shares = ((images.detach().cpu().float().nan_to_num(low) - low) / (high - low)).clamp(0, 1)
    return (shares * 255).round().to(torch.uint8)


def _picture(image: Tensor) -> Image.Image:
    if image.shape[0] == 3:
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return Image.fromarray(image.float().mean(0).round().to(torch.uint8).numpy())


def _canvas(size: tuple[int, int], paper: str | None) -> Image.Image:
    return Image.new("RGB", size, paper) if paper else Image.new("RGBA", size, (0, 0, 0, 0))


def _short(name: str) -> str:
    """One line of limited length: class names can be anything."""
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 3] + "..."
