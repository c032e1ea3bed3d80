"""Differentiable Siamese augmentation (DSA): parameters drawn apart from their application.

A `Draw` is a table of uniform numbers, one row per image, plus the names of the operations in force. `apply` turns
rows into brightness, shifts, angles... on normalised images, with gradients to the pixels. Because drawing is
separate, one row can serve all real and all synthetic images of a class: otherwise the loss would measure the
augmentation, not the data. Values follow DSA (Zhao and Bilen, ICML 2021) as the condensation codes set them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..spec import AUGMENTATION, DatasetSpec

log = logging.getLogger("potstill")

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
#: What sound is augmented with: its spectrograms, frequency along axis 0 and time along axis 1.
SOUND_OPERATIONS = ("timeshift", "gain", "mask")
KNOWN = (*OPERATIONS, *SOUND_OPERATIONS)
#: Of these at most one is applied to a batch; the others always are (the IDC and DSDM codes).
EXCLUSIVE = ("crop", "scale", "rotate")

BRIGHTNESS = 1.0  #: added: uniform in +-half of this, on the normalised scale
SATURATION = 2.0  #: distance to the pixel's gray value times uniform in [0, this)
CONTRAST = 0.5  #: distance to the image's mean times this + uniform in [0, 1)
CROP = 0.125  #: largest shift, as a share of the side
CUTOUT = 0.5  #: side of the square set to zero, as a share of the side
SCALE = 1.2  #: factor per axis uniform in [1 / this, this)
ROTATE = 15.0  #: degrees, uniform in +-this
GAIN = 1.0  #: added to a log spectrogram: uniform in +-half of this, on the normalised scale
MASK = 0.25  #: width of the band of frequencies and of the stretch of time set to zero, as a share of the side

#: Columns of the table of uniform numbers.
FLIP, BRIGHT, SATURATE, CONTRAST_AT, CROP_Y, CROP_X, CUT_Y, CUT_X, SCALE_Y, SCALE_X, ANGLE = range(11)
COLUMNS = 11


@dataclass(frozen=True)
class Strategy:
    """Which operations a stage uses, from a DSA string such as `color_crop_cutout_flip_scale_rotate`.

    Attributes:
        operations: names in force; empty for none.
        single: draw ONE of the listed operations per batch (DC, DSA, DM) in place of the rule of IDC and DSDM,
            where flip, color and cutout always apply and one of crop, scale and rotate is drawn.
    """

    operations: tuple[str, ...] = ()
    single: bool = False

    @classmethod
    def parse(cls, text: str, *, mirror: bool = True, single: bool = False) -> Strategy:
        """Read a DSA string; "none" or "" for no augmentation. `mirror=False` drops the flip.

        Raises:
            UsageError: an unknown operation; the known are listed.
        """
        names = [] if text in ("", "none") else text.replace("time_shift", "timeshift").split("_")
        for name in names:
            if name not in KNOWN:
                known = f"{', '.join(OPERATIONS)} of images, time_shift, gain, mask of sound"
                raise UsageError(f"augmentation {name!r} in {text!r}: known are {known}, or none")
        return cls(tuple(n for n in KNOWN if n in names and (mirror or n != "flip")), single)

    def without(self, *names: str) -> Strategy:
        return Strategy(tuple(n for n in self.operations if n not in names), self.single)


def suited(text: str, modality: str, *, mirror: bool, single: bool = False) -> Strategy:
    """The operations of a DSA string that suit the kind of data: no mirroring of letters, for sound its own alone.

    A spectrogram turned or cut like an image is another sound.
    """
    usual = (
        SOUND_OPERATIONS if modality == "sound" else Strategy.parse(AUGMENTATION[modality], mirror=mirror).operations
    )
    return Strategy.parse(text, single=single).without(*(set(KNOWN) - set(usual)))


def strategy_for(spec: DatasetSpec, text: str, *, single: bool = False) -> Strategy:
    """What is `suited` to a data set, said where nothing of it is."""
    kept = suited(text, spec.modality, mirror=spec.mirror, single=single)
    if not kept.operations and Strategy.parse(text).operations:
        _say_once(spec.name, spec.modality)
    return kept


@cache
def _say_once(name: str, modality: str) -> None:
    if modality == "sound":
        log.info("%s is sound: it is not augmented, as all operations are an image's", name)
    else:
        log.info("%s is not augmented: none of the operations suits it", name)


class Draw(NamedTuple):
    """One augmentation draw: operations in force for the batch and uniform numbers `(rows, 11)` in [0, 1)."""

    operations: tuple[str, ...]
    uniform: Tensor

    @staticmethod
    def row(generator: torch.Generator) -> Tensor:
        """One row of uniform numbers, `(1, 11)`."""
        return torch.rand(1, COLUMNS, generator=generator)

    def repeat(self, times: int) -> Draw:
        """Each row for `times` successive images: one draw per class becomes one row per image."""
        return Draw(self.operations, self.uniform.repeat_interleave(times, dim=0))


#: No augmentation.
PLAIN = Draw((), torch.zeros(1, COLUMNS))


def draw_operations(strategy: Strategy, generator: torch.Generator) -> tuple[str, ...]:
    """The operations one batch gets."""
    pool = strategy.operations if strategy.single else tuple(n for n in strategy.operations if n in EXCLUSIVE)
    always = () if strategy.single else tuple(n for n in strategy.operations if n not in EXCLUSIVE)
    if not pool:
        return always
    chosen = pool[int(torch.randint(len(pool), (), generator=generator))]
    return (*always, chosen)


def draw(strategy: Strategy, rows: int, generator: torch.Generator) -> Draw:
    """Draw operations and parameters for `rows` images (or classes: see `Draw.repeat`)."""
    operations = draw_operations(strategy, generator)
    return Draw(operations, torch.rand(rows, COLUMNS, generator=generator))


def apply(x: Tensor, operations: tuple[str, ...], uniform: Tensor) -> Tensor:
    """Augment normalised images `(B, C, H, W)` with one row of `uniform` `(B, 11)` each; keeps gradients.

    Order as in the condensation codes: flip, colour, the geometric operation, cutout.
    """
    u: Any = uniform.T  # u[column] is (B,)
    if "flip" in operations:
        x = flip(x, u[FLIP])
    if "color" in operations:
        x = color(x, u[BRIGHT], u[SATURATE], u[CONTRAST_AT])
    if "crop" in operations:
        x = crop(x, u[CROP_Y], u[CROP_X])
    if "scale" in operations:
        x = scale(x, u[SCALE_Y], u[SCALE_X])
    if "rotate" in operations:
        x = rotate(x, u[ANGLE])
    if "cutout" in operations:
        x = cutout(x, u[CUT_Y], u[CUT_X])
    if "timeshift" in operations:
        x = timeshift(x, u[CROP_X])
    if "gain" in operations:
        x = x + (_per_image(u[BRIGHT]) - 0.5) * GAIN
    if "mask" in operations:
        x = mask(x, u[CUT_Y], u[CUT_X])
    return x


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Mirror left-right where u < 0.5."""
    return torch.where(_per_image(u) < 0.5, x.flip(3), x)


def color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast."""
    x = x + (_per_image(brightness) - 0.5) * BRIGHTNESS
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (_per_image(saturation) * SATURATION) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (_per_image(contrast) + CONTRAST) + mean


def crop(x: Tensor, u_y: Tensor, u_x: Tensor) -> Tensor:
    """Shift by whole pixels, up to 0.125 of the side (rounded) each way, zeros from outside (pad and crop)."""
    return Shift.apply(x, _whole_shift(u_y, x.shape[2]), _whole_shift(u_x, x.shape[3]))  # type: ignore[no-any-return]


def cutout(x: Tensor, u_y: Tensor, u_x: Tensor) -> Tensor:
    """Set a square of half the side to zero (the mean colour), centred anywhere and cut off at the border."""
    rows = _inside(u_y, x.shape[2], x.device)
    columns = _inside(u_x, x.shape[3], x.device)
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(hole, 0.0, x)


def timeshift(x: Tensor, u: Tensor) -> Tensor:
    """Move a sound in time, by up to 0.125 of its length each way; what leaves at one end comes in at the other."""
    length = x.shape[3]
    index = (torch.arange(length, device=x.device) - _whole_shift(u, length)[:, None]) % length
    return x.gather(3, index[:, None, None].expand(x.shape))


def mask(x: Tensor, u_y: Tensor, u_x: Tensor) -> Tensor:
    """Set a band of frequencies and a stretch of time to zero (the mean), a quarter of the side each, wholly inside."""
    rows, columns = (
        (torch.arange(side, device=x.device) - (u * (side - int(MASK * side) + 1)).floor()[:, None])
        for u, side in ((u_y, x.shape[2]), (u_x, x.shape[3]))
    )
    band = (rows >= 0) & (rows < int(MASK * x.shape[2]))
    stretch = (columns >= 0) & (columns < int(MASK * x.shape[3]))
    return torch.where(band[:, None, :, None] | stretch[:, None, None, :], 0.0, x)


def scale(x: Tensor, u_y: Tensor, u_x: Tensor) -> Tensor:
    """Stretch each axis by its own factor, bilinear, zeros from outside."""
    low = 1 / SCALE
    s_y, s_x = u_y * (SCALE - low) + low, u_x * (SCALE - low) + low
    zero = torch.zeros_like(s_x)
    return _affine(x, torch.stack([s_x, zero, zero, zero, s_y, zero], dim=1))


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """Rotate about the centre, bilinear, zeros from outside."""
    angle = (u - 0.5) * (2 * ROTATE * math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _affine(x, torch.stack([cos, -sin, zero, sin, cos, zero], dim=1))


class Shift(torch.autograd.Function):
    """Whole-pixel shift of each image, zero filled. The gradient is the opposite shift, so neither way scatters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(down, right)
        return _gather_shifted(x, down, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        down, right = ctx.saved_tensors
        return _gather_shifted(gradients[0], -down, -right), None, None


def _gather_shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device) - down[:, None]
    columns = torch.arange(width, device=x.device) - right[:, None]
    index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    flat = index.reshape(batch, 1, height * width).expand(-1, channels, -1)
    moved = x.reshape(batch, channels, height * width).gather(2, flat).reshape(x.shape)
    return torch.where(inside[:, None], moved, 0.0)


def _whole_shift(u: Tensor, side: int) -> Tensor:
    reach = int(CROP * side + 0.5)  # half up, as the condensation codes round
    return (u * (2 * reach + 1)).floor().long() - reach


def _inside(u: Tensor, side: int, device: torch.device) -> Tensor:
    """Rows (or columns) of the cutout square, `(B, side)` bool."""
    size = int(side * CUTOUT + 0.5)
    centre = (u * (side + (1 - size % 2))).floor()[:, None]
    offset = torch.arange(side, device=device) - (centre - size // 2)
    return (offset >= 0) & (offset < size)


def _affine(x: Tensor, theta: Tensor) -> Tensor:
    grid = F.affine_grid(theta.reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _per_image(u: Tensor) -> Tensor:
    return u[:, None, None, None]
