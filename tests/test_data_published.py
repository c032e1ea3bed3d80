"""The published sets: digits, the idx files, the CIFAR layouts and the hub."""

import gzip
import logging
import os
import pickle
import socket
import sys
from hashlib import blake2b
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io as scipy_io
import torch
from data_factory import noise, picture, python2_pickle, refused, write_cifar, write_idx, write_mnist

from potstill.data import DATASETS, default_data_dir, load_dataset
from potstill.data.published import idx
from potstill.data.published.unpickle import read_arrays
from potstill.data.records import KnownSet, MissingFiles, RawSplit
from potstill.errors import MissingExtra, UsageError


@pytest.fixture(autouse=True)
def no_debian_package(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "debian")


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path / "MNIST" / "raw")


# Names and places


def test_unknown_name_lists_the_known_and_mentions_paths():
    with refused(
        "'minst'", "cifar10, cifar100, digits, fashion_mnist, mini_speech_commands, mnist, svhn", "path", by=UsageError
    ):
        load_dataset("minst")


def test_data_dir_comes_from_the_environment_then_from_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("POTSTILL_DATA_DIR", str(tmp_path / "mine"))
    assert default_data_dir() == tmp_path / "mine"
    monkeypatch.delenv("POTSTILL_DATA_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "potstill" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_data_dir() == Path("~/.cache/potstill/data").expanduser()


def test_environment_leads_load_dataset_to_the_files(monkeypatch, tmp_path, mnist):
    monkeypatch.setenv("POTSTILL_DATA_DIR", str(tmp_path))
    assert load_dataset("mnist").spec.name == "mnist"


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_missing_files_name_the_folder_and_the_remedy(name, tmp_path):
    with refused(name, tmp_path, "place the published files there", "--download"):
        load_dataset(name, data_dir=tmp_path)


def test_missing_fashion_mnist_names_the_debian_package(tmp_path):
    with refused("dataset-fashion-mnist", idx.DEBIAN_FASHION_MNIST):
        load_dataset("fashion_mnist", data_dir=tmp_path)


# digits


def test_digits_need_no_files(tmp_path):
    data = load_dataset("digits", data_dir=tmp_path)
    assert data.spec.shape == (1, 8, 8) and data.spec.licence == "CC BY 4.0" and data.spec.mirror is False
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.dtype == torch.uint8 and data.train.images.is_contiguous()
    assert data.train.labels.dtype == torch.int64


def test_digits_are_split_in_proportion():
    data = load_dataset("digits")
    train, test = (torch.bincount(split.labels).double() for split in (data.train, data.test))
    assert ((test / (train + test) - 0.2).abs() < 0.005).all()


def test_digits_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    from make_digits import digits_as_bytes

    data, source = load_dataset("digits"), digits_as_bytes()
    images = torch.cat([data.train.images, data.test.images])[:, 0]
    labels = torch.cat([data.train.labels, data.test.labels])

    def rows(images, labels):
        return sorted(zip(map(bytes, images.numpy()), labels.tolist(), strict=True))

    assert rows(images, labels) == rows(source.images, source.labels)


def test_incomplete_installation_is_named(monkeypatch):
    monkeypatch.setattr("potstill.data.published.digits.read_npz", lambda *_: None)
    with refused("digits.npz", "reinstall"):
        load_dataset("digits")


# idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_values_survive(tmp_path, suffix):
    values = noise(3, (5, 4))[0]
    assert (idx.read_idx(write_idx(tmp_path / f"a-idx3-ubyte{suffix}", values), 3) == values).all()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_its_published_layout(tmp_path, suffix):
    write_mnist(tmp_path / "MNIST" / "raw", train=20, test=10, suffix=suffix)
    data = load_dataset("mnist", data_dir=tmp_path)
    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.spec.shape == (1, 28, 28) and data.spec.mirror is False and data.spec.classes == tuple("0123456789")
    assert (data.train.images[:, 0].numpy() == noise(20, (28, 28), seed=20)[0]).all()


def test_fashion_mnist_is_found_in_the_data_folder_and_mirrors(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    spec = load_dataset("fashion_mnist", data_dir=tmp_path).spec
    assert spec.mirror is True and spec.classes[9] == "Ankle boot" and len(spec.classes) == 10


def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path):
    write_mnist(idx.DEBIAN_FASHION_MNIST)
    assert len(load_dataset("fashion_mnist", data_dir=tmp_path / "empty").train) == 20


def test_a_cut_down_copy_is_announced(tmp_path, mnist, caplog):
    load_dataset("mnist", data_dir=tmp_path)
    assert "20 + 10 images found, the published set has 60000 + 10000" in caplog.text


def test_truncated_gzip_names_the_file(tmp_path, mnist):
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with refused(path, "Compressed file ended", "expected a complete idx file"):
        load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("damage", [b"not gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00damaged deflate stream"])
def test_damaged_gzip_names_the_file(tmp_path, mnist, damage):
    path = mnist / "train-labels-idx1-ubyte.gz"
    path.write_bytes(damage)
    with refused(path):
        load_dataset("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x03" + bytes(12), b"\x00\x00\x08\x01" + bytes(12)]
)
def test_wrong_magic_names_the_file_and_both_numbers(tmp_path, mnist, content):
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with refused(path, f"magic number {int.from_bytes(content[:4], 'big'):#x}", "expected 0x803"):
        load_dataset("mnist", data_dir=tmp_path)


def test_idx_shorter_than_its_header_says_is_refused(tmp_path, mnist):
    path = write_idx(mnist / "t10k-images-idx3-ubyte", np.zeros((10, 28, 28)))
    path.write_bytes(path.read_bytes()[:-1])
    with refused(path, "7839 values", "expected 7840"):
        load_dataset("mnist", data_dir=tmp_path)


def test_fewer_labels_than_images_are_refused(tmp_path, mnist):
    path = write_idx(mnist / "train-labels-idx1-ubyte.gz", np.arange(19) % 10)
    with refused(path, "19 labels", "expected 20"):
        load_dataset("mnist", data_dir=tmp_path)


def test_one_missing_file_of_four_is_named(tmp_path, mnist):
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with refused(mnist, "1 of 4 files missing", "t10k-labels-idx1-ubyte[.gz]"):
        load_dataset("mnist", data_dir=tmp_path)


def test_label_out_of_range_is_refused(tmp_path, mnist):
    write_idx(mnist / "t10k-labels-idx1-ubyte.gz", np.arange(10) + 1)
    with refused("t10k-images", "label 10 at position 9", "expected 0 to 9"):
        load_dataset("mnist", data_dir=tmp_path)


def test_class_without_training_image_is_refused(tmp_path, mnist):
    write_idx(mnist / "train-labels-idx1-ubyte.gz", np.arange(20) % 9)
    with refused("train-images", "class '9'", "no image"):
        load_dataset("mnist", data_dir=tmp_path)


# CIFAR


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", [{"python2": True}, {"python2": False}, {"binary": True}])
def test_cifar_layouts_hold_the_same_data(tmp_path, name, form):
    images = write_cifar(tmp_path, name, **form)
    data = load_dataset(name, data_dir=tmp_path)
    assert (data.train.images.numpy() == images).all()
    assert data.train.labels.tolist() == [number % data.spec.num_classes for number in range(len(images))]
    assert data.spec.mirror is True and data.train.images.is_contiguous()


def test_cifar100_classes_are_its_fine_labels_in_alphabetical_order():
    classes = DATASETS["cifar100"].classes
    assert len(set(classes)) == 100 and list(classes) == sorted(classes)


class Foreign:
    def __reduce__(self):
        return os.mkdir, ("foreign-pickle-was-here",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_foreign_pickle_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Foreign(), "labels": []}, protocol=protocol))
    with refused(path, "posix.mkdir" if os.name == "posix" else "mkdir", "refused"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert not Path("foreign-pickle-was-here").exists()


@pytest.mark.parametrize(
    "asked",
    [b"cbuiltins\neval\n", b"cnumpy\nload\n", b"cnumpy\nndarray.__class__\n", b"cnumpy.core.multiarray\nscalar\n"],
)
def test_names_beside_those_of_arrays_are_refused(tmp_path, asked):
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02" + asked + b".")
    with refused(path, asked[1:-1].decode().replace("\n", "."), "expected nothing but uint8 arrays"):
        read_arrays(path)


def test_a_pickle_cannot_change_the_reader(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}X\x05\x00\x00\x00buildNs\x86b.")
    with refused(path):
        read_arrays(path)
    path.write_bytes(python2_pickle({"data": np.arange(6, dtype=np.uint8)}))
    assert read_arrays(path)["data"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", python2_pickle({"data": np.zeros((4, 4), np.uint8)})[:-9], pickle.dumps([1]),
     pickle.dumps({"data": np.array([None])}, 4), pickle.dumps({"data": np.zeros(3)}, 4),
     pickle.dumps({"data": np.zeros(3, np.int8)}, 4), pickle.dumps({"data": np.zeros((2, 3), np.uint8, "F")}, 4),
     python2_pickle({"data": np.zeros(4, np.uint8)}).replace(b"J\x04\0\0\0", b"J\x05\0\0\0")],
    ids=["empty", "text", "truncated", "list", "objects", "floats", "signed", "columns first", "too short"],
)  # fmt: skip
def test_damaged_pickle_names_the_file(tmp_path, content):
    path = tmp_path / "batch"
    path.write_bytes(content)
    with refused(path, "expected a dictionary of arrays"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"data": np.zeros((2, 3072), np.uint8)}, "expected data and labels"),
        ({"data": np.zeros((2, 9), np.uint8), "labels": [0, 1]}, "expected (N, 3072)"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "2 images but 1 labels"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, "a"]}, "not integers"),
    ],
)
def test_cifar_batch_with_unfit_content_names_the_file(tmp_path, content, complaint):
    write_cifar(tmp_path, "cifar10")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with refused(path, complaint):
        load_dataset("cifar10", data_dir=tmp_path)


def test_binary_file_that_ends_within_an_image_is_refused(tmp_path):
    write_cifar(tmp_path, "cifar10", binary=True)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with refused(path, "30729 bytes", "multiple of 3073"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_missing_cifar_batch_is_named(tmp_path):
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_5").unlink()
    with refused("a file is missing", tmp_path / "cifar-10-batches-py", "data_batch_5", "--download"):
        load_dataset("cifar10", data_dir=tmp_path)


# Facts that can be overridden


def test_mirror_of_a_known_set_can_be_overridden_with_a_notice(caplog):
    assert load_dataset("digits", mirror=True).spec.mirror is True
    assert "mirror=True as asked for; usual is mirror=False" in caplog.text


def test_common_normalisation_takes_the_constants_in_wide_use(tmp_path):
    write_cifar(tmp_path, "cifar10")
    spec = load_dataset("cifar10", data_dir=tmp_path, normalisation="common").spec
    assert spec.mean == (0.4914, 0.4822, 0.4465) and spec.std == (0.2023, 0.1994, 0.2010)


def test_common_normalisation_of_a_set_without_one_is_measured_with_a_notice(caplog):
    assert load_dataset("digits", normalisation="common").spec == load_dataset("digits").spec
    assert "digits: no constants are in wide use" in caplog.text


def test_unknown_normalisation_lists_both():
    with refused("'common'", "'measured'", "'usual'", by=UsageError):
        load_dataset("digits", normalisation="usual")


# The hub


def hub_copy(train: int = 20, test: int = 10) -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})

    def split(number, seed):
        images = [picture((28, 28), "L", seed=seed + number) for number in range(number)]
        content = {"image": images, "label": [number % 10 for number in range(number)]}
        return datasets.Dataset.from_dict(content, features=features)

    return datasets.DatasetDict(train=split(train, 0), test=split(test, 100))


def test_download_reads_the_hub_and_says_so(tmp_path, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or hub_copy()
    )
    data = load_dataset("mnist", data_dir=tmp_path, download=True)
    assert asked == [(("ylecun/mnist", None), {"revision": "main"})]
    assert "18 MB from huggingface.co/datasets/ylecun/mnist" in caplog.text
    assert data.spec.name == "mnist" and data.spec.mirror is False and data.spec.licence == "CC BY-SA 3.0"
    assert (data.train.images[3, 0].numpy() == np.asarray(picture((28, 28), "L", seed=3))).all()
    assert data.test.labels.tolist() == list(range(10))


def test_local_files_are_preferred_to_a_download(tmp_path, mnist, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert len(load_dataset("mnist", data_dir=tmp_path, download=True).train) == 20


def test_damaged_local_files_are_not_hidden_by_a_download(tmp_path, mnist, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    with refused(mnist / "train-images-idx3-ubyte.gz"):
        load_dataset("mnist", data_dir=tmp_path, download=True)


def test_without_download_the_network_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("opened a socket"))
    for name in set(DATASETS) - {"digits"}:
        with refused(name):
            load_dataset(name, data_dir=tmp_path)


def test_hub_copy_without_test_split_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub_copy()["train"])
    with refused("ylecun/mnist", "no train and test split"):
        load_dataset("mnist", data_dir=tmp_path, download=True)


def test_a_further_known_set_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    def read(data_dir):
        if not (data_dir / "toy").exists():
            raise MissingFiles("toy", "files not found", [data_dir], "toy")
        return RawSplit(*noise(10), "toy"), RawSplit(*noise(4), "toy")

    DATASETS.register("toy")(KnownSet("toy", read, ("a", "b"), mirror=True, published=(10, 4)))
    with refused("toy", "cannot be downloaded", "only mnist"):
        load_dataset("toy", data_dir=tmp_path, download=True)
    (tmp_path / "toy").touch()
    assert load_dataset("toy", data_dir=tmp_path).spec.classes == ("a", "b")


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with refused("cifar10", "huggingface.co/datasets/uoft-cs/cifar10", "no route", "connection"):
        load_dataset("cifar10", data_dir=tmp_path, download=True)


def test_download_without_the_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("potstill[hub]", by=MissingExtra):
        load_dataset("cifar100", data_dir=tmp_path, download=True)


def test_download_of_own_data_is_said_to_have_no_effect(tmp_path, caplog):
    with refused("no such file"):
        load_dataset(tmp_path / "nothing", download=True)
    assert "download=True has no effect" in caplog.text


def test_source_of_known_files_is_logged(tmp_path, mnist, caplog):
    with caplog.at_level(logging.INFO, "potstill"):
        load_dataset("mnist", data_dir=tmp_path)
    assert "20 training and 10 test samples (1, 28, 28), 10 classes" in caplog.text and str(mnist) in caplog.text


# Real data

needs_real_data = pytest.mark.skipif(
    not os.environ.get("POTSTILL_DATA_DIR"), reason="POTSTILL_DATA_DIR does not name a folder of published data"
)


@needs_real_data
@pytest.mark.parametrize(
    ("name", "shape", "counts", "digest"),
    [
        ("mnist", (1, 28, 28), (60_000, 10_000), "f81d2badeceb51a5"),
        ("fashion_mnist", (1, 28, 28), (60_000, 10_000), "20f8f77530ca5733"),
        ("cifar10", (3, 32, 32), (50_000, 10_000), "de79513674b56e6e"),
    ],
)
def test_published_files_give_the_published_data(name, shape, counts, digest, caplog):
    # The digests were made by plain gzip and pickle reading, of files with the published MD5 sums.
    data = load_dataset(name)
    assert data.spec.shape == shape and (len(data.train), len(data.test)) == counts
    hashed = blake2b(digest_size=8)
    for part in ("images", "labels"):
        for split in (data.train, data.test):
            hashed.update(getattr(split, part).byte().flatten().numpy())
    assert hashed.hexdigest() == digest
    assert "published set" not in caplog.text
    measured = {
        "mnist": ((0.1307,), (0.3081,)),
        "fashion_mnist": ((0.2860,), (0.3530,)),
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # .247 .243 .262 in the literature
    }[name]
    assert data.spec.mean == pytest.approx(measured[0], abs=1e-4)
    assert data.spec.std == pytest.approx(measured[1], abs=1e-4)


# SVHN


def write_svhn(folder, number=20):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "test")):
        images, labels = noise(number, (32, 32, 3), classes=10, seed=seed)
        content = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)}
        scipy_io.savemat(folder / f"{split}_32x32.mat", content)
    return folder


def test_svhn_is_read_from_its_mat_files_and_ten_is_zero(tmp_path):
    write_svhn(tmp_path / "svhn")
    data = load_dataset("svhn", data_dir=tmp_path)
    assert data.spec.shape == (3, 32, 32) and data.spec.mirror is False
    assert data.train.labels.tolist() == [*range(10)] * 2
    assert (data.train.images.numpy() == noise(20, (32, 32, 3), classes=10)[0].transpose(0, 3, 1, 2)).all()


def test_svhn_comes_from_the_hub_as_its_cropped_digits(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or hub_copy()
    )
    data = load_dataset("svhn", data_dir=tmp_path, download=True)
    assert asked == [(("ufldl-stanford/svhn", "cropped_digits"), {"revision": "main"})]
    assert data.spec.name == "svhn" and data.spec.mirror is False and data.spec.classes == tuple("0123456789")
    assert data.test.labels.tolist() == list(range(10)), "the hub's digits are themselves"


def test_svhn_without_scipy_names_the_extra(tmp_path, monkeypatch):
    write_svhn(tmp_path / "svhn")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with refused("potstill[audio]", by=MissingExtra):
        load_dataset("svhn", data_dir=tmp_path)


def test_damaged_or_foreign_mat_file_is_named(tmp_path):
    path = write_svhn(tmp_path / "svhn") / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:3000])
    with refused(path, "cannot be read"):
        load_dataset("svhn", data_dir=tmp_path)
    scipy_io.savemat(path, {"X": np.zeros(3)})
    with refused(path, "expected X (32, 32, 3, N)"):
        load_dataset("svhn", data_dir=tmp_path)
