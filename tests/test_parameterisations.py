"""What every way of storing samples keeps. A new one adds its cases to `WAYS`; a test finds it missing there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import potstill
from potstill.errors import DataError, UsageError
from potstill.learning.pool import untrained
from potstill.methods import Problem
from potstill.methods.dsdm_plus import DSDMPlus, DSDMPlusConfig
from potstill.methods.real_features import BankConfig
from potstill.recipe import resolve
from potstill.run.distil import read_run_recipe
from potstill.run.store import RunStore
from potstill.sets.export import export, read_pt
from potstill.sets.parameterisations import PARAMETERISATIONS, Parameterisation, Tiles, likely, parse, suited
from potstill.sets.parameterisations.dct import DCT
from potstill.sets.parameterisations.half_chroma import HalfChroma
from potstill.sets.read import read_set
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import DatasetSpec, LabelledDataset, Split
from potstill.tensors import pack, read_tensors

#: Several sizes of each: what is asked for, and the shapes of samples that it takes.
GRAY, COLOUR, SPECTROGRAM = (1, 28, 28), ((3, 32, 32), (3, 64, 64)), (1, 40, 51)
EVERY = (GRAY, SPECTROGRAM, *COLOUR)
WAYS: dict[str, tuple[tuple[int, ...], ...]] = {
    "tiles": EVERY,
    "tiles:rows=2,columns=2": EVERY,
    "tiles:rows=3,columns=2": EVERY,
    "tiles:rows=4,columns=4": EVERY,
    "half_chroma:luma=10,chroma=5": COLOUR,
    "half_chroma:luma=16": COLOUR,
    "dct:luma=100,chroma=25": EVERY,
    "dct:luma=30,chroma=7,scale=1": EVERY,
}
CASES = [(text, shape) for text, shapes in WAYS.items() for shape in shapes]
every_way = pytest.mark.parametrize(("text", "shape"), CASES, ids=str)
IPC = 2


def spec_of(shape: tuple[int, ...], value_range: tuple[float, float] = (0.0, 1.0)) -> DatasetSpec:
    channels = shape[0]
    mean, std = (0.5,) * channels, (0.25,) * channels
    return DatasetSpec("waves", shape, ("a", "b"), mean, std, True, "waves-1", value_range)  # type: ignore[arg-type]


def waves(shape: tuple[int, ...], count: int = 96, low: float = 0.2, high: float = 0.8) -> Tensor:
    """Smooth random samples `(count, C, H, W)` with grain, between `low` and `high`."""
    draws = torch.Generator().manual_seed(4)
    coarse = torch.rand(count, shape[0], 5, 5, generator=draws, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    grain = torch.rand(count, *shape, generator=draws, dtype=torch.float64)
    return low + (high - low) * (0.8 * smooth + 0.2 * grain)


def fitted(text: str, spec: DatasetSpec) -> Parameterisation:
    samples = waves(spec.shape).float()
    return parse(text).for_data(Split(samples, torch.arange(len(samples)) % 2), spec)


def test_every_registered_way_is_tried_here() -> None:
    assert {text.partition(":")[0] for text in WAYS} == {*PARAMETERISATIONS}


@every_way
def test_no_stored_numbers_come_nearer_than_the_encoded_ones(text: str, shape: tuple[int, ...]) -> None:
    """Decoding is affine within the value range, so the distance is least where its gradient is zero."""
    spec = spec_of(shape, (-100.0, 100.0))
    way = fitted(text, spec)
    count = way.samples(1, spec)
    samples = waves(shape, count)[None]
    stored = way.encode(samples, spec).requires_grad_()
    error = (way.decode(stored, spec) - samples).square().sum()
    (slope,) = torch.autograd.grad(error, stored)
    assert slope.abs().max() < 1e-8 * max(1.0, error.item())


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("tiles:rows=2,columns=2", (1, 8, 8)),
        ("tiles:rows=2,columns=3", (1, 14, 14)),
        ("half_chroma:luma=4,chroma=2", (3, 8, 8)),
        ("dct:luma=9,chroma=4", (3, 8, 8)),
        ("dct:luma=9", (1, 8, 8)),
    ],
)
def test_encoding_is_what_lstsq_finds(text: str, shape: tuple[int, ...]) -> None:
    spec = spec_of(shape, (-100.0, 100.0))
    way = fitted(text, spec)
    samples = waves(shape, way.samples(1, spec))[None]
    stored = torch.zeros(1, *way.stored_shape(1, spec), dtype=torch.float64)

    def flat(numbers: Tensor) -> Tensor:
        return way.decode(numbers.reshape(stored.shape), spec).flatten()

    matrix = torch.autograd.functional.jacobian(flat, stored.flatten())
    best = torch.linalg.lstsq(matrix, (samples.flatten() - flat(stored.flatten()))[:, None]).solution[:, 0]
    torch.testing.assert_close(way.encode(samples, spec).flatten(), best, rtol=1e-6, atol=1e-6)


@every_way
def test_gradients_reach_every_stored_number(text: str, shape: tuple[int, ...]) -> None:
    spec = spec_of(shape)
    way = fitted(text, spec)
    count = way.samples(IPC, spec)
    samples = waves(shape, 2 * count, 0.4, 0.6).reshape(2, count, *shape)
    stored = way.encode(samples, spec).requires_grad_()
    decoded = way.decode(stored, spec)
    assert decoded.shape == samples.shape
    weight = torch.rand(decoded.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((decoded * weight).sum(), stored)
    assert (gradient != 0).all()


@every_way
def test_decoded_values_stay_in_range_and_clamping_changes_none_of_range(text: str, shape: tuple[int, ...]) -> None:
    spec = spec_of(shape)
    way = fitted(text, spec)
    count = way.samples(IPC, spec)
    stored = way.encode(waves(shape, count, -1.0, 2.0)[None], spec)
    decoded = way.decode(way.clamp(stored, spec), spec)
    assert decoded.min() >= 0 and decoded.max() <= 1
    inside = way.encode(waves(shape, count)[None], spec)
    assert torch.equal(way.clamp(way.clamp(inside, spec), spec), way.clamp(inside, spec))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(CASES), st.integers(1, 60), st.integers(2, 300))
def test_the_budget_is_never_exceeded(case: tuple[str, tuple[int, ...]], ipc: int, classes: int) -> None:
    text, shape = case
    spec = replace(spec_of(shape), classes=tuple(map(str, range(classes))))
    way = fitted(text, spec)
    shape_stored = way.stored_shape(ipc, spec)
    used = classes * math.prod(shape_stored) + way.shared_numbers
    assert used <= classes * ipc * math.prod(shape)
    assert way.samples(ipc, spec) >= ipc or "luma" in text


def test_the_numbers_of_samples_that_the_papers_budgets_hold() -> None:
    cifar = replace(spec_of((3, 32, 32)), classes=tuple("0123456789"))
    held = {
        ("half_chroma:luma=10,chroma=5", 1): 20,
        ("half_chroma:luma=16,chroma=8", 10): 80,
        ("half_chroma:luma=8", 1): 32,
        ("dct:luma=100,chroma=25", 1): 20,
        ("dct:luma=256,chroma=64", 10): 79,
        ("tiles:rows=4,columns=4", 1): 16,
    }
    assert {key: parse(key[0]).samples(key[1], cifar) for key in held} == held


def test_dct_keeps_the_positions_of_largest_squares(toy_dataset: LabelledDataset) -> None:
    """Samples that are sums of three known waves, of which the third hardly varies."""
    side, positions, sizes = 8, ((0, 0), (2, 1), (0, 5)), (3.0, 2.0, 0.01)
    grid = torch.arange(side, dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    samples = torch.zeros(64, 1, side, side, dtype=torch.float64)
    for (i, j), size in zip(positions, sizes, strict=True):
        wave = torch.outer(torch.cos(math.pi * i * (2 * grid + 1) / 16), torch.cos(math.pi * j * (2 * grid + 1) / 16))
        samples += size * torch.randn(64, 1, 1, 1, generator=draws, dtype=torch.float64) * wave
    way = DCT(luma=2, chroma=0).fitted(Split(samples, torch.zeros(64, dtype=torch.long)), toy_dataset.spec)
    assert way.luma_positions == (0, 2 * side + 1) and way.chroma_positions == ()
    assert way.shared_numbers == 2


def test_a_unit_of_what_dct_stores_moves_a_sample_by_its_scale() -> None:
    spec = spec_of((3, 32, 32), (-100.0, 100.0))
    way = fitted("dct:luma=20,chroma=5,scale=3", spec)
    units = torch.eye(30, dtype=torch.float64)[None]
    pictures = way.decode(units, spec).flatten(2)[0]
    torch.testing.assert_close(pictures @ pictures.T, 9 * torch.eye(30, dtype=torch.float64))


@every_way
def test_a_unit_moves_samples_by_one_on_the_normalised_scale(text: str, shape: tuple[int, ...]) -> None:
    std = (0.2, 0.25, 0.4)[: shape[0]]
    spec = replace(spec_of(shape, (-100.0, 100.0)), std=std)
    way = fitted(text, spec)
    stored = torch.zeros(1, *way.stored_shape(IPC, spec), dtype=torch.float64)
    units = way.units(spec).double().expand(stored.shape[1:])
    scale = torch.tensor(std, dtype=torch.float64)[:, None, None]
    place = tuple(int(torch.randint(n, (), generator=torch.Generator().manual_seed(1))) for n in stored.shape[1:])
    moved = stored.clone()
    moved[(0, *place)] += units[place]
    length = ((way.decode(moved, spec) - way.decode(stored, spec)) / scale).norm()
    if isinstance(way, Tiles):  # stored pixels, whose size on the screen does not count
        assert units[place] == pytest.approx(std[place[1]])
        assert way.factor != (1, 1) or length == pytest.approx(1.0)
    else:
        assert length == pytest.approx(1.0)


def test_what_data_cannot_be_stored_so_is_refused_in_a_line() -> None:
    gray, colour = spec_of(GRAY), spec_of((3, 32, 32))
    for way, spec, complaint in (
        (HalfChroma(10, 5), gray, "waves has 1 channel, it needs 3 colours"),
        (HalfChroma(40, 5), colour, "luma=40, chroma=5 on images of 32x32: sides go up to 32"),
        (DCT(2000), colour, "2000 coefficients on 32x32, up to 1024"),
        (DCT(10), spec_of((2, 8, 8)), "2 channels, it takes 1 or 3"),
        (Tiles(9, 1), colour, "factor=9,1 on images of 32x32"),
    ):
        with pytest.raises(UsageError, match=complaint):
            way.check(spec)


def test_a_budget_without_room_for_one_sample_is_refused(toy_colour: LabelledDataset) -> None:
    way = parse("dct:luma=256,chroma=256").for_data(toy_colour.train, toy_colour.spec)
    with pytest.raises(UsageError, match=r"ipc=1: no sample stored as dct 256 .* raise ipc or store less"):
        initial_images(toy_colour.train, toy_colour.spec, ipc=1, parameterisation=way)


SMALL = ["tiles:rows=2,columns=2", "half_chroma:luma=8", "dct:luma=24,chroma=6"]


def problem_of(text: str, data: LabelledDataset, **changes) -> Problem:
    pool = untrained(data.spec, members=2)
    way = parse(text).for_data(data.train, data.spec)
    return Problem(
        **{"spec": data.spec, "train": data.train, "ipc": 1, "parameterisation": way, "pool": pool, **changes}
    )


@pytest.mark.parametrize("text", SMALL)
def test_a_run_that_goes_on_equals_one_that_was_never_cut(text: str, toy_colour: LabelledDataset) -> None:
    method = DSDMPlus(DSDMPlusConfig(steps=4, real_batch=8, bank=BankConfig(draws=2)))
    whole, problem = method.init(problem_of(text, toy_colour)), problem_of(text, toy_colour)
    start = whole.images
    for _ in range(4):
        whole, _ = method.step(problem, whole)
    cut = method.init(problem)
    for _ in range(2):
        cut, _ = method.step(problem, cut)
    again, fresh = type(cut).from_tensors(cut.to_tensors(), "cpu"), problem_of(text, toy_colour)
    for _ in range(2):
        again, _ = DSDMPlus(method.config).step(fresh, again)
    assert method.result(problem, whole).to_bytes() == method.result(fresh, again).to_bytes()
    assert (whole.images != start).double().mean() > 0.9


def distilled(text: str, data: LabelledDataset, **changes) -> SyntheticSet:
    problem = problem_of(text, data, **changes)
    return problem.synthetic_set(problem.initial_images(), method="start")


@pytest.mark.parametrize("text", SMALL)
@pytest.mark.parametrize("kind", ["mix", "noise"])
def test_a_start_is_near_what_it_stands_for_and_a_shard_starts_like_the_whole(
    text: str, kind: str, toy_colour: LabelledDataset
) -> None:
    way = parse(text).for_data(toy_colour.train, toy_colour.spec)
    given = {"ipc": 1, "parameterisation": way, "kind": kind}
    whole = initial_images(toy_colour.train, toy_colour.spec, **given)
    shard = initial_images(toy_colour.train, toy_colour.spec, classes=(1,), **given)
    assert torch.equal(whole[1:2], shard)
    samples = way.decode(whole, toy_colour.spec)
    assert samples.shape == (3, way.samples(1, toy_colour.spec), *toy_colour.spec.shape)
    assert samples.isfinite().all() and samples.std() > 0.02 and 0.1 < samples.mean() < 0.6


@pytest.mark.parametrize("text", SMALL)
def test_the_exact_file_holds_every_way(text: str, toy_colour: LabelledDataset, tmp_path: Path) -> None:
    exact = distilled(text, toy_colour)
    path = export(exact, tmp_path / "set.safetensors", "safetensors")
    again = read_set(path)
    assert torch.equal(again.images, exact.images) and again.parameterisation == exact.parameterisation
    assert torch.equal(again.decoded().images, exact.decoded().images)
    assert again.to_bytes() == exact.to_bytes() and (again.ipc, len(again)) == (1, len(exact))
    assert again.numbers_stored == exact.images.numel() + exact.way.shared_numbers
    assert again.numbers_stored <= 3 * 3 * 16 * 16
    assert again.bytes_stored == 4 * exact.images.numel() + 2 * exact.way.shared_numbers


#: Scales of each way: a channel's, a plane's, a coefficient's.
SCALES = {"tiles": lambda way, spec: spec.shape[0], "half_chroma": lambda way, spec: 3, "dct": DCT.numbers}


def stored(text: str, shape: tuple[int, ...]) -> SyntheticSet:
    """Two classes of waves, stored exactly."""
    spec = spec_of(shape)
    way = fitted(text, spec)
    samples = waves(shape, 2 * way.samples(1, spec)).float().unflatten(0, (2, -1))
    return SyntheticSet(way.encode(samples, spec), spec, way, ipc=1)


@every_way
def test_stored_numbers_in_eight_bits_are_within_half_a_level_of_their_group(
    text: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    exact = stored(text, shape)
    rounded = exact.quantised(8)
    groups = exact.way.scale_groups(exact.spec).expand(exact.images.shape)
    assert rounded.levels is not None and rounded.levels.scale.shape == (SCALES[exact.way.name](exact.way, exact.spec),)
    for group in groups.unique():
        of, back = exact.images[groups == group].double(), rounded.images[groups == group].double()
        step = (of.max() - of.min()) / 255
        assert (of - back).abs().max() <= 0.5001 * step + 1e-6 * of.abs().max()
        assert rounded.levels.levels[groups == group].unique()[[0, -1]].tolist() == [0, 255] or of.numel() == 1
    path = export(rounded, tmp_path / "set.safetensors", "safetensors")
    again = SyntheticSet.load(path)
    assert torch.equal(again.images, rounded.images) and again.to_bytes() == rounded.to_bytes()
    assert torch.equal(again.decoded().images, exact.way.decode(rounded.images, exact.spec).flatten(0, 1))
    scales = 2 * len(rounded.levels.scale)
    assert again.bytes_stored == exact.images.numel() + 4 * scales + 2 * exact.way.shared_numbers
    assert again.numbers_stored == exact.numbers_stored + scales and again.stored_bits == 8
    assert again.provenance["stored_bits"] == "8"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + exact.images.numel() + 4 * scales + 8 * len(exact.classes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_few_bits_are_packed_without_gaps_and_read_back(bits: int, tmp_path: Path) -> None:
    rounded = stored("dct:luma=9", (1, 8, 8)).quantised(bits)
    assert rounded.levels is not None and rounded.levels.levels.max() == 2**bits - 1
    again = SyntheticSet.load(export(rounded, tmp_path / "set.safetensors", "safetensors"))
    assert torch.equal(again.images, rounded.images) and again.stored_bits == bits
    assert rounded.bytes_stored == math.ceil(rounded.images.numel() * bits / 8) + 8 * 9 + 2 * 9


def test_a_group_of_equal_numbers_and_one_far_from_zero_are_kept() -> None:
    spec = spec_of((2, 4, 4), (-1e6, 1e6))
    flat, far = torch.full((2, 1, 4, 4), 0.3), torch.linspace(9e5, 9e5 + 255, 32).reshape(2, 1, 4, 4)
    exact = SyntheticSet(torch.stack([flat, far], dim=2), spec)
    back = exact.quantised(8).images
    assert torch.equal(back[:, :, 0], exact.images[:, :, 0])
    assert (back[:, :, 1] - exact.images[:, :, 1]).abs().max() <= 0.5 + 2**-4


def test_what_cannot_be_quantised_is_refused_in_a_line() -> None:
    exact = stored("tiles", (1, 8, 8))
    for bits in (0, 9):
        with pytest.raises(UsageError, match=f"stored bits {bits}: need a whole number of 1 to 8"):
            exact.quantised(bits)
    with pytest.raises(DataError, match="NaN or infinite"):
        replace(exact, images=exact.images / 0).quantised()
    with pytest.raises(UsageError, match="images are not those of the levels"):
        replace(exact.quantised(), images=exact.images)


def test_pictures_show_each_stored_number_once() -> None:
    shape = (3, 32, 32)
    for text, size in (("half_chroma:luma=10,chroma=5", (1, 10, 15)), ("dct:luma=100,chroma=25", None)):
        exact = stored(text, shape)
        numbers, seen = exact.images[0, 0], exact.way.pictures(exact.images, exact.spec)[0, 0]
        assert seen.shape == size or (size is None and seen.shape[2] == 3 * seen.shape[1])
        around_gray = numbers if size is None else numbers[100:]
        luma = numbers[:0] if size is None else numbers[:100]
        rest = torch.full((seen.numel() - len(numbers),), 0.5)
        expected = torch.cat([luma, around_gray + 0.5, rest])
        torch.testing.assert_close(seen.flatten().sort().values, expected.sort().values)
    tiled = stored("tiles:rows=2,columns=2", shape)
    assert torch.equal(tiled.way.pictures(tiled.images, tiled.spec), tiled.images)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("levels", lambda x: x[:-1]),
        ("levels", lambda x: x.float()),
        ("scale", lambda x: x[:-1]),
        ("scale", lambda x: x / 0),
        ("offset", lambda x: x.double()),
        ("offset", None),
    ],
)
def test_a_file_of_levels_that_cannot_be_is_a_data_error(
    name: str, damage: Callable[[Tensor], Tensor] | None, tmp_path: Path
) -> None:
    content = stored("half_chroma:luma=4", (3, 8, 8)).quantised().to_bytes()
    path = tmp_path / "distilled.safetensors"
    path.write_bytes(content)
    tensors, facts = read_tensors(path, "set", "")
    changed = {key: damage(x) if key == name and damage else x for key, x in tensors.items() if damage or key != name}
    path.write_bytes(pack(changed, facts))
    with pytest.raises(DataError, match=f"not a distilled set written by potstill .*{name}"):
        SyntheticSet.load(path)


@pytest.mark.parametrize("text", SMALL[1:])
def test_forms_of_images_hold_the_decoded_samples_and_say_so(
    text: str, toy_colour: LabelledDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = distilled(text, toy_colour)
    for form in ("folder", "huggingface", "pt-data", "pt"):
        caplog.clear()
        path = export(exact, tmp_path / form, form)
        assert f"the form {form} holds images: the decoded samples of {exact.way.describe()} are written" in caplog.text
    caplog.clear()
    export(exact, tmp_path / "exact", "safetensors")
    assert not caplog.text
    again = read_pt(path, toy_colour.spec)
    torch.testing.assert_close(again.images.flatten(0, 1), exact.decoded().images)
    files = list((tmp_path / "folder").rglob("*.png"))
    assert len(files) == len(exact)


@pytest.mark.parametrize(
    "damage", [{"name": "wavelets"}, {"name": "dct", "lumen": 3}, {"name": "tiles", "rows": "two"}, ["dct"], {}]
)
def test_a_file_of_an_unknown_way_is_a_data_error(
    damage: object, toy_colour: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = distilled("tiles", toy_colour)
    monkeypatch.setattr(Tiles, "to_json", lambda self: damage)
    path = tmp_path / "distilled.safetensors"
    path.write_bytes(exact.to_bytes())
    with pytest.raises(DataError, match="not a distilled set written by potstill"):
        SyntheticSet.load(path)


# --- what is stored where nothing is said


def test_what_is_likely_goes_by_channels_ipc_and_side() -> None:
    colour = spec_of((3, 32, 32))
    assert likely(1, colour)[:2] == ["half_chroma:luma=10,chroma=5", "dct:luma=100,chroma=25"]
    assert likely(10, colour)[:2] == ["half_chroma:luma=16,chroma=8", "dct:luma=256,chroma=64"]
    assert likely(10, colour)[2:] == likely(1, colour)[:2]
    assert likely(1, spec_of((1, 28, 28))) == ["dct:luma=81,chroma=0", "dct:luma=196,chroma=0"]
    assert likely(1, spec_of((3, 8, 8))) == ["half_chroma:luma=4,chroma=2", "dct:luma=16,chroma=4"]
    assert likely(10, spec_of((2, 32, 32))) == [] == likely(10, spec_of((3, 3, 40)))


def test_colour_is_stored_at_half_chroma_where_the_smallest_class_can_start_it() -> None:
    colour = spec_of((3, 32, 32))
    assert suited(10, colour, images=80) == "half_chroma:luma=16,chroma=8"
    assert suited(10, colour, images=79) == "dct:luma=256,chroma=64"
    assert suited(10, colour, images=78) == suited(10, spec_of(GRAY), images=40) == "tiles"
    assert suited(10, colour, images=39) == suited(10, spec_of((1, 7, 9)), images=6000) == "tiles:rows=1,columns=1"


def test_few_gray_images_are_stored_as_coefficients_and_sounds_as_tiles() -> None:
    gray = spec_of((1, 28, 28))
    assert suited(4, gray, images=38) == "dct:luma=81,chroma=0"
    assert suited(1, gray, images=8) == "dct:luma=196,chroma=0"  # nine samples of 81 would need nine images
    assert suited(5, gray, images=6000) == suited(1, replace(gray, modality="sound"), images=800) == "tiles"


def test_dsdm_plus_alone_stores_what_suits_the_data_and_a_factor_means_tiles(toy_colour: LabelledDataset) -> None:
    asked = resolve({"method": "dsdm_plus", "ipc": 1})
    assert asked.parameterisation == "suited" and resolve({"method": "dsdm"}).parameterisation == "tiles"
    settled = asked.on(toy_colour)
    assert settled.parameterisation == "half_chroma:luma=6,chroma=3"
    named = resolve({"method": "dsdm_plus", "ipc": 1, "parameterisation": "half_chroma:luma=6,chroma=3"})
    assert settled.hash() == named.on(toy_colour).hash()
    with pytest.raises(UsageError, match="parameterisation=suited: potstill distill and compare settle it"):
        asked.way()
    for over in ({"factor": 3}, {"parameterisation": "tiles", "factor": [3, 3]}):
        tiles = resolve({"method": "dsdm_plus"}, {"parameterisation": "half_chroma:luma=6,chroma=3"}, over)
        assert tiles.way() == Tiles(3, 3)
    assert resolve({"factor": 3}, {"parameterisation": "dct:luma=9"}).way() == DCT(9)


def test_a_run_where_nothing_is_said_is_that_of_the_recipe_it_came_to(
    toy_colour: LabelledDataset, tmp_path: Path
) -> None:
    keys = {"ipc": 1, "pool.pretrained": False, "pool.members": 1, "runtime.device": "cpu", "runtime.compile": False}
    method = {"name": "dsdm_plus", "steps": 2, "real_batch": 8, "bank_draws": 1}
    given: dict[str, Any] = {"recipe": {**keys, "runtime.precision": "fp32", "method": method}, "cache": tmp_path}
    run = potstill.distill(toy_colour, **given, out=tmp_path / "run")
    assert run.synthetic.images.shape == (3, 14, 6 * 6 + 2 * 3 * 3)
    assert read_run_recipe(RunStore(tmp_path / "run")).hash() == run.recipe.hash()
    again = potstill.distill(toy_colour, **given, out=tmp_path / "run", resume=True)
    named = potstill.distill(toy_colour, **given, parameterisation="half_chroma:luma=6,chroma=3")
    assert torch.equal(again.synthetic.images, run.synthetic.images) and named.recipe.hash() == run.recipe.hash()
    assert torch.equal(named.synthetic.images, run.synthetic.images)
