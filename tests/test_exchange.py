"""Exports arrive whole, are read back by those they are meant for, and imports are checked."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data import load_dataset
from potstill.errors import DataError, MissingExtra, RunError, UsageError
from potstill.scores import Score
from potstill.sets.export import EXPORTS, export, quantise, read_pt
from potstill.sets.export.eight_bit import from_levels, sample_levels, to_levels
from potstill.sets.export.names import distinct, folder_names
from potstill.sets.read import read_set
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import DatasetSpec, LabelledDataset

FOLDER_FORMS = ("folder", "huggingface")
FILE_FORMS = ("pt", "pt-data", "safetensors")


def make_set(spec: DatasetSpec, ipc: int = 2, factor: tuple[int, int] = (1, 1), **changes) -> SyntheticSet:
    """A set that reaches a little beyond the value range, as free pixels do."""
    images = torch.rand(spec.num_classes, ipc, *spec.shape, generator=torch.Generator().manual_seed(3)) * 1.2 - 0.1
    provenance = {"method": "dsdm", "seed": "7", "recipe_hash": "abc|def"}
    return replace(SyntheticSet(images, spec, factor, provenance=provenance), **changes)


@pytest.fixture
def gray(toy_dataset: LabelledDataset) -> SyntheticSet:
    return make_set(toy_dataset.spec)


@pytest.fixture
def colour(toy_colour: LabelledDataset) -> SyntheticSet:
    return make_set(toy_colour.spec, factor=(2, 2))


@pytest.mark.parametrize("form", [*FOLDER_FORMS, *FILE_FORMS])
def test_no_form_drops_what_else_was_learned(form: str, gray: SyntheticSet, tmp_path: Path) -> None:
    taught = replace(gray, extras={"step_sizes": torch.ones(3)})
    if form != "safetensors":
        with pytest.raises(UsageError, match=f"{form} cannot hold the set's step_sizes: export it to safetensors"):
            export(taught, tmp_path / "set", form)
        assert not list(tmp_path.iterdir())
    else:
        assert torch.equal(read_set(export(taught, tmp_path / "set", form)).extras["step_sizes"], torch.ones(3))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`datasets`, with its cache in the test's folder and every connection refused."""
    datasets = pytest.importorskip("datasets")

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def save_pt(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Writing


def test_export_forms_are_those_documented():
    assert list(EXPORTS) == ["folder", "huggingface", "pt", "pt-data", "safetensors", "wav"]


def test_an_unknown_form_lists_the_known(gray, tmp_path):
    with pytest.raises(UsageError, match=r"'zip'.*folder, huggingface, pt, pt-data, safetensors"):
        export(gray, tmp_path / "out", "zip")


#: Those that hold pictures too; wav holds sound alone, see test_data_sound.
PICTURES = [form for form in EXPORTS if form != "wav"]


@pytest.mark.parametrize("form", PICTURES)
def test_an_existing_destination_is_kept_and_the_remedy_named(gray, tmp_path, form):
    destination = tmp_path / "out"
    export(gray, destination, form)
    before = content_of(tmp_path)
    with pytest.raises(UsageError, match=r"out[.\w]*: exists already.*--overwrite"):
        export(replace(gray, images=gray.images / 2), destination, form)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("form", PICTURES)
def test_overwrite_replaces_an_earlier_export(gray, tmp_path, form):
    smaller = replace(gray, images=gray.images[:, :1] / 2)
    destination = export(gray, tmp_path / "out", form)
    export(smaller, destination, form, overwrite=True)
    fresh = export(smaller, tmp_path / "fresh", form)
    assert content_of(destination).keys() == content_of(fresh).keys()
    if form in ("huggingface", "safetensors"):
        distilled = destination / "distilled.safetensors" if form == "huggingface" else destination
        assert torch.equal(SyntheticSet.load(distilled).images, smaller.images)
    if form in FOLDER_FORMS:
        picture = "train/b/0000.png" if form == "folder" else "README.md"
        assert (destination / picture).read_bytes() == (fresh / picture).read_bytes()
    if form in ("pt", "pt-data"):
        assert destination.read_bytes() == fresh.read_bytes()
    assert {path.stem for path in tmp_path.iterdir()} == {"out", "fresh"}


def test_overwrite_spares_a_folder_that_is_no_such_export(gray, tmp_path):
    mine = tmp_path / "pictures"
    (mine / "train" / "a").mkdir(parents=True)
    (mine / "train" / "a" / "holiday.png").write_bytes(b"dear")
    for form in FOLDER_FORMS:
        with pytest.raises(UsageError, match=r"holds train; only an earlier export"):
            export(gray, mine, form, overwrite=True)
    assert content_of(mine) == {"train/a/holiday.png": b"dear"}


def test_an_empty_folder_can_be_overwritten(gray, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export(gray, tmp_path / "out", "folder", overwrite=True) / "spec.json").exists()


def test_files_and_folders_do_not_replace_each_other(gray, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a folder"):
        export(gray, tmp_path / "folder.pt", "pt", overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        export(gray, tmp_path / "file", "folder", overwrite=True)


@pytest.mark.parametrize("form", FOLDER_FORMS)
def test_a_folder_that_fails_midway_never_appears(gray, tmp_path, monkeypatch, form):
    written = []

    def run_full(path: Path, data: bytes) -> int:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        with open(path, "wb") as file:
            return file.write(data)

    monkeypatch.setattr(Path, "write_bytes", run_full)
    with pytest.raises(RunError, match=r"out: No space left on device"):
        export(gray, tmp_path / "out", form)
    assert len(written) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FILE_FORMS)
def test_a_file_that_fails_midway_never_appears(gray, tmp_path, monkeypatch, form):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=r"out[.\w]*: No space left on device"):
        export(gray, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_the_earlier_export_is_back_when_the_rename_fails(gray, tmp_path, monkeypatch):
    destination = export(gray, tmp_path / "out", "folder")
    before, rename = content_of(destination), os.replace

    def fail_on_fresh(source, target):
        if Path(source).name == "fresh":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_on_fresh)
    with pytest.raises(RunError, match="Input/output error"):
        export(replace(gray, images=gray.images / 2), destination, "folder", overwrite=True)
    assert content_of(destination) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("destination", [".", "..", "/"])
def test_a_folder_is_no_name_for_a_file(gray, destination):
    with pytest.raises(UsageError, match=r"is a folder: name a file in it, with suffix \.safetensors"):
        export(gray, destination, "safetensors")


def test_files_get_the_suffix_they_are_known_by(gray, tmp_path):
    for given, form, written in (
        ("export-pt", "pt", "export-pt.pt"),
        ("v1.5", "pt-data", "v1.5.pt"),
        ("old.pth", "pt", "old.pth"),
        ("set", "safetensors", "set.safetensors"),
        ("pictures", "folder", "pictures"),
    ):
        assert export(gray, tmp_path / given, form) == tmp_path / written
        assert (tmp_path / written).exists()


def test_missing_parent_folders_are_made(gray, tmp_path):
    for form in ("folder", "pt"):
        assert export(gray, tmp_path / "a" / form / "out", form).exists()


def test_an_export_is_as_readable_as_any_new_folder(gray, tmp_path):
    (tmp_path / "plain").mkdir()
    out = export(gray, tmp_path / "out", "folder")
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


# Eight bits


def test_quantised_values_are_clamped_and_within_half_a_level(colour):
    exact, rounded = colour.decoded().images, quantise(colour)
    assert rounded.factor == (1, 1)
    assert rounded.images.shape == (3, 8, 3, 16, 16)
    assert (rounded.decoded().images - exact.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(rounded.images, (rounded.images * 255).round() / 255)
    assert torch.equal(rounded.decoded().labels, colour.decoded().labels)


def test_quantised_samples_do_not_reuse_the_exact_ones(gray):
    exact = gray[0][0]  # decodes, and keeps the result
    assert not torch.equal(quantise(gray)[0][0], exact)


def test_quantising_again_changes_nothing(gray):
    once = quantise(gray)
    assert torch.equal(quantise(once).images, once.images)


def test_clamped_values_are_announced(gray, caplog):
    quantise(gray)
    assert "lie outside 0 to 1 and are clamped" in caplog.text
    caplog.clear()
    quantise(replace(gray, images=gray.images.clamp(0, 1)))
    assert not caplog.text


def test_levels_span_any_finite_range(gray):
    spec = replace(gray.spec, value_range=(-80.0, 20.0))
    values = torch.tensor([-100.0, -80.0, -30.0, 20.0, 50.0])
    assert to_levels(values, spec).tolist() == [0, 0, 128, 255, 255]
    assert torch.allclose(from_levels(torch.tensor([0, 51, 255]), spec), torch.tensor([-80.0, -60.0, 20.0]))


@pytest.mark.parametrize("form", FOLDER_FORMS)
def test_pictures_of_an_infinite_range_are_refused(gray, tmp_path, form):
    unbounded = replace(gray, spec=replace(gray.spec, value_range=(float("-inf"), float("inf"))))
    with pytest.raises(UsageError, match=r"value range of toy is -inf to inf.*safetensors"):
        export(unbounded, tmp_path / "out", form)


@pytest.mark.parametrize("form", FOLDER_FORMS)
def test_pictures_of_values_that_are_not_finite_are_refused(gray, tmp_path, form):
    gray.images[1, 0, 0, 3, 3] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        export(gray, tmp_path / "out", form)


@pytest.mark.parametrize("form", FOLDER_FORMS)
def test_pictures_of_two_channels_are_refused(gray, tmp_path, form):
    spec = replace(gray.spec, shape=(2, 8, 8), mean=(0.5, 0.5), std=(1.0, 1.0))
    with pytest.raises(UsageError, match="2 channels"):
        export(make_set(spec), tmp_path / "out", form)


# Folder of pictures


@pytest.mark.parametrize("name", ["gray", "colour"])
def test_folder_is_read_back_as_a_data_set(name, tmp_path, request):
    synthetic: SyntheticSet = request.getfixturevalue(name)
    folder = export(synthetic, tmp_path / "out", "folder")
    shutil.copytree(folder / "train", folder / "test")  # else some of the samples would be held out
    data = load_dataset(folder)
    assert data.spec.classes == synthetic.spec.classes
    assert data.spec.shape == synthetic.spec.shape
    assert torch.equal(data.train.labels, synthetic.decoded().labels)
    assert torch.equal(data.train.images.float() / 255, quantise(synthetic).decoded().images)


def test_folder_says_what_its_pictures_mean(colour, tmp_path):
    spec = replace(colour.spec, value_range=(-1.0, 3.0))
    folder = export(replace(colour, spec=spec), tmp_path / "out", "folder")
    about = json.loads((folder / "spec.json").read_text())
    assert DatasetSpec.from_json(about["spec"]) == spec
    assert about["levels"] == {"0": -1.0, "255": 3.0, "clamped_share": 0.0}
    assert about["factor"] == [2, 2]
    assert about["provenance"]["method"] == "dsdm"


def test_class_folders_are_safe_and_apart(gray, tmp_path):
    classes = ("../up", "a/b", "a:b")
    folder = export(replace(gray, spec=replace(gray.spec, classes=classes)), tmp_path / "out", "folder")
    entries = json.loads((folder / "classes.json").read_text())["classes"]
    assert [(entry["label"], entry["name"]) for entry in entries] == list(enumerate(classes))
    assert [entry["folder"] for entry in entries] == ["_._up", "a_b", "a_b_2"]
    assert {path.name for path in (folder / "train").iterdir()} == {"_._up", "a_b", "a_b_2"}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (("A", "a"), ("A", "a_1")),
        (("a", "a", "a_1"), ("a", "a_1", "a_1_2")),
        (("con", "nul.txt", "", "  "), ("_con", "_nul.txt", "_", "__3")),
        ((".hidden", "end.", "é t."), ("_hidden", "end_", "é t_")),
        (("x" * 300, "x" * 299), ("x" * 200, "x" * 200 + "_1")),
    ],
)
def test_folder_names(classes, folders):
    assert folder_names(classes) == folders


def test_a_repeated_name_gets_its_label():
    assert distinct(("a", "A", "a")) == ("a", "A", "a_2")


def test_folders_that_sort_otherwise_than_labels_are_announced(gray, tmp_path, caplog):
    bounded = replace(gray, images=gray.images.clamp(0, 1))
    export(bounded, tmp_path / "sorted", "folder")
    assert not caplog.text
    export(replace(bounded, spec=replace(gray.spec, classes=("9", "10", "11"))), tmp_path / "out", "folder")
    assert "see classes.json" in caplog.text


def test_more_than_ten_thousand_pictures_still_sort(toy_dataset, monkeypatch):
    monkeypatch.setattr("potstill.sets.export.folder.png_bytes", lambda sample: b"")
    spec = replace(toy_dataset.spec, shape=(1, 1, 1), classes=("a",))
    content = EXPORTS["folder"].content(SyntheticSet(torch.rand(1, 10_001, 1, 1, 1), spec), {})
    names = [name for name in content if name.endswith(".png")]
    assert names == sorted(names)
    assert names[-1] == "train/a/10000.png"


def test_a_shard_keeps_its_labels(gray, tmp_path):
    shard = replace(gray, images=gray.images[1:], classes=(1, 2))
    folder = export(shard, tmp_path / "out", "folder")
    assert {path.name for path in (folder / "train").iterdir()} == {"b", "c"}
    _, labels = torch.load(export(shard, tmp_path / "out.pt", "pt"), weights_only=True)
    assert labels.tolist() == [1, 1, 2, 2]


# Hugging Face


@pytest.mark.parametrize("name", ["gray", "colour"])
def test_datasets_reads_the_huggingface_folder(name, tmp_path, request, offline):
    synthetic: SyntheticSet = request.getfixturevalue(name)
    folder = export(synthetic, tmp_path / "out", "huggingface")
    rows = offline.load_dataset(str(folder), split="train")
    assert isinstance(rows.features["image"], offline.Image)
    assert rows.features["label"].names == list(synthetic.spec.classes)
    samples = synthetic.decoded()
    assert rows["label"] == samples.labels.tolist()
    channels, height, width = synthetic.spec.shape
    levels = np.stack([np.array(image) for image in rows["image"]]).reshape(-1, height, width, channels)
    expected = 255 * samples.images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(levels - expected).max() <= 0.5 + 1e-4


def test_datasets_tells_exports_apart(gray, tmp_path, offline):
    other = replace(gray, images=1 - gray.images)
    for folder in ("a", "b"):
        synthetic = gray if folder == "a" else other
        where = str(export(synthetic, tmp_path / folder / "export-huggingface", "huggingface"))
        assert _levels(offline.load_dataset(where, split="train")) == _levels_of(synthetic)
    where = str(export(other, tmp_path / "a" / "export-huggingface", "huggingface", overwrite=True))
    assert _levels(offline.load_dataset(where, split="train")) == _levels_of(other)


def _levels(rows) -> list:
    return [np.array(image).tolist() for image in rows["image"]]


def _levels_of(synthetic: SyntheticSet) -> list:
    return sample_levels(synthetic)[0].squeeze(1).tolist()


def test_datasets_accepts_repeated_class_names(gray, tmp_path, offline):
    synthetic = replace(gray, spec=replace(gray.spec, classes=("a", "a", "é")))
    rows = offline.load_dataset(str(export(synthetic, tmp_path / "out", "huggingface")), split="train")
    assert rows.features["label"].names == ["a", "a_1", "é"]


def test_the_code_of_the_card_gives_the_normalised_samples(tmp_path, toy_colour, offline):
    spec = replace(toy_colour.spec, value_range=(-0.5, 1.5))
    synthetic = make_set(spec, factor=(1, 2))
    folder = export(synthetic, tmp_path / "out", "huggingface")
    first, second = (part.split("```")[0] for part in (folder / "README.md").read_text().split("```python\n")[1:])
    names: dict = {}
    for code in (first, second):
        assert "path/to/this/folder" in code
        exec(code.replace("path/to/this/folder", str(folder)), names)
    half_level = 1 / 255 / min(spec.std)
    for index in (0, len(synthetic) - 1):
        exact, label = synthetic[index]
        assert (names["images"][index] - exact).abs().max() <= half_level + 1e-4
        assert int(names["labels"][index]) == label
        assert torch.equal(names["train"][index][0], exact)


def test_the_huggingface_folder_holds_the_exact_set(colour, tmp_path):
    folder = export(colour, tmp_path / "out", "huggingface")
    again = read_set(folder)
    assert torch.equal(again.images, colour.images)
    assert (again.spec, again.factor, again.provenance) == (colour.spec, colour.factor, colour.provenance)


def test_huggingface_without_pyarrow_names_the_extra(gray, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"export to huggingface.*potstill\[hub\]"):
        export(gray, tmp_path / "out", "huggingface")
    assert list(tmp_path.iterdir()) == []


def card(synthetic: SyntheticSet, **facts) -> str:
    return EXPORTS["huggingface"].content(synthetic, facts)["README.md"].decode()  # type: ignore[index]


def test_card_front_matter_is_what_the_hub_expects(gray):
    import yaml

    head = yaml.safe_load(card(replace(gray, spec=replace(gray.spec, licence="CC BY-SA 3.0"))).split("---\n")[1])
    assert head["license"] == "cc-by-sa-3.0"
    assert head["task_categories"] == ["image-classification"]
    assert head["size_categories"] == ["n<1K"]
    (train_file,) = (name for name in EXPORTS["huggingface"].content(gray, {}) if name.endswith(".parquet"))  # type: ignore[union-attr]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": train_file}]
    assert "license" not in yaml.safe_load(card(gray).split("---\n")[1])
    other = yaml.safe_load(card(replace(gray, spec=replace(gray.spec, licence="Ask Me: v2"))).split("---\n")[1])
    assert (other["license"], other["license_name"]) == ("other", "ask-me-v2")


def test_card_tells_origin_factor_and_normalisation(colour):
    text = card(colour)
    for fact in (
        "| source data set | toy_colour, fingerprint toy_colour-1 |",
        "| licence of the source | not known |",
        "| method | dsdm |",
        "| seed | 7 |",
        "| recipe_hash | abc\\|def |",
        "| stored images per class (IPC) | 2 |",
        "| factor | 2 x 2: each stored image holds 4 samples, enlarged bilinearly |",
        "| samples | 24, 3 channels, 16 x 16 |",
        f"mean [{', '.join(f'{m:.6g}' for m in colour.spec.mean)}]",
        "value = level / 255.",
        "are clamped in the pictures",
        "Not measured",
    ):
        assert fact in text


def test_card_tells_the_mapping_of_other_ranges(gray):
    text = card(replace(gray, spec=replace(gray.spec, value_range=(-80.0, 20.0))))
    assert "level 0 of a picture stands for -80 and 255 for 20: value = -80.0 + level / 255 * 100.0" in text
    assert "clamped in the pictures" not in text


def test_card_shows_the_scores_it_is_given(gray):
    def score(seed: int, accuracy: float, **more: Any) -> Score:
        return Score("convnet", "dsdm", 1500, seed, accuracy, **more)

    origin = {"recipe_hash": "abc", "device": "cpu", "commit": "123"}
    text = card(
        gray,
        scores=[score(1, 0.5, **origin), score(2, 0.6, **origin), replace(score(1, 0.25), network="resnet10")],
        eight_bit_scores=[score(1, 0.375), score(2, 0.425)],
    )
    assert "| exact | convnet | dsdm | 1500 | 55.00 +- 7.07 | 2 | abc | cpu | 123 |" in text
    assert "| exact | resnet10 | dsdm | 1500 | 25.00 | 1 |" in text
    assert "| 8 bits | convnet | dsdm | 1500 | 40.00 +- 3.54 | 2 |" in text
    assert "last epoch" in text and "Not measured" not in text


# Exact and .pt forms


@pytest.mark.parametrize("factor", [(1, 1), (2, 2), (1, 3)])
def test_safetensors_round_trip_is_exact(toy_colour, tmp_path, factor):
    synthetic = make_set(toy_colour.spec, factor=factor)
    again = read_set(export(synthetic, tmp_path / "distilled.safetensors", "safetensors"))
    assert torch.equal(again.images, synthetic.images)
    assert (again.spec, again.factor, again.classes) == (synthetic.spec, factor, synthetic.classes)
    assert again.provenance == synthetic.provenance


@pytest.mark.parametrize("name", ["gray", "colour"])
def test_pt_round_trip_is_exact(name, tmp_path, request):
    synthetic: SyntheticSet = request.getfixturevalue(name)
    path = export(synthetic, tmp_path / "data_best.pt", "pt")
    images, labels = torch.load(path, weights_only=True)
    assert images.shape == (6, *synthetic.spec.shape)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and labels.dtype == torch.int64
    again = read_pt(path, synthetic.spec, factor=synthetic.factor)
    assert torch.equal(again.images, synthetic.images)
    assert torch.equal(again.decoded().images, synthetic.decoded().images)


@pytest.mark.parametrize("name", ["gray", "colour"])
def test_pt_data_holds_what_networks_see_and_comes_back(name, tmp_path, request):
    synthetic: SyntheticSet = request.getfixturevalue(name)
    path = export(synthetic, tmp_path / "res.pt", "pt-data")
    content = torch.load(path, weights_only=True)
    assert set(content) == {"data", "accs_all_exps"}
    ((images, labels),) = content["data"]
    assert torch.equal(images, torch.stack([image for image, _ in synthetic]))
    assert labels.tolist() == [label for _, label in synthetic]
    again = read_pt(path, synthetic.spec)
    assert again.factor == (1, 1)
    assert torch.allclose(again.decoded().images, synthetic.decoded().images, atol=1e-6)


def test_exports_do_not_carry_more_than_the_set(gray, tmp_path):
    part = SyntheticSet(torch.rand(500, 100, *gray.spec.shape)[:3, :1], gray.spec)
    assert export(part, tmp_path / "out.pt", "pt").stat().st_size < 10_000


def test_pt_says_that_the_factor_is_lost(gray, colour, tmp_path, caplog):
    export(gray, tmp_path / "gray.pt", "pt")
    assert not caplog.text
    export(colour, tmp_path / "colour.pt", "pt")
    assert "give 2,2" in caplog.text


def test_a_factor_that_was_not_given_is_said_to_be_taken_as_one(gray, tmp_path, caplog):
    path = export(gray, tmp_path / "set.pt", "pt")
    read_set(path, gray.spec, factor=(1, 1))
    assert not caplog.text
    assert read_set(path, gray.spec).factor == (1, 1)
    assert "set.pt: does not hold its factor, 1 is taken: give --factor 2" in caplog.text


def test_pt_data_says_by_which_constants_it_is_normalised(gray, tmp_path, caplog):
    constants = f"mean {gray.spec.mean[0]:.4g} and std {gray.spec.std[0]:.4g} of toy"
    path = export(gray, tmp_path / "res.pt", "pt-data")
    assert f"{constants}; scripts of DC and DM normalise their test images by constants of their own" in caplog.text
    caplog.clear()
    read_pt(path, gray.spec)
    assert constants in caplog.text and "try --normalisation common" in caplog.text


def test_images_are_sorted_by_class_in_file_order(gray, tmp_path):
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([2, 0, 1, 0, 2, 1])
    again = read_pt(save_pt(tmp_path / "mixed.pt", (images, labels)), gray.spec)
    assert torch.equal(again.images, images[torch.tensor([[1, 3], [2, 5], [0, 4]])])


def test_half_precision_is_widened(gray, tmp_path):
    images = gray.images.flatten(0, 1).half()
    again = read_pt(save_pt(tmp_path / "half.pt", [images, torch.arange(3).repeat_interleave(2)]), gray.spec)
    assert again.images.dtype == torch.float32
    assert torch.equal(again.images.flatten(0, 1), images.float())


def test_the_first_of_several_sets_is_read_unless_asked(gray, tmp_path, caplog):
    labels = torch.arange(3)
    sets = [[torch.full((3, 1, 8, 8), value), labels] for value in (0.0, 1.0)]
    path = save_pt(tmp_path / "res.pt", {"data": sets, "accs_all_exps": {"ConvNet": [0.5]}})
    assert (read_pt(path, gray.spec, normalised=False).images == 0).all()
    assert "holds 2 sets, number 0 is read" in caplog.text
    assert (read_pt(path, gray.spec, normalised=False, which=1).images == 1).all()
    with pytest.raises(UsageError, match=r"which=2: .*holds 2 sets, use 0 to 1"):
        read_pt(path, gray.spec, which=2)


def test_normalised_can_be_said_of_either_form(gray, tmp_path):
    images, labels = torch.zeros(3, 1, 8, 8), torch.arange(3)
    pair = save_pt(tmp_path / "pair.pt", [images, labels])
    data = save_pt(tmp_path / "data.pt", {"data": [[images, labels]]})
    assert (read_pt(pair, gray.spec).images == 0).all()
    assert torch.allclose(read_pt(pair, gray.spec, normalised=True).images, torch.tensor(gray.spec.mean[0]))
    assert torch.allclose(read_pt(data, gray.spec).images, torch.tensor(gray.spec.mean[0]))
    assert (read_pt(data, gray.spec, normalised=False).images == 0).all()


def test_pixels_far_beyond_the_range_are_questioned(gray, tmp_path, caplog):
    path = save_pt(tmp_path / "pair.pt", [3 * torch.randn(3, 1, 8, 8), torch.arange(3)])
    read_pt(path, gray.spec)
    assert "give --normalised true (normalised=True)" in caplog.text
    caplog.clear()
    read_pt(path, gray.spec, factor=(1, 1), normalised=True)
    assert not caplog.text


def test_numpy_accuracies_beside_the_sets_are_passed_over(gray, tmp_path):
    """The scripts keep `accs_all_exps` as numpy numbers, which torch refuses unless told otherwise."""
    labels = torch.arange(3)
    content = {"data": [[torch.zeros(3, 1, 8, 8), labels]], "accs_all_exps": {"ConvNet": [np.float64(0.5)] * 2}}
    path = save_pt(tmp_path / "res.pt", content)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert read_pt(path, gray.spec).ipc == 1
    # numpy 1 gave the function another home; the file is otherwise the same.
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != path.read_bytes()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # reading has not opened the door for others


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("proof",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_foreign_global_is_refused_and_not_run(gray, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"data": [[torch.zeros(3, 1, 8, 8), torch.arange(3)]], "accs_all_exps": Foreign()}
    torch.save(content, tmp_path / "res.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"res.pt: asks for (posix|nt).mkdir, which is refused.*\[images, labels\]"):
        read_pt(tmp_path / "res.pt", gray.spec)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", pickle.dumps("hello"), b"\x89PNG"])
def test_what_torch_cannot_read_is_a_data_error(gray, tmp_path, data):
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(DataError, match=r"bad.pt: .*expected .*\[images, labels\].*\"data\""):
        read_pt(tmp_path / "bad.pt", gray.spec)


ONE_EACH = torch.arange(3)
BLANK = torch.zeros(3, 1, 8, 8)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (BLANK, r"one tensor \(float32 of shape \(3, 1, 8, 8\)\)"),
        ([BLANK, ONE_EACH, ONE_EACH], r"a list of 3 \(Tensor, Tensor, Tensor\)"),
        ([BLANK, [0, 1, 2]], r"a list of 2 \(Tensor, list\)"),
        ({"images": BLANK, "labels": ONE_EACH}, "a dictionary of 'images', 'labels'"),
        ({"data": [BLANK, ONE_EACH]}, r"a dictionary of 'data', with a list of 2 \(Tensor, Tensor\) as \"data\""),
        ({"data": []}, "a dictionary of 'data', with a list of 0"),
        ("text", "an object of type str"),
    ],
)
def test_other_structures_are_named(gray, tmp_path, content, found):
    with pytest.raises(DataError, match=f"holds {found}.*expected"):
        read_pt(save_pt(tmp_path / "odd.pt", content), gray.spec)


@pytest.mark.parametrize(
    ("images", "labels", "found"),
    [
        (torch.zeros(3, 3, 8, 8), ONE_EACH, r"images are float32 of shape \(3, 3, 8, 8\), expected .*\(N, 1, 8, 8\)"),
        (torch.zeros(3, 1, 8), ONE_EACH, r"images are float32 of shape \(3, 1, 8\)"),
        (torch.tensor(0.0), ONE_EACH, r"images are float32 of shape \(\)"),
        (BLANK.byte(), ONE_EACH, "images are uint8"),
        (BLANK, torch.eye(3), r"labels are float32 of shape \(3, 3\), expected an integer .* for each of 3"),
        (BLANK, torch.arange(2), r"labels are int64 of shape \(2,\), expected an integer .* for each of 3"),
        (BLANK, torch.tensor([0, 1, 3]), "label 3 at position 2, expected 0 to 2 for toy"),
        (BLANK, torch.tensor([-1, 1, 2]), "label -1 at position 0"),
        (BLANK, torch.tensor([0, 1, 1]), "0 images of class 'c' but 2 of 'b'"),
        (torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 2]), "1 images of class 'a' but 2 of 'c'"),
        (BLANK[:0], ONE_EACH[:0], "0 images of class 'a'"),
        (torch.stack([*BLANK[:2], BLANK[2] + float("nan")]), ONE_EACH, "image 2 has NaN"),
        (BLANK.double() + 1e300, ONE_EACH, "image 0 has NaN or infinite"),  # in the 32 bits that are computed with
    ],
)
def test_sets_that_do_not_fit_are_data_errors(gray, tmp_path, images, labels, found):
    for content in ([images, labels], {"data": [[images, labels]]}):
        with pytest.raises(DataError, match=f"odd.pt: .*{found}"):
            read_pt(save_pt(tmp_path / "odd.pt", content), gray.spec)


UNUSUAL = {
    "sparse_coo": torch.Tensor.to_sparse,
    "sparse_csr": lambda x: x.reshape(3, -1).to_sparse_csr(),
    "without values (meta)": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "nested ": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "uint64": lambda x: x.to(torch.uint64),
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "float4_e2m1fn_x2": lambda x: x.to(torch.uint8).view(torch.float4_e2m1fn_x2),
    "bits8": lambda x: x.to(torch.uint8).view(torch.bits8),
    "complex64": lambda x: x.to(torch.complex64).conj(),
    "quint8": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8),
    "bool": lambda x: x.bool(),
}


@pytest.mark.filterwarnings("ignore")  # torch announces most of these as unfinished
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_other_than_plain_arrays_are_named_in_one_line(gray, tmp_path, kind):
    images, labels = UNUSUAL[kind](BLANK), UNUSUAL[kind](ONE_EACH.reshape(3, 1) if "nested" in kind else ONE_EACH)
    for content, found in (
        ([images, ONE_EACH], f"images are {kind.strip()}"),
        ({"data": [[BLANK, labels]]}, f"labels are {kind.strip()}"),
        (images, f"one tensor ({kind.strip()}"),
    ):
        with pytest.raises(DataError) as error:
            read_pt(save_pt(tmp_path / "odd.pt", content), gray.spec)
        assert found in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Virus scan warning</html>", "web page.*download it again"),
        (b"weights", "not written by torch.save"),
    ],
)
def test_no_advice_to_load_without_protection(gray, tmp_path, data, remedy):
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(DataError, match=remedy) as error:
        read_pt(tmp_path / "bad.pt", gray.spec)
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_file_cut_short_is_a_data_error(gray, tmp_path, share):
    path = export(gray, tmp_path / "set.pt", "pt")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="cut short: take another copy"):
        read_pt(path, gray.spec)


def test_a_folder_or_pipe_named_pt_is_a_data_error(gray, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("folder.pt", "pipe.pt"):
        with pytest.raises(DataError, match=f"{name}: not a file"):
            read_pt(tmp_path / name, gray.spec)


def test_long_keys_are_shortened(gray, tmp_path):
    with pytest.raises(DataError) as error:
        read_pt(save_pt(tmp_path / "odd.pt", {"x" * 100_000: BLANK}), gray.spec)
    assert len(str(error.value)) < 400


# One front door


@pytest.mark.parametrize("place", ["distilled.safetensors", "synthetic/distilled.safetensors"])
def test_a_folder_or_run_is_read_by_its_set(gray, tmp_path, place):
    export(gray, tmp_path / place, "safetensors")
    assert torch.equal(read_set(tmp_path).images, gray.images)
    assert torch.equal(read_set(str(tmp_path / place), gray.spec, factor=(1, 1)).images, gray.images)


def test_a_pt_file_needs_its_data_set(colour, tmp_path):
    path = export(colour, tmp_path / "data_best.pt", "pt")
    with pytest.raises(UsageError, match=r"data_best.pt: .*--dataset"):
        read_set(path)
    again = read_set(path, colour.spec, factor=(2, 2))
    assert torch.equal(again.images, colour.images) and again.factor == (2, 2)
    assert read_set(path, colour.spec).factor == (1, 1)
    assert not torch.equal(read_set(path, colour.spec, normalised=True).images, colour.images)


def test_a_factor_that_leaves_less_than_four_pixels_is_a_usage_error(gray, tmp_path):
    path = export(gray, tmp_path / "data_best.pt", "pt")
    with pytest.raises(UsageError, match="factor=4,4"):
        read_set(path, gray.spec, factor=(4, 4))


def test_a_set_must_fit_the_data_set_and_factor_it_is_read_with(gray, toy_colour, tmp_path):
    path = export(gray, tmp_path / "distilled.safetensors", "safetensors")
    with pytest.raises(DataError, match=r"stands for toy with 3 classes of shape \(1, 8, 8\), expected 3 of shape"):
        read_set(path, toy_colour.spec)
    with pytest.raises(UsageError, match="has factor 1,1, not 2,2"):
        read_set(path, factor=(2, 2))
    with pytest.raises(UsageError, match="holds pixels, not normalised images"):
        read_set(path, normalised=True)


def test_what_holds_no_set_is_a_data_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path, found in (("missing", "no such file"), ("notes.txt", "not a distilled set"), ("", "holds no distilled")):
        with pytest.raises(DataError, match=f"{found}.*expected .*distilled.safetensors"):
            read_set(tmp_path / path)


def test_pictures_are_plain_png(gray, colour):
    for synthetic, mode in ((gray, "L"), (colour, "RGB")):
        content = EXPORTS["folder"].content(synthetic, {})
        assert Image.open(BytesIO(content["train/a/0000.png"])).mode == mode  # type: ignore[index]
