"""Decoded pictures of any mode and size to one uint8 array. Channels and size are decided once, from all headers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from PIL import Image, ImageOps

from ...errors import DataError, refuse_out_of_memory
from ..records import MIN_SIDE, Size, as_sides, check_memory, logger, reason

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Only these decoders are let loose on a file, whatever its name: Pillow hands PostScript to another program.
DECODERS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # the EXIF tag

GREY, COLOUR = ("1", "L"), ("RGB",)
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow would clip these to 8 bits


@dataclass(frozen=True)
class Picture:
    """A picture that can be opened, and how error messages call it."""

    name: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Plan:
    """What every picture of a data set is turned into."""

    mode: str
    height: int
    width: int


def open_file(path: Path) -> Image.Image:
    """A picture file, upright: cameras store pixels as the sensor lay and say so in a tag."""
    image = Image.open(path, formats=DECODERS)
    try:
        # PNG's getexif decodes the whole picture, where there is no tag before it.
        turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:
        image.close()
        raise


def plan(name: str, train: Sequence[Picture], test: Sequence[Picture], size: Size | None) -> Plan:
    """Decide mode and size for both splits, and announce what is converted.

    All grey stays grey, all RGB stays RGB, anything else becomes RGB. Unequal sizes become `size`, else the median
    height and width of the training pictures.

    Raises:
        DataError: a picture that cannot be opened, is smaller than 8 pixels or deeper than 8 bits a channel.
    """
    headers = [_header(picture) for picture in (*train, *test)]
    modes = Counter(mode for mode, _, _, _ in headers)
    moving = sum(frames for _, _, _, frames in headers)
    if moving:
        logger.warning("%s: %d pictures hold several frames; the first of each is read", name, moving)
    mode = "L" if set(modes) <= set(GREY) else "RGB"
    if mode == "RGB" and set(modes) != set(COLOUR):
        found = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()))
        logger.warning("%s: pictures of mode %s converted to RGB (transparency is dropped)", name, found)
    heights, widths = zip(*((height, width) for _, height, width, _ in headers), strict=True)
    target = as_sides(size) if size else (median_low(heights[: len(train)]), median_low(widths[: len(train)]))
    _announce_resize(name, set(zip(heights, widths, strict=True)), target)
    check_memory(len(headers) * target[0] * target[1] * (1 if mode == "L" else 3), name)
    return Plan(mode, *target)


def decode(pictures: Sequence[Picture], plan: Plan) -> np.ndarray:
    """All pictures as `(N, H, W, C)` uint8."""
    pixels = np.empty((len(pictures), plan.height, plan.width, 1 if plan.mode == "L" else 3), dtype=np.uint8)
    for row, picture in zip(pixels, pictures, strict=True):
        row[:] = _pixels(picture, plan).reshape(row.shape)
    return pixels


def _header(picture: Picture) -> tuple[str, int, int, bool]:
    """(mode, height, width, whether it moves)"""
    with _open(picture) as image:
        mode, (width, height) = image.mode, image.size
        moves = getattr(image, "is_animated", False) and image.format != "MPO"
    if mode in DEEP:
        raise DataError(f"{picture.name}: mode {mode}, expected 8 bits per channel: convert it first")
    if min(width, height) < MIN_SIDE:
        raise DataError(f"{picture.name}: {height}x{width} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}")
    return mode, height, width, moves


def _open(picture: Picture) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return picture.open()
    except Exception as problem:  # decoders fail in many ways, not all of them OSError
        refuse_out_of_memory(problem, picture.name)
        raise DataError(
            f"{picture.name}: cannot be opened ({reason(problem)}), expected a readable picture"
        ) from problem


def _pixels(picture: Picture, plan: Plan) -> np.ndarray:
    with _open(picture) as image:
        try:
            if "transparency" in image.info:
                image = image.convert("RGBA")  # else Pillow warns about palettes whose colours are transparent
            image = image.convert(plan.mode)
        except Exception as problem:  # as above
            refuse_out_of_memory(problem, picture.name)
            raise DataError(
                f"{picture.name}: cannot be decoded ({reason(problem)}), expected a complete picture"
            ) from problem
        if image.size != (plan.width, plan.height):
            image = image.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
        return np.asarray(image)


def _announce_resize(name: str, sizes: set[tuple[int, int]], target: tuple[int, int]) -> None:
    if sizes == {target}:
        return
    (low, high), count = (min(sizes), max(sizes)), len(sizes)
    found = f"{low[0]}x{low[1]}" if count == 1 else f"{count} sizes from {low[0]}x{low[1]} to {high[0]}x{high[1]}"
    logger.warning("%s: pictures of %s (height x width) resized to %dx%d; size= sets another", name, found, *target)
