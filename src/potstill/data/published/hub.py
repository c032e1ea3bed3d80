"""Published sets from the Hugging Face hub, on request only, through the extra `hub`."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import DataError, MissingExtra, refuse_out_of_memory
from ..own.objects import read_huggingface
from ..records import DATASETS, RawDataset, logger, reason


@dataclass(frozen=True)
class Repository:
    """Where a set lies on the hub. `revision` is a branch, a tag or a commit; `config` one of several sets in it."""

    name: str
    megabytes: int
    revision: str = "main"
    config: str | None = None


REPOSITORIES = {
    "mnist": Repository("ylecun/mnist", 18),
    "fashion_mnist": Repository("zalando-datasets/fashion_mnist", 37),
    "cifar10": Repository("uoft-cs/cifar10", 144),
    "cifar100": Repository("uoft-cs/cifar100", 142),
    "svhn": Repository("ufldl-stanford/svhn", 211, config="cropped_digits"),
}


def from_hub(name: str) -> RawDataset:
    """Download the known set `name`, or take it from the library's own cache.

    Raises:
        MissingExtra: `datasets` is not installed.
        DataError: the set is not on the hub, or the download failed.
    """
    if name not in REPOSITORIES:
        raise DataError(f"{name}: cannot be downloaded, only {', '.join(REPOSITORIES)} can")
    try:
        from datasets import load_dataset  # takes a second to import, and is optional
    except ImportError:
        raise MissingExtra(f"downloading {name}", "hub") from None
    place = REPOSITORIES[name]
    address = f"huggingface.co/datasets/{place.name}, revision {place.revision}"
    logger.warning("%s: downloading about %d MB from %s", name, place.megabytes, address)
    try:
        content = load_dataset(place.name, place.config, revision=place.revision)
    except Exception as problem:  # of the network, the server, the library's cache: all mean the same to the user
        refuse_out_of_memory(problem, name)
        failed = f"{name}: download from {address} failed ({reason(problem)})"
        raise DataError(f"{failed}: check the connection, or place the published files") from problem
    raw = read_huggingface(content, None)
    if raw is None or raw.test is None:
        raise DataError(f"{name}: {address} has no train and test split, expected both")
    return DATASETS[name].with_splits(raw.train, raw.test)
