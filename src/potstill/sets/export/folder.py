"""A tree of pictures, train/CLASS/0000.png, as `load_dataset` and most other tools read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...files import SCHEMA_VERSION
from ..synthetic import SyntheticSet
from .base import EXPORTS, Form, logger
from .eight_bit import png_bytes, sample_levels
from .names import folder_names


def to_folder(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Decoded samples by class, `classes.json` (label, name, folder) and `spec.json` (the data set they stand for).

    Raises:
        UsageError: a value range that is not finite, or neither 1 nor 3 channels.
        DataError: values that are not finite.
    """
    spec = synthetic.spec
    levels, clipped = sample_levels(synthetic)
    folders = folder_names(spec.classes)
    if list(folders) != sorted(folders):
        logger.warning("%s: read in alphabetical order, the folders get other labels: see classes.json", spec.name)
    by_class = levels.reshape(len(synthetic.classes), -1, *spec.shape)
    digits = max(4, len(str(by_class.shape[1] - 1)))
    content = {
        f"train/{folders[cls]}/{number:0{digits}}.png": png_bytes(sample)
        for cls, samples in zip(synthetic.classes, by_class, strict=True)
        for number, sample in enumerate(samples)
    }
    classes = [
        {"label": label, "name": name, "folder": folder}
        for label, (name, folder) in enumerate(zip(spec.classes, folders, strict=True))
    ]
    low, high = spec.value_range
    about = {
        "spec": spec.to_json(),
        "levels": {"0": low, "255": high, "clamped_share": clipped},
        "ipc": synthetic.ipc,
        "factor": synthetic.factor,
        "parameterisation": synthetic.way.to_json(),
        "provenance": synthetic.provenance,
    }
    return {**content, "classes.json": _json({"classes": classes}), "spec.json": _json(about)}


EXPORTS.register("folder")(Form(to_folder))


def _json(record: dict[str, Any]) -> bytes:
    text = json.dumps({"schema_version": SCHEMA_VERSION, **record}, indent=2, ensure_ascii=False)
    return f"{text}\n".encode()
