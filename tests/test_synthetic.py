"""Partition and expansion, where images start, and the set as a torch data set and as a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.errors import DataError, UsageError
from potstill.seeding import generator
from potstill.sets.centres import nearest_to_centres, thumbnails
from potstill.sets.parameterisations.tiles import check_factor, decode
from potstill.sets.synthetic import SyntheticSet, initial_images
from potstill.spec import LabelledDataset, Split, to_pixels

FACTORS = pytest.mark.parametrize("factor", [(1, 1), (1, 2), (2, 2), (3, 2), (3, 3)], ids=str)


def slow_decode(image: Tensor, rows: int, columns: int) -> list[Tensor]:
    """Tiles of one image (C, H, W), row by row, cut out by slicing and enlarged one by one."""
    _, height, width = image.shape
    tall, wide = -(-height // rows), -(-width // columns)
    padded = image.new_full((len(image), tall * rows, wide * columns), 0.5)
    padded[:, :height, :width] = image
    tiles = [
        padded[:, i * tall : (i + 1) * tall, j * wide : (j + 1) * wide] for i in range(rows) for j in range(columns)
    ]
    return [F.interpolate(t[None], (height, width), mode="bilinear", align_corners=False)[0] for t in tiles]


# --- decode


@FACTORS
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 12, 6), (1, 15, 7)], ids=str)
def test_decode_equals_cutting_and_enlarging_tile_by_tile(
    factor: tuple[int, int], size: tuple[int, int, int], seeded: torch.Generator
) -> None:
    stored = torch.rand(2, 3, *size, generator=seeded)
    samples = decode(stored, factor)
    assert samples.shape == (2, 3, factor[0] * factor[1], *size)
    for k in range(2):
        for p in range(3):
            expected = [stored[k, p]] if factor == (1, 1) else slow_decode(stored[k, p], *factor)
            torch.testing.assert_close(samples[k, p], torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_decode_by_hand() -> None:
    """Tiles come out top left, top right, bottom left, bottom right; one pixel enlarged is a flat image."""
    image = torch.tensor([[[1.0, 2], [3, 4]]])
    assert decode(image, (2, 2)).flatten(1).tolist() == [[1] * 4, [2] * 4, [3] * 4, [4] * 4]
    # The columns 1 and 2 are tiles of one pixel's width; bilinear from 2 rows to 2 rows changes nothing.
    assert decode(image, (1, 2)).flatten(1).tolist() == [[1, 1, 3, 3], [2, 2, 4, 4]]
    assert decode(image, (2, 1)).flatten(1).tolist() == [[1, 2, 1, 2], [3, 4, 3, 4]]


def test_decode_pads_at_the_bottom_and_right_with_gray() -> None:
    """3 pixels at factor 2 are padded to 4; the last tile is one image pixel and three of padding, enlarged to 3x3."""
    last = decode(torch.full((1, 3, 3), 0.9), (2, 2))[3, 0]
    tile = torch.tensor([[[[0.9, 0.5], [0.5, 0.5]]]])
    torch.testing.assert_close(last, F.interpolate(tile, (3, 3), mode="bilinear", align_corners=False)[0, 0])


@FACTORS
@pytest.mark.parametrize("side", [8, 15])
def test_every_stored_pixel_gets_a_gradient_through_decode(factor: tuple[int, int], side: int) -> None:
    stored = torch.rand(2, 2, 3, side, side).requires_grad_()
    (gradient,) = torch.autograd.grad(decode(stored, factor).sum(), stored)
    assert (gradient > 0).all()


@pytest.mark.parametrize("factor", [(0, 1), (-1, -1)])
def test_a_factor_below_one_is_refused(factor: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=rf"factor={factor[0]},{factor[1]}: each must be at least 1"):
        check_factor(factor)


def test_a_factor_goes_as_far_as_tiles_of_four_pixels(toy_colour: LabelledDataset) -> None:
    assert check_factor((4, 4), toy_colour.spec) == (4, 4)
    with pytest.raises(UsageError, match="factor=5,1 on images of 16x16: tiles need at least 4 pixels a side"):
        check_factor((5, 1), toy_colour.spec)


# --- initial images


def numbered(data: LabelledDataset) -> LabelledDataset:
    """The toy data with images of one value each: image i of the file is all i (on the uint8 scale)."""
    train = data.train
    values = torch.arange(len(train), dtype=torch.uint8)[:, None, None, None]
    return replace(data, train=Split(values.expand_as(train.images).contiguous(), train.labels))


def file_order(data: LabelledDataset, cls: int) -> list[int]:
    return [i for i, label in enumerate(data.train.labels.tolist()) if label == cls]


def values(images: Tensor) -> list[int]:
    """The file positions of flat tiles."""
    return (images * 255).round().int().flatten().tolist()


def test_first_pick_takes_images_in_file_order(toy_dataset: LabelledDataset) -> None:
    data = numbered(toy_dataset)
    real = initial_images(data.train, data.spec, ipc=3, kind="real", pick="first")
    mixed = initial_images(data.train, data.spec, ipc=3, parameterisation=(2, 2), pick="first")
    assert real.shape == mixed.shape == (3, 3, 1, 8, 8)
    for c in range(3):
        assert values(real[c, :, 0, 0, 0]) == file_order(data, c)[:3]
        # Each 8x8 image holds four 4x4 ones, row by row.
        assert values(mixed[c, :, 0, ::4, ::4]) == file_order(data, c)[:12]


def test_seeded_pick_takes_distinct_images_of_the_class_at_random(toy_dataset: LabelledDataset) -> None:
    data = numbered(toy_dataset)
    picks = {}
    for seed in (0, 1):
        mixed = initial_images(data.train, data.spec, ipc=2, parameterisation=(2, 2), seed=seed)
        again = initial_images(data.train, data.spec, ipc=2, parameterisation=(2, 2), seed=seed)
        assert torch.equal(mixed, again)
        for c in range(3):
            picks[seed, c] = values(mixed[c, :, 0, ::4, ::4])
            assert len(set(picks[seed, c])) == 8
            assert set(picks[seed, c]) <= set(file_order(data, c))
            assert picks[seed, c] != file_order(data, c)[:8]
    positions = [[file_order(data, c).index(i) for i in chosen] for (_, c), chosen in picks.items()]
    assert len({tuple(p) for p in positions}) == 6  # classes do not share one permutation


def test_centres_pick_one_real_image_of_each_cluster(toy_dataset: LabelledDataset) -> None:
    """A class of four brightnesses, ten images of each that hardly differ."""
    draws = torch.Generator().manual_seed(3)
    members = torch.tensor(file_order(toy_dataset, 1))
    images = toy_dataset.train.images.clone()
    level = torch.tensor([20, 80, 140, 200]).repeat(10)
    images[members] = (level[:, None, None, None] + torch.randint(-3, 4, (40, 1, 8, 8), generator=draws)).byte()
    train = Split(images, toy_dataset.train.labels)
    for seed in range(3):
        keys = {"ipc": 4, "kind": "real", "pick": "centres", "seed": seed}
        picked = initial_images(train, toy_dataset.spec, **keys)
        assert torch.equal(picked, initial_images(train, toy_dataset.spec, **keys))
        real = {tuple(image) for image in (images[members] / 255).flatten(1).tolist()}
        assert {tuple(image) for image in picked[1].flatten(1).tolist()} <= real
        assert sorted(int(mean + 10) // 60 for mean in 255 * picked[1].mean(dim=(1, 2, 3))) == [0, 1, 2, 3]


def test_one_centre_is_the_mean_and_no_image_is_picked_twice() -> None:
    points = torch.tensor([[0.0], [1.0], [1.0], [2.0], [11.0]], dtype=torch.float64)
    assert nearest_to_centres(points, 1, generator(0, "centres")).tolist() == [3]  # the mean is 3
    for count in range(1, 6):
        rows = nearest_to_centres(points, count, generator(count, "centres")).tolist()
        assert len(set(rows)) == len(rows) == count
    same = nearest_to_centres(torch.zeros(4, 2, dtype=torch.float64), 3, generator(0, "centres"))
    assert sorted(same.tolist()) == [0, 1, 2]


def test_centres_leave_less_of_a_class_unexplained_than_chance(toy_colour: LabelledDataset) -> None:
    points = thumbnails(to_pixels(toy_colour.train.images))
    assert points.shape == (120, 3 * 8 * 8)

    def unexplained(rows: torch.Tensor) -> float:
        return float(torch.cdist(points, points[rows]).amin(dim=1).square().mean())

    by_chance = [unexplained(torch.randperm(120, generator=generator(s, "chance"))[:6]) for s in range(5)]
    by_centres = [unexplained(nearest_to_centres(points, 6, generator(s, "centres"))) for s in range(5)]
    assert max(by_centres) < min(by_chance)


@pytest.mark.parametrize(
    ("kind", "pick"), [("mix", "seeded"), ("mix", "centres"), ("real", "seeded"), ("noise", "first")]
)
def test_shard_of_classes_starts_like_the_whole(kind: str, pick: str, toy_dataset: LabelledDataset) -> None:
    keys = {"ipc": 2, "parameterisation": (2, 2), "kind": kind, "pick": pick, "seed": 4}
    whole = initial_images(toy_dataset.train, toy_dataset.spec, **keys)
    shard = initial_images(toy_dataset.train, toy_dataset.spec, **keys, classes=(2, 0))
    assert torch.equal(shard, whole[[2, 0]])
    assert not torch.equal(whole[0], whole[2])


def test_real_images_are_whole_whatever_the_factor(toy_dataset: LabelledDataset) -> None:
    plain = initial_images(toy_dataset.train, toy_dataset.spec, ipc=2, kind="real", pick="first")
    assert torch.equal(
        initial_images(toy_dataset.train, toy_dataset.spec, ipc=2, kind="real", pick="first", parameterisation=(2, 2)),
        plain,
    )
    assert torch.equal(plain[1, 0], toy_dataset.train.images[file_order(toy_dataset, 1)[0]] / 255)


def test_area_averages_and_nearest_drops_pixels(toy_dataset: LabelledDataset) -> None:
    """Half size: area is the mean of each 2x2 block, nearest its top left pixel."""
    source = toy_dataset.train.images[file_order(toy_dataset, 0)[0]] / 255
    tiles = {
        resize: initial_images(
            toy_dataset.train, toy_dataset.spec, ipc=1, parameterisation=(2, 2), pick="first", resize=resize
        )[0, 0, :, :4, :4]
        for resize in ("area", "nearest")
    }
    torch.testing.assert_close(tiles["area"], source.reshape(1, 4, 2, 4, 2).mean((2, 4)))
    assert torch.equal(tiles["nearest"], source[:, ::2, ::2])


@pytest.mark.parametrize("factor", [(1, 2), (2, 2), (3, 3)], ids=str)
def test_decoding_the_start_gives_back_the_chosen_images_smoothed(
    factor: tuple[int, int], toy_colour: LabelledDataset, seeded: torch.Generator
) -> None:
    """Tile t of stored image p must come from real image p * tiles + t: filling and cutting agree on the order."""
    tiles = factor[0] * factor[1]
    ramp, tilt = torch.linspace(0, 1, 16), torch.rand(120, 1, 1, 1, generator=seeded)
    smooth = (tilt * ramp[:, None] + (1 - tilt) * ramp) * torch.rand(120, 3, 1, 1, generator=seeded)
    train = Split(smooth, toy_colour.train.labels)
    samples = decode(initial_images(train, toy_colour.spec, ipc=2, parameterisation=factor, pick="first"), factor)
    for c in range(3):
        originals = smooth[file_order(toy_colour, c)[: 2 * tiles]].reshape(samples[c].shape)
        # 3 does not divide 16: the outermost tiles lose rows to the border, but their inside still agrees.
        error = (samples[c] - originals)[..., 3:9, 3:9].abs()
        confused = (samples[c] - originals.roll(1, dims=1))[..., 3:9, 3:9].abs()
        assert error.max() < 0.1
        assert confused.mean() > 2 * error.mean()


def test_start_of_indivisible_images_keeps_their_shape(toy_dataset: LabelledDataset) -> None:
    """28 pixels at factor 3 are tiles of 10, of which the last ones are cut to 8."""
    big = F.interpolate(toy_dataset.train.images.float() / 255, (28, 28))
    spec = replace(toy_dataset.spec, shape=(1, 28, 28))
    stored = initial_images(Split(big, toy_dataset.train.labels), spec, ipc=1, parameterisation=(3, 3), pick="first")
    assert stored.shape == (3, 1, 1, 28, 28)
    ninth = F.interpolate(big[file_order(toy_dataset, 0)[8]][None], (10, 10), mode="area")[0]
    torch.testing.assert_close(stored[0, 0, :, 20:, 20:], ninth[:, :8, :8])


def test_noise_fills_the_value_range(toy_dataset: LabelledDataset) -> None:
    spec = replace(toy_dataset.spec, value_range=(-3.0, 5.0))
    noise = initial_images(toy_dataset.train, spec, ipc=8, kind="noise")
    assert noise.shape == (3, 8, 1, 8, 8)
    assert -3 <= noise.min() < -2.9 and 4.9 < noise.max() <= 5
    assert noise.mean().item() == pytest.approx(1, abs=0.25)  # four deviations of 1536 draws


def test_too_few_images_are_refused_with_the_numbers(toy_dataset: LabelledDataset) -> None:
    """40 images a class: ipc 10 at factor 2 needs them all, ipc 11 four more."""
    initial_images(toy_dataset.train, toy_dataset.spec, ipc=10, parameterisation=(2, 2))
    with pytest.raises(DataError, match=r"class 'a' has 40 training images, 44 needed for ipc=11 at 2 x 2"):
        initial_images(toy_dataset.train, toy_dataset.spec, ipc=11, parameterisation=(2, 2))
    initial_images(toy_dataset.train, toy_dataset.spec, ipc=11, parameterisation=(2, 2), kind="real")
    initial_images(toy_dataset.train, toy_dataset.spec, ipc=50, kind="noise")


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"ipc": 0}, "ipc=0: need at least 1"),
        ({"ipc": 1, "parameterisation": (4, 1)}, "factor=4,1 on images of 8x8: tiles need at least 4 pixels"),
        ({"ipc": 1, "kind": "zeros"}, "init.kind='zeros': use one of mix, real, noise"),
        ({"ipc": 1, "pick": "last"}, "init.pick='last': use one of seeded, centres, first"),
        ({"ipc": 1, "resize": "cubic"}, "init.resize='cubic': use one of area, nearest"),
    ],
)
def test_wrong_choices_are_refused(keys: dict, complaint: str, toy_dataset: LabelledDataset) -> None:
    with pytest.raises(UsageError, match=complaint):
        initial_images(toy_dataset.train, toy_dataset.spec, **keys)


# --- the set


@pytest.fixture
def distilled(toy_colour: LabelledDataset, seeded: torch.Generator) -> SyntheticSet:
    """Two of three classes, two images each, four samples in an image."""
    images = torch.rand(2, 2, 3, 16, 16, generator=seeded) * 1.2 - 0.1
    facts = {"method": "dsdm", "seed": "0", "note": "naïve ✓"}
    return SyntheticSet(images, toy_colour.spec, (2, 2), (2, 0), facts)


def test_decoded_samples_come_class_by_class_with_their_labels(distilled: SyntheticSet) -> None:
    split = distilled.decoded()
    assert split.labels.tolist() == [2] * 8 + [0] * 8
    assert torch.equal(split.images[:4], decode(distilled.images[0, 0], (2, 2)))
    assert torch.equal(split.images[12:], decode(distilled.images[1, 1], (2, 2)))


def test_set_counts_samples_and_storage(distilled: SyntheticSet) -> None:
    assert len(distilled) == len(distilled.decoded()) == 16
    assert distilled.ipc == 2
    assert distilled.numbers_stored == 2 * 2 * 3 * 16 * 16


def test_set_serves_a_data_loader_with_normalised_samples(distilled: SyntheticSet) -> None:
    batches = list(DataLoader(distilled, batch_size=5))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 1]
    x, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    split = distilled.decoded()
    assert torch.equal(labels, split.labels)
    for c, (mean, std) in enumerate(zip(distilled.spec.mean, distilled.spec.std, strict=True)):
        torch.testing.assert_close(x[:, c], (split.images[:, c] - mean) / std)


def test_set_can_be_indexed_and_walked(distilled: SyntheticSet) -> None:
    sample, label = distilled[15]
    assert sample.shape == (3, 16, 16) and label == 0 and isinstance(label, int)
    assert len([label for _, label in distilled]) == 16


def test_images_that_do_not_fit_are_refused(distilled: SyntheticSet) -> None:
    with pytest.raises(UsageError, match="do not fit 3 classes of shape"):
        SyntheticSet(distilled.images, distilled.spec, (1, 1), (0, 1, 2))
    with pytest.raises(UsageError, match=r"do not fit 2 classes of shape \(3, 16, 16\)"):
        SyntheticSet(distilled.images[..., :8], distilled.spec)


@pytest.mark.parametrize("change", [torch.Tensor.numpy, torch.Tensor.byte, torch.Tensor.bool, list])
def test_images_that_are_no_pixels_are_refused(change: Any, distilled: SyntheticSet) -> None:
    with pytest.raises(UsageError, match=r"images of type .*: need a float tensor of pixels"):
        replace(distilled, images=change(distilled.images))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_saved_set_is_read_back_exactly(distilled: SyntheticSet, tmp_path: Path) -> None:
    path = write(tmp_path / "distilled.safetensors", distilled.to_bytes())
    for source in (path, str(path), tmp_path):
        found = SyntheticSet.load(source)
        assert torch.equal(found.images, distilled.images) and found.images.dtype == torch.float32
        assert found.spec == distilled.spec
        assert (found.factor, found.classes) == (distilled.factor, distilled.classes)
        assert found.provenance == distilled.provenance
        assert found.to_bytes() == distilled.to_bytes()


def test_what_else_was_learned_travels_with_the_set(distilled: SyntheticSet, tmp_path: Path) -> None:
    """As the step sizes of DD: saved under any name, read back as they were, and counted as storage."""
    rates, mask = torch.linspace(0.1, 0.3, 30), torch.tensor([[True, False]])
    taught = replace(distilled, extras={"images": mask, "step_sizes": rates})
    found = SyntheticSet.load(write(tmp_path / "distilled.safetensors", taught.to_bytes()))
    assert list(found.extras) == ["images", "step_sizes"] and torch.equal(found.images, distilled.images)
    assert torch.equal(found.extras["step_sizes"], rates) and torch.equal(found.extras["images"], mask)
    assert found.numbers_stored == distilled.numbers_stored + 32
    assert found.to_bytes() == taught.to_bytes() != distilled.to_bytes()


def test_same_set_gives_the_same_bytes(distilled: SyntheticSet) -> None:
    """safetensors alone writes the metadata in an order that changes from one call to the next."""
    reordered = dict(reversed(distilled.provenance.items()))
    twin = SyntheticSet(distilled.images.clone(), distilled.spec, (2, 2), (2, 0), reordered)
    assert len({source.to_bytes() for source in [distilled, twin] * 8}) == 1


def test_other_sets_give_other_bytes(distilled: SyntheticSet) -> None:
    changed = distilled.images.clone()
    changed[1, 1, 2, 15, 15] += 1e-6
    others = [
        replace(distilled, images=changed),
        replace(distilled, parameterisation=(1, 2)),
        replace(distilled, classes=(0, 2)),
        replace(distilled, provenance={}),
        replace(distilled, spec=replace(distilled.spec, mirror=True)),
    ]
    assert len({other.to_bytes() for other in [distilled, *others]}) == 6


def test_saved_bytes_stay_aligned_whatever_the_header(distilled: SyntheticSet) -> None:
    for length in range(9):
        content = replace(distilled, provenance={"note": "x" * length}).to_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0


def test_saving_a_view_saves_its_own_images(distilled: SyntheticSet, tmp_path: Path) -> None:
    view = replace(distilled, images=distilled.images.transpose(-1, -2))
    found = SyntheticSet.load(write(tmp_path / "v.safetensors", view.to_bytes()))
    assert torch.equal(found.images, view.images)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"distilled.safetensors: no distilled set here"):
        SyntheticSet.load(tmp_path)
    with pytest.raises(DataError, match=r"gone.safetensors: no distilled set here"):
        SyntheticSet.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_file_is_a_data_error_that_names_it(keep: int, distilled: SyntheticSet, tmp_path: Path) -> None:
    path = write(tmp_path / "cut.safetensors", distilled.to_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut.safetensors"):
        SyntheticSet.load(path)


def test_file_of_another_program_is_a_data_error(distilled: SyntheticSet, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    classes = torch.tensor(distilled.classes)
    good = {"spec": json.dumps(distilled.spec.to_json()), "factor": "[2, 2]", "provenance": "{}"}
    for tensors, metadata in [
        ({"weight": torch.zeros(3)}, None),
        ({"images": distilled.images, "classes": classes}, None),
        ({"images": distilled.images, "classes": classes}, {**good, "factor": "[9, 9]"}),
        ({"images": distilled.images, "classes": classes}, {**good, "factor": "[2]"}),
        ({"images": distilled.images, "classes": classes}, {**good, "spec": "{}"}),
        ({"images": distilled.images, "classes": classes}, {**good, "spec": "not json"}),
        ({"images": distilled.images, "classes": classes[:1]}, good),
        ({"images": distilled.images[0], "classes": classes}, good),
    ]:
        save_file(tensors, path, metadata)
        with pytest.raises(DataError, match=r"weights.safetensors"):
            SyntheticSet.load(path)


def with_spec(distilled: SyntheticSet, **changed: object) -> dict[str, str]:
    spec = {**distilled.spec.to_json(), **changed}
    return {
        "spec": json.dumps({k: v for k, v in spec.items() if v is not None}),
        "factor": "[2, 2]",
        "provenance": "{}",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 7), ("name", None), ("shape", [3, 16]), ("shape", [3, 16, 16.0]), ("shape", [0, 16, 16]),
        ("classes", 3), ("classes", []), ("classes", [1, 2, 3]), ("classes", ["a"]), ("mean", ["a", "b", "c"]),
        ("mean", [0.5]), ("mean", [0.5, 0.5, float("nan")]), ("std", [-1.0, 1.0, 1.0]), ("std", 1), ("mirror", "no"),
        ("fingerprint", []), ("value_range", ["a", "b"]), ("value_range", [1, 0]), ("licence", {}), ("colour", "red"),
    ],
)  # fmt: skip
def test_a_spec_that_lies_is_refused_by_the_name_of_the_field(
    field: str, value: object, distilled: SyntheticSet, tmp_path: Path
) -> None:
    path = tmp_path / "lies.safetensors"
    tensors = {"images": distilled.images, "classes": torch.tensor(distilled.classes)}
    save_file(tensors, path, with_spec(distilled, **{field: value}))
    with pytest.raises(DataError, match=rf"^\S*lies.safetensors: not a distilled set .*{field}.*$"):
        SyntheticSet.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factor", "[1.5, 1]"), ("factor", "[true, 1]"), ("factor", "2"), ("provenance", "[]"),
        ("provenance", '{"seed": 1}'), ("format", "99"), ("classes", torch.tensor([2, 2])),
        ("classes", torch.tensor([0, 3])), ("classes", torch.tensor([0.0, 1.0])), ("classes", torch.tensor(0)),
        ("images", torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8)),
        ("images", torch.full((2, 3, 3, 16, 16), torch.nan)),
    ],
)  # fmt: skip
def test_anything_else_in_the_file_that_cannot_be_is_refused(
    name: str, value: str | torch.Tensor, distilled: SyntheticSet, tmp_path: Path
) -> None:
    path, facts = tmp_path / "lies.safetensors", with_spec(distilled)
    tensors = {"images": distilled.images, "classes": torch.tensor(distilled.classes)}
    if isinstance(value, str):
        facts["format_version" if name == "format" else name] = value
    else:
        tensors[name] = value
    save_file(tensors, path, facts)
    with pytest.raises(DataError, match=rf"lies.safetensors: not a distilled set .*{name}"):
        SyntheticSet.load(path)
