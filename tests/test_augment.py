"""Augmentation against slow references, one image and one pixel at a time, and the rules by which it is drawn.

The values are those of the condensation codes (DSA's ParamDiffAug), written out again in the references.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.errors import UsageError
from potstill.learning import augment
from potstill.learning.augment import (
    COLUMNS,
    EXCLUSIVE,
    OPERATIONS,
    Draw,
    Strategy,
    apply,
    draw,
    draw_operations,
    strategy_for,
)
from potstill.seeding import generator
from potstill.spec import DatasetSpec

ALMOST_ONE = 1 - 2**-24  # the largest number torch.rand gives
SHAPES = pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (1, 15, 15), (3, 15, 28), (3, 9, 6)], ids=str)
EVERY_OPERATION = pytest.mark.parametrize("operation", OPERATIONS)


def images(shape: tuple[int, ...], count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(count: int = 4, seed: int = 1) -> Tensor:
    """Rows of uniform numbers; the first two rows hold the ends of the range."""
    u = torch.rand(count, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u[0], u[1] = 0.0, ALMOST_ONE
    return u


# --- slow references: an image (C, H, W) and its row of numbers


def slow_flip(x: Tensor, u: list[float]) -> Tensor:
    return torch.stack([x[:, :, x.shape[2] - 1 - j] for j in range(x.shape[2])], 2) if u[augment.FLIP] < 0.5 else x


def slow_color(x: Tensor, u: list[float]) -> Tensor:
    x = x + (u[augment.BRIGHT] - 0.5) * 1.0
    out = x.clone()
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            gray = sum(x[:, i, j]) / len(x)
            for c in range(len(x)):
                out[c, i, j] = (x[c, i, j] - gray) * (2.0 * u[augment.SATURATE]) + gray
    mean = out.sum() / out.numel()
    return (out - mean) * (u[augment.CONTRAST_AT] + 0.5) + mean


def slow_crop(x: Tensor, u: list[float]) -> Tensor:
    _, height, width = x.shape
    reach_y, reach_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    down = math.floor(u[augment.CROP_Y] * (2 * reach_y + 1)) - reach_y
    right = math.floor(u[augment.CROP_X] * (2 * reach_x + 1)) - reach_x
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y))
    top, left = reach_y - down, reach_x - right
    return padded[:, top : top + height, left : left + width]


def slow_cutout(x: Tensor, u: list[float]) -> Tensor:
    _, height, width = x.shape
    tall, wide = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    # An even square lies between pixels: its centre has one place more.
    y = math.floor(u[augment.CUT_Y] * (height + (tall % 2 == 0)))
    x_ = math.floor(u[augment.CUT_X] * (width + (wide % 2 == 0)))
    top, left = y - tall // 2, x_ - wide // 2
    keep = torch.ones(height, width, dtype=x.dtype)
    keep[max(top, 0) : top + tall, max(left, 0) : left + wide] = 0
    return x * keep


def slow_affine(x: Tensor, matrix: list[list[float]]) -> Tensor:
    """Bilinear look-up, zero outside, at `matrix` times the place (column, row), both in -1..1 from edge to edge."""
    channels, height, width = x.shape
    out = torch.zeros_like(x)

    def pixel(c: int, i: int, j: int) -> Tensor:
        return x[c, i, j] if 0 <= i < height and 0 <= j < width else x.new_zeros(())

    for i in range(height):
        for j in range(width):
            at = ((2 * j + 1) / width - 1, (2 * i + 1) / height - 1)
            column = ((matrix[0][0] * at[0] + matrix[0][1] * at[1] + 1) * width - 1) / 2
            row = ((matrix[1][0] * at[0] + matrix[1][1] * at[1] + 1) * height - 1) / 2
            top, left = math.floor(row), math.floor(column)
            v, h = row - top, column - left
            for c in range(channels):
                upper = pixel(c, top, left) * (1 - h) + pixel(c, top, left + 1) * h
                lower = pixel(c, top + 1, left) * (1 - h) + pixel(c, top + 1, left + 1) * h
                out[c, i, j] = upper * (1 - v) + lower * v
    return out


def slow_scale(x: Tensor, u: list[float]) -> Tensor:
    s_y, s_x = (u[i] * (1.2 - 1 / 1.2) + 1 / 1.2 for i in (augment.SCALE_Y, augment.SCALE_X))
    return slow_affine(x, [[s_x, 0], [0, s_y]])


def slow_rotate(x: Tensor, u: list[float]) -> Tensor:
    angle = math.radians((2 * u[augment.ANGLE] - 1) * 15)
    return slow_affine(x, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


SLOW = {
    "flip": slow_flip,
    "color": slow_color,
    "crop": slow_crop,
    "scale": slow_scale,
    "rotate": slow_rotate,
    "cutout": slow_cutout,
}


def slow(operation: str, x: Tensor, uniform: Tensor) -> Tensor:
    return torch.stack([SLOW[operation](image, row) for image, row in zip(x, uniform.tolist(), strict=True)])


@SHAPES
@EVERY_OPERATION
def test_operation_equals_its_slow_reference(operation: str, shape: tuple[int, int, int]) -> None:
    x, uniform = images(shape), numbers()
    found = apply(x, (operation,), uniform)
    torch.testing.assert_close(found, slow(operation, x, uniform), rtol=1e-9, atol=1e-9)
    if (operation, shape[0]) != ("color", 1):
        assert not torch.equal(found, x)


@EVERY_OPERATION
def test_gradient_is_that_of_finite_differences(operation: str) -> None:
    x, uniform = images((3, 5, 4), count=2).requires_grad_(), numbers(3)[1:]
    torch.autograd.gradcheck(lambda pixels: apply(pixels, (operation,), uniform), x)


def test_all_operations_together_have_the_right_gradient() -> None:
    x, uniform = images((3, 5, 4), count=2).requires_grad_(), numbers(4)[2:]
    torch.autograd.gradcheck(lambda pixels: apply(pixels, OPERATIONS, uniform), x)


@SHAPES
def test_crop_gradient_is_that_of_pad_and_slice(shape: tuple[int, int, int]) -> None:
    """The backward pass is written by hand: it must be the adjoint of the forward one."""
    x, uniform = images(shape).requires_grad_(), numbers()
    weights = images(shape, seed=5)
    (found,) = torch.autograd.grad((apply(x, ("crop",), uniform) * weights).sum(), x)
    (expected,) = torch.autograd.grad((slow("crop", x, uniform) * weights).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3])
@EVERY_OPERATION
def test_gradient_reaches_every_pixel_that_stays_in_sight(operation: str, channels: int) -> None:
    """For each input pixel: the output changes with it exactly if the gradient says so."""
    x, uniform = images((channels, 7, 6), count=1), numbers(3)[2:]
    pixels = x.clone().requires_grad_()
    weights = images((channels, 7, 6), count=1, seed=9)
    (gradient,) = torch.autograd.grad((apply(pixels, (operation,), uniform) * weights).sum(), pixels)
    plain = apply(x, (operation,), uniform)
    moved = torch.zeros_like(x, dtype=torch.bool)
    for i in range(x.numel()):
        nudged = x.clone()
        nudged.view(-1)[i] += 1
        moved.view(-1)[i] = not torch.allclose(apply(nudged, (operation,), uniform), plain, rtol=0, atol=1e-9)
    assert torch.equal(gradient != 0, moved)
    assert moved.float().mean() > 0.4


# --- ranges


def at(value: float, *columns: int) -> Tensor:
    """One row of numbers that changes nothing (no brightness, saturation and contrast of 1) but in `columns`."""
    row = torch.full((1, COLUMNS), 0.5, dtype=torch.float64)
    row[:, list(columns)] = value
    return row


@pytest.mark.parametrize(
    ("column", "low", "high"), [(augment.BRIGHT, -0.5, 0.5), (augment.SATURATE, 0, 2), (augment.CONTRAST_AT, 0.5, 1.5)]
)
def test_colour_ranges_are_the_published_ones(column: int, low: float, high: float) -> None:
    """Brightness adds -.5 to .5; saturation and contrast multiply a distance to the mean by 0 to 2 and .5 to 1.5."""
    x = torch.tensor([-1.0, 0, 1], dtype=torch.float64).reshape(1, 3, 1, 1)  # mean 0, also per pixel
    for u, expected in ((0.0, low), (0.5, (low + high) / 2), (ALMOST_ONE, high)):
        found = apply(x, ("color",), at(u, column)).flatten().tolist()
        brightness = column == augment.BRIGHT
        assert found == pytest.approx([v + expected if brightness else v * expected for v in (-1, 0, 1)], abs=1e-6)


def test_contrast_is_taken_about_the_mean_of_each_image() -> None:
    x = torch.stack([torch.full((1, 2, 2), 3.0), torch.tensor([[[0.0, 2], [0, 2]]])])
    found = apply(x, ("color",), at(0.0, augment.CONTRAST_AT).float().expand(2, -1))
    torch.testing.assert_close(found, torch.stack([x[0], torch.tensor([[[0.5, 1.5], [0.5, 1.5]]])]))


@pytest.mark.parametrize(("side", "reach"), [(8, 1), (15, 2), (20, 3), (28, 4), (32, 4), (64, 8)])
def test_crop_shifts_by_every_whole_number_up_to_an_eighth_equally_often(side: int, reach: int) -> None:
    count = 10 * (2 * reach + 1)
    uniform = torch.full((count, COLUMNS), 0.5)
    uniform[:, augment.CROP_Y] = (torch.arange(count) + 0.5) / count
    x = torch.arange(1.0, side + 1).reshape(1, 1, side, 1).expand(count, 1, side, side)
    middle = side // 2
    shifts = middle + 1 - apply(x, ("crop",), uniform)[:, 0, middle, middle]
    assert Counter(shifts.int().tolist()) == dict.fromkeys(range(-reach, reach + 1), 10)


@pytest.mark.parametrize(("side", "size"), [(8, 4), (15, 8), (28, 14), (30, 15), (32, 16)])
def test_cutout_is_a_square_of_half_the_side_centred_anywhere(side: int, size: int) -> None:
    x = torch.ones(1, 1, side, side)
    whole = 1 - apply(x, ("cutout",), at(0.5, 0).float())[0, 0]
    assert whole.sum() == size**2 and whole.any(0).sum() == whole.any(1).sum() == size
    for u, corner in ((0.0, 0), (ALMOST_ONE, -1)):
        cut = 1 - apply(x, ("cutout",), at(u, augment.CUT_Y, augment.CUT_X).float())[0, 0]
        # Half the square, more or less a pixel, lies outside when its centre is at the border.
        assert cut[corner, corner] == 1 and abs(cut.sum().sqrt() - size / 2) <= 1


@pytest.mark.parametrize("u", [0.0, 0.25, 0.5, ALMOST_ONE])
def test_scale_and_rotation_ranges_are_the_published_ones(u: float) -> None:
    """Where a ramp along x reads 1, measured in its middle, after the look-up is stretched or turned."""
    side = 33
    ramp = (torch.arange(side, dtype=torch.float64) - 16).expand(1, 1, side, side)
    stretched = apply(ramp, ("scale",), at(u, augment.SCALE_X))[0, 0]
    assert (stretched[16, 17] - stretched[16, 16]).item() == pytest.approx(1 / 1.2 + u * (1.2 - 1 / 1.2))
    turned = apply(ramp, ("rotate",), at(u, augment.ANGLE))[0, 0]
    across, along = (turned[16, 17] - turned[16, 16]).item(), (turned[17, 16] - turned[16, 16]).item()
    assert math.degrees(math.atan2(-along, across)) == pytest.approx(-15 + 30 * u, abs=1e-5)


def test_flip_has_even_odds() -> None:
    x = torch.tensor([0.0, 1]).expand(2, 1, 1, 2)
    below, above = at(0.49999, augment.FLIP), at(0.5, augment.FLIP)
    assert apply(x, ("flip",), torch.cat([below, above])).squeeze().tolist() == [[1, 0], [0, 1]]


def test_operations_apply_in_the_order_of_the_condensation_codes() -> None:
    """Flip, colour, the geometric one, cutout: a hole stays at zero, and so does what moves in from outside."""
    x, uniform = images((3, 8, 8)) + 3, numbers()
    for geometric in EXCLUSIVE:
        expected = x
        for operation in ("flip", "color", geometric, "cutout"):
            expected = apply(expected, (operation,), uniform)
        names = ("cutout", geometric, "color", "flip")
        assert torch.equal(apply(x, names, uniform), expected)


def test_no_operation_leaves_images_alone() -> None:
    assert torch.equal(apply(images((3, 8, 8)), (), numbers()), images((3, 8, 8)))


# --- drawing


def test_one_drawn_row_does_the_same_to_batches_of_different_size(seeded: torch.Generator) -> None:
    """Real and synthetic images of a class share a row; each image must come out as if it were alone."""
    real, synthetic = images((3, 8, 8), 5).float(), images((3, 8, 8), 2, seed=3).float()
    synthetic[1] = real[4]
    row = Draw.row(seeded)
    assert row.shape == (1, COLUMNS)
    for operations in ((name,) for name in OPERATIONS):
        ours = apply(synthetic, operations, row.expand(2, -1))
        theirs = apply(real, operations, row.expand(5, -1))
        assert torch.equal(ours[1], theirs[4])
        torch.testing.assert_close(ours[:1], apply(synthetic[:1], operations, row))


def test_draw_repeats_each_class_row_for_its_successive_images() -> None:
    draw_ = Draw(("flip",), torch.arange(2.0)[:, None].expand(2, COLUMNS))
    repeated = draw_.repeat(3)
    assert repeated.operations == ("flip",)
    assert repeated.uniform[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_images_of_a_batch_get_numbers_of_their_own(seeded: torch.Generator) -> None:
    drawn = draw(Strategy(OPERATIONS), 6, seeded)
    assert drawn.uniform.shape == (6, COLUMNS)
    assert drawn.uniform.unique().numel() == 6 * COLUMNS
    assert drawn.uniform.min() >= 0 and drawn.uniform.max() < 1


def test_every_parameter_has_a_number_of_its_own() -> None:
    """A shared column would tie, say, the shift down to the shift right."""
    used = {
        "flip": {"FLIP"},
        "color": {"BRIGHT", "SATURATE", "CONTRAST_AT"},
        "crop": {"CROP_Y", "CROP_X"},
        "cutout": {"CUT_Y", "CUT_X"},
        "scale": {"SCALE_Y", "SCALE_X"},
        "rotate": {"ANGLE"},
    }
    x = images((3, 8, 8), 1)
    for operation, columns in used.items():
        plain = apply(x, (operation,), at(0.5, 0))
        for name in set().union(*used.values()):
            changed = apply(x, (operation,), at(0.1, getattr(augment, name)))
            assert torch.equal(changed, plain) == (name not in columns), (operation, name)


def drawn_operations(strategy: Strategy, times: int = 300) -> list[tuple[str, ...]]:
    return [draw_operations(strategy, generator(0, "operations", step)) for step in range(times)]


def test_idc_rule_applies_flip_colour_cutout_and_one_of_the_others() -> None:
    drawn = drawn_operations(Strategy.parse("color_crop_cutout_flip_scale_rotate"))
    assert all(set(names[:-1]) == {"flip", "color", "cutout"} for names in drawn)
    counts = Counter(names[-1] for names in drawn)
    assert set(counts) == {"crop", "scale", "rotate"}
    assert all(abs(count - 100) < 35 for count in counts.values())  # four deviations


def test_idc_rule_takes_what_is_listed_only() -> None:
    assert set(drawn_operations(Strategy.parse("color_crop"), 20)) == {("color", "crop")}
    assert set(drawn_operations(Strategy.parse("color_cutout"), 20)) == {("color", "cutout")}


def test_single_rule_applies_one_operation_per_batch() -> None:
    drawn = drawn_operations(Strategy.parse("color_crop_cutout_flip_scale_rotate", single=True))
    counts = Counter(names for names in drawn)
    assert set(counts) == {(name,) for name in OPERATIONS}
    assert all(abs(count - 50) < 27 for count in counts.values())  # four deviations


@pytest.mark.parametrize("single", [False, True])
def test_nothing_flips_where_mirror_images_change_the_label(single: bool) -> None:
    strategy = Strategy.parse("color_crop_cutout_flip_scale_rotate", mirror=False, single=single)
    assert strategy.operations == ("color", "crop", "cutout", "scale", "rotate")
    assert strategy.single is single
    assert not any("flip" in names for names in drawn_operations(strategy))


def test_strategy_without_an_operation_keeps_the_rule() -> None:
    assert Strategy.parse("color_crop_cutout", single=True).without("cutout", "flip") == Strategy(
        ("color", "crop"), single=True
    )


@pytest.mark.parametrize("text", ["", "none"])
@pytest.mark.parametrize("single", [False, True])
def test_no_augmentation_draws_no_operation(text: str, single: bool, seeded: torch.Generator) -> None:
    assert draw(Strategy.parse(text, single=single), 2, seeded).operations == ()


@pytest.mark.parametrize("text", ["color_blur", "crop_", "colour"])
def test_unknown_operation_is_refused_with_the_known(text: str) -> None:
    known = "color, crop, cutout, flip, scale, rotate of images, time_shift, gain, mask of sound, or none"
    with pytest.raises(UsageError, match=rf"in '{text}'.*{known}"):
        Strategy.parse(text)


# --- sound


def test_a_sound_moves_in_time_as_a_ring() -> None:
    x, u = images((1, 6, 16), 5), numbers(5)
    moved = apply(x, ("timeshift",), u)
    for sound, found, row in zip(x, moved, u.tolist(), strict=True):
        by = math.floor(row[augment.CROP_X] * 5) - 2  # a reach of an eighth of 16
        assert torch.equal(found, torch.roll(sound, by, dims=2))


def test_gain_adds_to_a_log_spectrogram() -> None:
    x, u = images((1, 6, 16)), numbers()
    torch.testing.assert_close(apply(x, ("gain",), u), x + (u[:, augment.BRIGHT] - 0.5)[:, None, None, None])


def test_a_mask_hides_a_quarter_of_the_frequencies_and_of_the_time() -> None:
    x, u = torch.ones(50, 1, 8, 16, dtype=torch.float64), numbers(50)
    hidden = (apply(x, ("mask",), u) == 0)[:, 0]
    assert (hidden.all(2).sum(1) == 2).all() and (hidden.all(1).sum(1) == 4).all()
    assert (hidden.sum((1, 2)) == 2 * 16 + 4 * 8 - 2 * 4).all()
    starts = {int(h.all(1).nonzero()[0]) for h in hidden}
    assert min(starts) == 0 and max(starts) == 6


def test_gradients_pass_through_the_operations_of_sound() -> None:
    x = images((1, 6, 8), 2).requires_grad_()
    u = numbers(2)
    assert torch.autograd.gradcheck(lambda x: apply(x, ("timeshift", "gain", "mask"), u), x)


def test_the_operations_of_sound_are_one_word_and_stay_with_sound() -> None:
    assert Strategy.parse("time_shift_gain_mask").operations == augment.SOUND_OPERATIONS
    spec = DatasetSpec("clips", (1, 8, 8), ("a",), (0.5,), (0.2,), False, "f", modality="sound")
    assert strategy_for(spec, "time_shift_gain_mask", single=True).operations == augment.SOUND_OPERATIONS
    assert strategy_for(spec, "color_crop_gain").operations == ("gain",)
    assert strategy_for(replace(spec, modality="image"), "crop_gain").operations == ("crop",)
    with pytest.raises(UsageError, match=r"known are color, .* of images, time_shift, gain, mask of sound"):
        Strategy.parse("time_gain")
