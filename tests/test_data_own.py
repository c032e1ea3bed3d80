"""One's own data: folders of pictures, .npz files, torch and Hugging Face data sets, and the checks all share."""

import errno
import io
import json
import os
import sys
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from data_factory import noise, picture, refused, write_npz, write_pictures
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from potstill.cli.main import main
from potstill.data import FORMATS, load_dataset
from potstill.data.measure import channel_statistics, fingerprint
from potstill.data.records import RawDataset, RawSplit
from potstill.errors import UsageError
from potstill.spec import DatasetSpec, Split, to_pixels


def pictures(number, size=(8, 8), mode="RGB", first=0):
    return [picture(size, mode, seed=first + seed) for seed in range(number)]


def two_classes(root, number=5, **options):
    content = {"cat": pictures(number, **options), "dog": pictures(number, first=50, **options)}
    return write_pictures(root, content)


# Folders


def test_folder_with_train_and_test_is_read_by_class(tmp_path):
    root = tmp_path / "pets"
    two_classes(root / "train", 5)
    two_classes(root / "test", 2)
    data = load_dataset(root)
    assert data.spec.name == "pets" and data.spec.classes == ("cat", "dog") and data.spec.shape == (3, 8, 8)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5 and len(data.test) == 4
    assert (data.train.images[6].numpy().transpose(1, 2, 0) == np.asarray(picture(seed=51))).all()
    assert data.train.images.dtype == torch.uint8 and data.train.images.is_contiguous()


def test_a_path_may_be_a_string(tmp_path):
    assert load_dataset(str(two_classes(tmp_path / "pets"))).spec.name == "pets"


def test_plain_class_folders_get_an_announced_stratified_hold_out(tmp_path, caplog):
    data = load_dataset(two_classes(tmp_path / "pets", 10), holdout=0.3, seed=4)
    assert torch.bincount(data.test.labels).tolist() == [3, 3]
    assert torch.bincount(data.train.labels).tolist() == [7, 7]
    assert "no test split found; 6 of 20 images (0.3 of each class, seed 4)" in caplog.text


def test_train_without_test_gets_a_hold_out(tmp_path):
    two_classes(tmp_path / "pets" / "train", 5)
    assert len(load_dataset(tmp_path / "pets").test) == 2


def test_hold_out_depends_on_the_seed_alone(tmp_path):
    root = two_classes(tmp_path / "pets", 10)
    prints = [load_dataset(root, seed=seed).spec.fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("holdout", [0, 1, -0.5, 1.5])
def test_hold_out_fraction_outside_its_range_is_a_usage_error(tmp_path, holdout):
    with refused(f"holdout={holdout}", "between 0 and 1", by=UsageError):
        load_dataset(two_classes(tmp_path / "pets"), holdout=holdout)


def test_class_too_small_to_be_divided_keeps_its_image(tmp_path, caplog):
    root = write_pictures(tmp_path / "pets", {"cat": pictures(9), "rare": pictures(1)})
    data = load_dataset(root, holdout=0.5)
    assert torch.bincount(data.train.labels)[1] == 1 and "class 'rare' is too small" in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp"])
def test_usual_picture_files_are_read(tmp_path, suffix):
    root = write_pictures(tmp_path / "pets", {"cat": pictures(3), "dog": pictures(3)}, suffix)
    assert load_dataset(root).spec.shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_pictures_keep_one_channel(tmp_path, mode):
    assert load_dataset(two_classes(tmp_path / "pets", mode=mode)).spec.shape == (1, 8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_palette_and_alpha_become_rgb_with_a_notice(tmp_path, mode, caplog):
    assert load_dataset(two_classes(tmp_path / "pets", mode=mode)).spec.shape == (3, 8, 8)
    assert f"10 {mode} converted to RGB" in caplog.text


def test_transparent_palette_is_read_without_a_warning_of_pillow(tmp_path):
    root = two_classes(tmp_path / "pets")
    picture(mode="P").save(root / "cat" / "0.png", transparency=bytes(range(256)))
    assert load_dataset(root).spec.shape == (3, 8, 8)


def test_mixed_grey_and_colour_become_rgb_with_a_notice(tmp_path, caplog):
    root = write_pictures(tmp_path / "pets", {"cat": pictures(3, mode="L"), "dog": pictures(3)})
    assert load_dataset(root).spec.shape == (3, 8, 8)
    assert "3 L, 3 RGB converted to RGB" in caplog.text


def test_sixteen_bit_pictures_are_refused_rather_than_clipped(tmp_path):
    root = two_classes(tmp_path / "pets", mode="L")
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(root / "dog" / "2.png")
    with refused(root / "dog" / "2.png", "I;16", "8 bits"):
        load_dataset(root)


def test_unequal_sizes_are_resized_to_the_median_with_a_notice(tmp_path, caplog):
    sizes = [(8, 10), (12, 10), (16, 30)]
    root = write_pictures(tmp_path / "pets", {cls: [picture(size) for size in sizes] for cls in ("cat", "dog")})
    assert load_dataset(root).spec.shape == (3, 12, 10)
    assert "3 sizes from 8x10 to 16x30 (height x width) resized to 12x10; size=" in caplog.text


def test_pictures_of_the_wanted_size_and_mode_need_no_notice(tmp_path, caplog):
    load_dataset(two_classes(tmp_path / "pets", size=(9, 12)), size=(9, 12))
    assert "resized" not in caplog.text and "converted" not in caplog.text


@pytest.mark.parametrize(("size", "shape"), [(16, (3, 16, 16)), ((9, 12), (3, 9, 12))])
def test_size_sets_the_size_of_pictures(tmp_path, size, shape):
    assert load_dataset(two_classes(tmp_path / "pets"), size=size).spec.shape == shape


def test_size_resizes_known_sets_too():
    plain, data = load_dataset("digits"), load_dataset("digits", size=16)
    assert data.spec.shape == (1, 16, 16) and data.train.images.dtype == torch.uint8
    assert data.spec.mean == pytest.approx(plain.spec.mean, abs=0.005)
    assert data.spec.fingerprint != plain.spec.fingerprint


@pytest.mark.parametrize("size", [7, (8, 4), (8, 8, 8), 8.5, 10**9])
def test_impossible_size_is_a_usage_error(size):
    with refused(f"size={size}", "at least 8", by=UsageError):
        load_dataset("digits", size=size)


def test_too_small_a_picture_is_named(tmp_path):
    root = two_classes(tmp_path / "pets")
    picture((8, 7)).save(root / "dog" / "1.png")
    with refused(root / "dog" / "1.png", "8x7", "at least 8x8"):
        load_dataset(root)


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_unreadable_picture_is_named(tmp_path, content):
    root = two_classes(tmp_path / "pets")
    (root / "cat" / "3.png").write_bytes(content)
    with refused(root / "cat" / "3.png", "cannot be opened"):
        load_dataset(root)


def test_truncated_picture_is_named(tmp_path):
    root = two_classes(tmp_path / "pets", size=(40, 40))
    path = root / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with refused(path, "cannot be decoded", "complete picture"):
        load_dataset(root)


def test_empty_folder_is_refused(tmp_path):
    with refused(tmp_path, "no class folders", "CLASS/*.png"):
        load_dataset(tmp_path)


def test_class_folder_without_pictures_is_named(tmp_path):
    root = two_classes(tmp_path / "pets")
    (root / "ant").mkdir()
    (root / "ant" / "notes.txt").write_text("none yet")
    with refused(root / "ant", "class without pictures"):
        load_dataset(root)


def test_test_class_that_is_not_trained_is_named(tmp_path):
    two_classes(tmp_path / "train")
    write_pictures(tmp_path / "test", {"cow": pictures(1)})
    with refused(tmp_path / "test" / "cow", "no class of the training split", "cat, dog"):
        load_dataset(tmp_path)


def test_test_folder_without_train_is_refused(tmp_path):
    two_classes(tmp_path / "test")
    with refused(tmp_path, "no train/"):
        load_dataset(tmp_path)


def test_folders_that_are_not_read_are_named(tmp_path, caplog):
    for split in ("train", "test", "val"):
        two_classes(tmp_path / split, 2)
    load_dataset(tmp_path)
    assert "not read" in caplog.text and "val" in caplog.text


def test_pictures_below_a_class_and_of_other_suffixes_are_read(tmp_path):
    root = two_classes(tmp_path / "pets", 2)
    (root / "cat" / "2023" / "may").mkdir(parents=True)
    picture(seed=7).save(root / "cat" / "2023" / "may" / "x.tif")
    picture(seed=8).save(root / "cat" / "2023" / "y.PPM")
    data = load_dataset(root)
    assert len(data.train) + len(data.test) == 6


def test_what_is_left_out_is_counted_and_named_once(tmp_path, caplog):
    root = two_classes(tmp_path / "pets")
    for name in ("a.txt", "b.txt", "c.heic"):
        (root / "cat" / name).write_text("?")
    os.mkfifo(root / "dog" / "pipe.png")
    load_dataset(root)
    assert "4 files are not read (1 .heic, 2 .txt, 1 that are no files)" in caplog.text


def test_orientation_tag_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.repeat([255, 0], [4 * 24, 12 * 24]).reshape(16, 24).astype(np.uint8))
    for cls in ("cat", "dog"):
        (tmp_path / "pets" / cls).mkdir(parents=True)
        for number in range(3):
            lying.save(tmp_path / "pets" / cls / f"{number}.jpg", exif=exif, quality=95)
    data = load_dataset(tmp_path / "pets")
    assert data.spec.shape == (1, 24, 16)
    assert data.train.images[0, 0, :, -4:].min() > 200 and data.train.images[0, 0, :, :8].max() < 50


def test_other_formats_under_the_name_of_a_picture_are_refused(tmp_path):
    root = two_classes(tmp_path / "pets")
    path = root / "cat" / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with refused(path, "cannot be opened"):
        load_dataset(root)


def test_picture_of_absurd_size_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    root = two_classes(tmp_path / "pets")
    picture((40, 40)).save(root / "cat" / "big.png")
    with refused(root / "cat" / "big.png", "cannot be opened"):
        load_dataset(root)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folder_of_validation_takes_the_place_of_test(tmp_path, caplog, name):
    two_classes(tmp_path / "train", 3)
    two_classes(tmp_path / name, 2)
    assert len(load_dataset(tmp_path).test) == 4 and f"{name}/ takes its place" in caplog.text


def test_class_may_be_called_train(tmp_path):
    root = write_pictures(tmp_path / "vehicles", {name: pictures(3) for name in ("bus", "test", "train")})
    assert load_dataset(root).spec.classes == ("bus", "test", "train")


def test_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    root, listed = two_classes(tmp_path / "pets"), Path.iterdir

    def iterdir(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with refused(root / "dog", "cannot be listed"):
        load_dataset(root)


def test_hidden_folders_and_other_files_are_left_out(tmp_path):
    root = two_classes(tmp_path / "pets")
    (root / ".cache").mkdir()
    (root / "cat" / "readme.txt").write_text("cats")
    assert load_dataset(root).spec.classes == ("cat", "dog")


# npz files


def test_npz_with_both_splits_and_names(tmp_path):
    data = load_dataset(write_npz(tmp_path / "own.npz", class_names=np.array(["a", "b"])))
    assert data.spec.name == "own" and data.spec.classes == ("a", "b") and data.spec.value_range == (0.0, 1.0)
    assert (len(data.train), len(data.test)) == (12, 6)
    assert (data.train.images.numpy() == noise(12)[0]).all()


def test_classes_without_names_are_numbered(tmp_path):
    assert load_dataset(write_npz(tmp_path / "own.npz")).spec.classes == ("0", "1")


def test_channels_may_come_first_last_or_not_at_all(tmp_path):
    images = noise(12, (3, 9, 8))[0]
    tests = {"x_test": None, "y_test": None}
    first = load_dataset(write_npz(tmp_path / "a.npz", x_train=images, **tests))
    last = load_dataset(write_npz(tmp_path / "b.npz", x_train=images.transpose(0, 2, 3, 1), **tests))
    none = load_dataset(write_npz(tmp_path / "c.npz", x_train=images[:, 0], **tests))
    assert first.spec.shape == (3, 9, 8) and first.spec.fingerprint == last.spec.fingerprint
    assert last.train.images.is_contiguous()
    assert none.spec.shape == (1, 9, 8)


def test_npz_without_test_gets_a_stratified_hold_out(tmp_path, caplog):
    data = load_dataset(write_npz(tmp_path / "own.npz", x_test=None, y_test=None), holdout=0.5)
    assert torch.bincount(data.test.labels).tolist() == [3, 3] and "held out" in caplog.text


def test_floats_that_are_bytes_are_stored_as_bytes(tmp_path):
    plain = load_dataset(write_npz(tmp_path / "own.npz"))
    floats = {key: noise(number, seed=seed)[0] / 255 for key, number, seed in (("x_train", 12, 0), ("x_test", 6, 1))}
    data = load_dataset(write_npz(tmp_path / "own2.npz", **floats))
    assert data.train.images.dtype == torch.uint8 and data.spec.fingerprint == plain.spec.fingerprint


def test_floats_between_0_and_1_keep_their_values(tmp_path):
    images = np.random.default_rng(0).random((12, 3, 8, 8))
    data = load_dataset(write_npz(tmp_path / "own.npz", x_train=images, x_test=images[:6]))
    assert data.train.images.dtype == torch.float32 and data.spec.value_range == (0.0, 1.0)
    assert torch.equal(to_pixels(data.train.images), torch.from_numpy(images).float())
    assert data.spec.mean == pytest.approx(images.mean((0, 2, 3)), abs=1e-6)


def test_other_floats_take_their_range_from_the_training_split(tmp_path, caplog):
    images = np.linspace(-2, 3, 12 * 192).reshape(12, 3, 8, 8)
    data = load_dataset(write_npz(tmp_path / "own.npz", x_train=images, x_test=images[:6] * 2))
    assert data.spec.value_range == (0.0, 1.0) and data.spec.source_range == (-2.0, 3.0)
    assert "-2 to 3 is stored as 0 to 1" in caplog.text
    torch.testing.assert_close(data.spec.to_source(data.train.images), torch.from_numpy(images).float())


@pytest.mark.parametrize("scale", [lambda x: x.astype(np.float32), lambda x: x / 127.5 - 1], ids=["0..255", "-1..1"])
def test_bytes_on_any_usual_scale_are_stored_as_those_bytes(tmp_path, scale):
    plain = load_dataset(write_npz(tmp_path / "own.npz"))
    floats = {"x_train": scale(noise(12)[0]), "x_test": scale(noise(6, seed=1)[0])}
    data = load_dataset(write_npz(tmp_path / "own2.npz", **floats))
    assert torch.equal(data.train.images, plain.train.images) and data.spec.fingerprint == plain.spec.fingerprint
    assert data.spec.source_range in ((0.0, 255.0), (-1.0, 1.0))


def test_splits_on_different_scales_are_refused(tmp_path):
    images = np.random.default_rng(0).random((12, 3, 8, 8))
    with refused("x_test", "expected 0 to 1", "scale both splits alike"):
        load_dataset(write_npz(tmp_path / "own.npz", x_train=images, x_test=images[:6] * 255))


def test_whole_numbers_of_any_width_become_bytes(tmp_path):
    data = load_dataset(write_npz(tmp_path / "own.npz", x_train=noise(12)[0].astype(np.int64)))
    assert data.train.images.dtype == torch.uint8 and (data.train.images.numpy() == noise(12)[0]).all()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"x_train": None}, ["expected x_train"]),
        ({"y_train": None}, ["expected y_train"]),
        ({"y_test": None}, ["expected y_test"]),
        ({"x_test": None}, ["expected x_test"]),
        ({"y_train": np.array([0, None] * 6)}, ["y_train", "Object arrays", "plain numbers"]),
        ({"y_train": np.arange(12) % 3, "y_test": np.arange(6)}, ["x_test", "label 3 at position 3", "0 to 2"]),
        ({"y_train": np.arange(12) % 2 - 1}, ["label -1", "0 to 0"]),
        ({"y_train": np.arange(12) % 2 * 2}, ["class '1'", "no image"]),
        ({"y_train": np.arange(12) * 10**9}, ["label 11000000000"]),
        ({"y_train": np.arange(12) % 2 / 2}, ["label 0.5 at position 1", "expected whole numbers"]),
        ({"y_train": np.eye(12)}, ["shape (12, 12)", "expected integers of shape (N,)"]),
        ({"y_train": np.arange(11) % 2}, ["12 images but 11 labels"]),
        ({"x_train": np.zeros((0, 3, 8, 8)), "y_train": np.zeros(0, int)}, ["no labels"]),
        ({"x_train": noise(12, (3, 7, 8))[0]}, ["7x8", "at least 8x8"]),
        ({"x_train": noise(12, (4, 8, 8))[0]}, ["(12, 4, 8, 8)", "1 or 3 channels"]),
        ({"x_train": noise(12, (64,))[0]}, ["(12, 64)", "(N, C, H, W)"]),
        ({"x_train": noise(12)[0] > 9}, ["type bool", "uint8 or float"]),
        ({"x_train": noise(12)[0].astype(int) + 9}, ["int64 pixels from 9 to 264", "0 to 255"]),
        ({"x_train": np.full((12, 3, 8, 8), np.nan)}, ["image 0", "NaN"]),
        ({"x_train": np.full((12, 3, 8, 8), np.inf)}, ["image 0", "infinite"]),
        ({"x_test": noise(6, (3, 9, 9))[0]}, ["x_test", "(3, 9, 9)", "expected uint8 images of shape (3, 8, 8)"]),
        ({"x_test": noise(6)[0] / 300}, ["x_test", "float32", "expected uint8"]),
        ({"class_names": np.array(["a", "b", "c"])}, ["class 'c'", "no image"]),
        ({"class_names": np.array(["a"])}, ["label 1", "expected 0 to 0"]),
        ({"class_names": np.array(["a", "a"])}, ["class_names", "distinct"]),
        ({"class_names": np.array([1, 2])}, ["class_names", "distinct strings"]),
        ({"x_train": np.array(1)}, ["x_train is a single value"]),
    ],
)  # fmt: skip
def test_unfit_npz_content_names_file_and_fault(tmp_path, change, parts):
    path = write_npz(tmp_path / "own.npz", **change)
    with refused(path, *parts):
        load_dataset(path)


def test_first_damaged_image_is_named(tmp_path):
    images = np.random.default_rng(0).random((12, 3, 8, 8))
    images[7, 1, 2, 3] = np.nan
    with refused("x_train", "image 7"):
        load_dataset(write_npz(tmp_path / "own.npz", x_train=images))


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"text", lambda data: data[:-30], lambda data: data[:9]]
)
def test_damaged_npz_names_the_file(tmp_path, damage):
    path = write_npz(tmp_path / "own.npz")
    path.write_bytes(damage(path.read_bytes()))
    with refused(path, "expected an .npz"):
        load_dataset(path)


def test_single_array_called_npz_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with refused(path, "expected an .npz"):
        load_dataset(path)


def test_keys_of_medmnist_are_read_and_the_rest_is_named(tmp_path, caplog):
    (images, labels), path = noise(12), tmp_path / "pathmnist.npz"
    keys = {f"{split}_{kind}": x for split in ("train", "val", "test") for kind, x in
            (("images", images), ("labels", labels[:, None].astype(np.uint8)))}  # fmt: skip
    np.savez(path, **keys)
    data = load_dataset(path)
    assert len(data.test) == 12 and data.train.labels.tolist() == labels.tolist()
    assert "not read: val_images, val_labels" in caplog.text


def test_npz_validation_takes_the_place_of_test(tmp_path, caplog):
    images, labels = noise(6, seed=1)
    data = load_dataset(write_npz(tmp_path / "own.npz", x_test=None, y_test=None, x_val=images, y_val=labels))
    assert len(data.test) == 6 and "x_val takes its place" in caplog.text


def test_labels_may_be_names(tmp_path):
    names = np.array(["dog", "cat"])
    data = load_dataset(write_npz(tmp_path / "a.npz", y_train=names[noise(12)[1]], y_test=names[noise(6)[1]]))
    assert (
        data.spec.classes == ("cat", "dog")
        and data.train.labels.tolist() == [1, 0] * 6 == data.test.labels.tolist() * 2
    )


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint64, np.int8, bool])
def test_labels_may_be_whole_numbers_of_any_type(tmp_path, kind):
    data = load_dataset(write_npz(tmp_path / "own.npz", y_train=(noise(12)[1] % 2).astype(kind)))
    assert data.train.labels.dtype == torch.int64 and data.train.labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize("kind", [float, np.float32, lambda n: torch.tensor(float(n)), lambda n: torch.tensor([n > 0])])
def test_labels_of_torch_items_may_be_whole_numbers_of_any_type(kind):
    images, labels = noise(12)
    data = load_dataset([(image, kind(label % 2)) for image, label in zip(torch.tensor(images), labels, strict=True)])
    assert data.spec.num_classes == 2 and len(data.train) + len(data.test) == 12


@pytest.mark.parametrize(
    ("wrong", "found"), [(1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf"), (1e300, "1e+300"), (2**63, str(2**63))]
)
def test_a_label_that_is_no_whole_number_is_named_with_its_place(tmp_path, wrong, found):
    labels = noise(12)[1].astype(np.uint64 if isinstance(wrong, int) else np.float64)
    labels[3] = wrong
    with refused("own.npz", f"label {found} at position 3, expected whole numbers"):
        load_dataset(write_npz(tmp_path / "own.npz", y_train=labels))


def test_a_place_that_cannot_be_looked_into_is_one_line(tmp_path, monkeypatch):
    with refused("x" * 300, "cannot be read (File name too long)"):
        load_dataset("x" * 300 + ".npz")

    def refuse(path):  # as of a folder without permission; for root there is none
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with refused(tmp_path, "cannot be read (Permission denied); check the file and its permissions"):
        load_dataset(tmp_path)


def test_one_hot_rows_are_told_what_to_do(tmp_path):
    with refused("own.npz", "of one-hot rows give the argmax"):
        load_dataset(write_npz(tmp_path / "own.npz", y_train=np.eye(12)))


def test_names_of_classes_may_be_bytes(tmp_path):
    names = np.array([b"dog", b"cat"])
    data = load_dataset(write_npz(tmp_path / "a.npz", y_train=names[noise(12)[1] % 2], y_test=names[noise(6)[1] % 2]))
    assert data.spec.classes == ("cat", "dog")
    with refused("b.npz", "bytes beyond ASCII"):
        load_dataset(write_npz(tmp_path / "b.npz", y_train=np.array(["ä".encode()] * 12)))


@pytest.mark.parametrize("shape", [(10**12, 32, 32), (12, 3, 8, 9)])
def test_header_that_claims_other_than_is_there_is_refused(tmp_path, shape):
    path, copy = write_npz(tmp_path / "own.npz"), tmp_path / "copy.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            target.writestr(name, header.getvalue() if name == "x_train.npy" else source.read(name))
    with refused(copy, "x_train cannot be read", "0 bytes for an array of shape"):
        load_dataset(copy)


def test_column_of_labels_is_taken_for_labels(tmp_path):
    data = load_dataset(write_npz(tmp_path / "own.npz", y_train=noise(12)[1][:, None]))
    assert data.train.labels.shape == (12,)


def test_other_file_and_missing_path_are_refused(tmp_path):
    (tmp_path / "own.csv").write_text("1,2")
    with refused(tmp_path / "own.csv", "no folder and no .npz"):
        load_dataset(tmp_path / "own.csv")
    with refused(tmp_path / "none", "no such file or folder"):
        load_dataset(tmp_path / "none")
    with refused("none.npz", "no such file or folder"):
        load_dataset("none.npz")


# torch data sets


class Items(Dataset):
    def __init__(self, items, classes=None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def items(number, convert=lambda image: image):
    return [(convert(image), int(label)) for image, label in zip(*noise(number), strict=True)]


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda image: torch.from_numpy(image) / 255,
        lambda image: Image.fromarray(image.transpose(1, 2, 0)),
        lambda image: image.transpose(1, 2, 0),
    ],
    ids=["bytes", "floats", "pictures", "arrays"],
)
def test_torch_items_of_any_kind_give_the_same_bytes(convert):
    data = load_dataset((Items(items(12, convert), ["a", "b"]), Items(items(6, convert))))
    assert (data.train.images.numpy() == noise(12)[0]).all() and len(data.test) == 6
    assert data.spec.classes == ("a", "b") and data.spec.name == "items"


def test_single_torch_data_set_gets_a_hold_out():
    images, labels = (torch.from_numpy(array) for array in noise(20))
    data = load_dataset(TensorDataset(images, labels))
    assert (len(data.train), len(data.test)) == (16, 4) and data.spec.classes == ("0", "1")


def test_torch_pictures_of_unequal_size_are_resized():
    sizes = [(8, 8), (10, 10), (10, 10)] * 4
    data = load_dataset(Items([(picture(size), number % 2) for number, size in enumerate(sizes)]))
    assert data.spec.shape == (3, 10, 10)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([torch.zeros(3, 8, 8)], ["train item 0", "pair (image, label)"]),
        ([(torch.zeros(3, 8, 8), 0.5)], ["train item 0", "label 0.5", "integer"]),
        ([("text", 0)], ["train item 0", "type str", "PIL"]),
        ([(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 9, 8), 0)], ["train item 1", "(3, 9, 8)", "(3, 8, 8)"]),
        ([], ["holds no items"]),
    ],
)
def test_unfit_torch_items_are_named(content, parts):
    with refused(*parts):
        load_dataset(Items(content))


def test_iterable_style_data_set_is_a_usage_error():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(items(4))

    with refused("iterable-style", "map-style", by=UsageError):
        load_dataset(Stream())


@pytest.mark.parametrize("source", [3, None, {"x": 1}, torch.zeros(3)])
def test_anything_else_is_a_usage_error_that_lists_what_works(source):
    with refused("digits", "path", "torch", "Hugging Face", by=UsageError):
        load_dataset(source)


# Hugging Face data sets


def hugging_face(number, seed=0, size=(8, 8), **columns):
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    content = {"img": [picture(size, seed=seed + i) for i in range(number)], "label": [i % 2 for i in range(number)]}
    for name, values in columns.items():
        features[name] = datasets.ClassLabel(names=["x", "y"])
        content[name] = values
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def test_hugging_face_dict_is_read_by_its_features():
    data = load_dataset(datasets.DatasetDict(train=hugging_face(6), test=hugging_face(4, seed=9)))
    assert data.spec.classes == ("a", "b") and (len(data.train), len(data.test)) == (6, 4)
    assert (data.train.images[5].numpy().transpose(1, 2, 0) == np.asarray(picture(seed=5))).all()


def test_single_hugging_face_set_gets_a_hold_out():
    assert len(load_dataset(hugging_face(10)).test) == 2


def test_pair_of_hugging_face_sets_is_train_and_test():
    assert len(load_dataset((hugging_face(10), hugging_face(4))).test) == 4


def test_hugging_face_format_does_not_matter():
    plain = datasets.DatasetDict(train=hugging_face(6), test=hugging_face(4))
    assert load_dataset(plain.with_format("numpy")).spec.fingerprint == load_dataset(plain).spec.fingerprint


def test_validation_takes_the_place_of_a_missing_test_split(caplog):
    data = load_dataset(datasets.DatasetDict(train=hugging_face(6), validation=hugging_face(4)))
    assert len(data.test) == 4 and "'validation' takes its place" in caplog.text


def test_class_names_of_two_splits_are_matched(caplog):
    test = datasets.Dataset.from_dict(
        {"img": [picture(seed=i) for i in range(4)], "label": [0, 0, 1, 1]},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])}),
    )
    data = load_dataset((hugging_face(6), test))
    assert data.test.labels.tolist() == [1, 1, 0, 0] and "matched by name" in caplog.text
    foreign = test.cast_column("label", datasets.ClassLabel(names=["b", "c"]))
    with refused("class 'c'", "no class of the training split", "a, b"):
        load_dataset((hugging_face(6), foreign))


def test_transform_of_a_hugging_face_set_is_applied(caplog):
    small = hugging_face(6, size=(12, 12)).with_transform(
        lambda rows: {**rows, "img": [image.resize((8, 8)) for image in rows["img"]]}
    )
    assert load_dataset(small).spec.shape == (3, 8, 8) and "transform is applied once" in caplog.text


def test_validation_is_read_where_the_labels_of_test_are_withheld(caplog):
    hidden = hugging_face(2).map(lambda row: {"label": -1})
    data = load_dataset(datasets.DatasetDict(train=hugging_face(6), validation=hugging_face(4), test=hidden))
    assert len(data.test) == 4 and "'validation' takes its place" in caplog.text


def test_folder_of_save_to_disk_is_read(tmp_path):
    whole = datasets.DatasetDict(train=hugging_face(6), test=hugging_face(4))
    whole.save_to_disk(str(tmp_path / "saved"))
    assert load_dataset(tmp_path / "saved").spec.fingerprint == load_dataset(whole).spec.fingerprint


def test_fine_label_is_preferred_to_others():
    data = hugging_face(6, fine_label=[1, 0] * 3, coarse_label=[0] * 6).remove_columns("label")
    assert load_dataset((data, data)).train.labels.tolist() == [1, 0] * 3


def test_hugging_face_columns_that_do_not_fit_are_listed():
    data = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    with refused("text (Value), label (Value)", "one Image and one ClassLabel"):
        load_dataset(data)


def test_hugging_face_dict_without_train_lists_its_splits():
    with refused("splits test found", "expected train"):
        load_dataset(datasets.DatasetDict(test=hugging_face(4)))


def test_hidden_test_labels_are_refused():
    hidden = hugging_face(2).map(lambda row: {"label": -1})
    with refused("test", "label -1"):
        load_dataset((hugging_face(6), hidden))


def test_a_users_own_module_called_datasets_does_no_harm(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    assert len(load_dataset(Items(items(10))).train) == 8


# What all share


def test_mirror_of_own_data_is_assumed_with_a_notice(tmp_path, caplog):
    path = write_npz(tmp_path / "own.npz")
    assert load_dataset(path).spec.mirror is True
    assert "pass mirror=False" in caplog.text


@pytest.mark.parametrize("mirror", ["yes", 3])
def test_mirror_is_true_or_false(mirror):
    with pytest.raises(UsageError, match="need True, False or None"):
        load_dataset("digits", mirror=mirror)


@pytest.mark.parametrize("mirror", [True, False])
def test_mirror_of_own_data_can_be_chosen_without_a_notice(tmp_path, caplog, mirror):
    assert load_dataset(write_npz(tmp_path / "own.npz"), mirror=mirror).spec.mirror is mirror
    assert "pass mirror=" not in caplog.text


def test_statistics_are_those_of_the_training_split_in_float64(tmp_path):
    spec = load_dataset(write_npz(tmp_path / "own.npz", x_test=np.zeros((6, 3, 8, 8), np.uint8))).spec
    pixels = noise(12)[0].astype(np.float64) / 255
    assert spec.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-12)
    assert spec.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-12)


def test_statistics_do_not_depend_on_the_chunks(monkeypatch):
    images = torch.from_numpy(noise(50)[0])
    whole = channel_statistics(images)
    monkeypatch.setattr("potstill.data.measure.CHUNK", 7)
    assert channel_statistics(images)[1] == pytest.approx(whole[1], rel=1e-12)


def test_small_deviations_around_a_large_mean_are_not_lost():
    values = torch.tensor([1e6, 1e6 + 1]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    assert channel_statistics(values) == ((1e6 + 0.5,), (0.5,))


@pytest.mark.parametrize("pixel", [np.uint8(77), np.float64(0.3)])
def test_constant_channel_has_deviation_one_and_a_notice(tmp_path, caplog, pixel):
    images = (
        noise(12)[0].astype(pixel.dtype) if pixel.dtype == np.uint8 else np.random.default_rng(0).random((12, 3, 8, 8))
    )
    images[:, 1] = pixel
    spec = load_dataset(write_npz(tmp_path / "own.npz", x_train=images, x_test=images[:6])).spec
    assert spec.std[1] == 1 and "channel 1 is constant" in caplog.text
    assert spec.std[0] < 1


def test_fingerprint_changes_with_everything_a_result_depends_on():
    images, labels = (torch.from_numpy(array) for array in noise(12))
    split = Split(images, labels)
    prints = {
        fingerprint(split, split, ["a", "b"]),
        fingerprint(split, split, ["a", "c"]),
        fingerprint(split, split.subset(torch.arange(11)), ["a", "b"]),
        fingerprint(split.subset(torch.arange(11)), split, ["a", "b"]),
        fingerprint(replace(split, labels=1 - labels), split, ["a", "b"]),
        fingerprint(replace(split, images=images + 1), split, ["a", "b"]),
        fingerprint(replace(split, images=images.reshape(12, 3, 4, 16)), split, ["a", "b"]),
    }
    assert len(prints) == 7


def test_each_split_has_a_fingerprint_of_its_own(tmp_path):
    one, other = write_npz(tmp_path / "one.npz"), write_npz(tmp_path / "other.npz", x_test=noise(6, seed=9)[0])
    one, other = (load_dataset(path).spec for path in (one, other))
    assert one.train_fingerprint == other.train_fingerprint != one.test_fingerprint
    assert one.test_fingerprint != other.test_fingerprint and one.fingerprint != other.fingerprint


def test_splits_are_torch_data_sets_of_normalised_samples(tmp_path):
    data = load_dataset(write_npz(tmp_path / "own.npz"))
    images, labels = next(iter(DataLoader(data.train, batch_size=12)))
    assert images.dtype == torch.float32 and images.shape == (12, 3, 8, 8) and labels.tolist() == [0, 1] * 6
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(3))
    image, label = data.test[-1]
    back = image * torch.tensor(data.spec.std)[:, None, None] + torch.tensor(data.spec.mean)[:, None, None]
    torch.testing.assert_close(back, to_pixels(data.test.images[-1]))
    assert label == 1 and len(list(data.test)) == 6


def test_a_part_of_a_split_is_normalised_like_the_whole(tmp_path):
    data = load_dataset(write_npz(tmp_path / "own.npz"))
    part = data.train.subset(torch.tensor([3]))
    torch.testing.assert_close(part[0], data.train[3])


def test_spec_of_an_older_set_has_no_fingerprints_of_splits(tmp_path):
    spec = load_dataset(write_npz(tmp_path / "own.npz")).spec
    record = json.loads(json.dumps(spec.to_json()))
    assert DatasetSpec.from_json(record) == spec
    for name in ("train_fingerprint", "test_fingerprint", "source_range"):
        del record[name]
    assert DatasetSpec.from_json(record).train_fingerprint == ""
    with pytest.raises(ValueError, match="modality='smell'"):
        DatasetSpec.from_json({**record, "modality": "smell"})


def test_images_are_padded_with_gray_and_sound_with_silence(tmp_path):
    spec = load_dataset(write_npz(tmp_path / "own.npz")).spec
    assert spec.padding_value == 0.5 and spec.augmentation != "none"
    sound = replace(spec, modality="sound", source_range=(-6.0, 4.0))
    assert sound.padding_value == 0 and sound.augmentation == "none"
    assert sound.to_source(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-6, -1, 4]


def test_fingerprint_of_180_megabytes_takes_less_than_a_second():
    images = torch.zeros(60_000, 3, 32, 32, dtype=torch.uint8)
    split = Split(images, torch.zeros(60_000, dtype=torch.int64))
    began = time.process_time()
    fingerprint(split, split.subset(torch.arange(1)), ["a"])
    assert time.process_time() - began < 1


def test_a_further_format_is_one_registered_function(monkeypatch):
    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))

    @FORMATS.register("answer")
    def read(source, size):
        return RawDataset("answer", RawSplit(*noise(10), "memory"), None) if source == 42 else None

    assert load_dataset(42).spec.name == "answer"


@pytest.mark.parametrize(
    ("splits", "place", "read"),
    [
        (False, "", True),
        (False, "runs/mine", True),
        (True, "", True),
        (True, "train/mine", True),
        (True, "runs/mine", False),
        (False, "../runs", False),
    ],
)
def test_results_must_not_become_data(tmp_path, capsys, splits, place, read):
    source = tmp_path / "pets"
    for root in (source / "train", source / "test") if splits else (source,):
        two_classes(root)
    before = sorted(source.rglob("*"))
    code = main(["distill", "--dataset", str(source), "--method", "random", "--ipc", "1", "--out", str(source / place)])
    assert code == (2 if read else 0)
    assert ("it would be read as data; use --out elsewhere" in capsys.readouterr().err) == read
    if read:
        assert sorted(source.rglob("*")) == before
