"""The card of an exported set: what it is, how to train on it, and what networks trained on it score."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from ...escape import markdown
from ...scores import Score, Scores, percent_text
from ..synthetic import SyntheticSet

#: Licences that the hub knows by an identifier, among those of common data sets.
LICENCES = {"mit", "apache-2.0", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"}
#: As the hub calls them.
TASKS = {"image": "image-classification", "sound": "audio-classification"}
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"))


def dataset_card(synthetic: SyntheticSet, facts: Mapping[str, Any], clipped: float, train_file: str) -> str:
    """The text of README.md.

    Args:
        facts: "scores" holds the `Score` of each network trained on this very set; "eight_bit_scores" those of the
            set as `quantise` leaves it. Both may be missing.
        clipped: the share of values that the pictures clamp.
        train_file: path of the samples beside the card.
    """
    head = yaml.safe_dump(_front_matter(synthetic, train_file), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {markdown(_title(synthetic))}",
        _summary(synthetic, train_file),
        _table(("", ""), _properties(synthetic)),
        "## Pixel values\n\n" + _pixel_values(synthetic, clipped),
        "## Training on it\n\n" + _training(synthetic),
        "## Accuracy\n\n" + _accuracy(facts),
    ]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _title(synthetic: SyntheticSet) -> str:
    return f"{synthetic.spec.name} in {synthetic.ipc} {synthetic.spec.noun}{'s' * (synthetic.ipc > 1)} per class"


def _front_matter(synthetic: SyntheticSet, train_file: str) -> dict[str, Any]:
    size = next((name for limit, name in SIZES if len(synthetic) < limit), "n>1M")
    return {
        "pretty_name": _title(synthetic),
        **_licence(synthetic.spec.licence),
        "task_categories": [TASKS[synthetic.spec.modality]],
        "size_categories": [size],
        "tags": ["dataset-distillation", "potstill"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": train_file}]},
        ],
    }


def _licence(licence: str) -> dict[str, str]:
    if not licence:
        return {}
    identifier = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    return {"license": identifier} if identifier in LICENCES else {"license": "other", "license_name": identifier}


def _summary(synthetic: SyntheticSet, train_file: str) -> str:
    return (
        f"A small training set that stands for the training split of {markdown(synthetic.spec.name)}: networks are "
        "trained on it from scratch, and scored on the test split of the original data. Made with potstill.\n\n"
        f"- `{train_file}`: the {len(synthetic)} samples that networks train on, as 8-bit PNG pictures\n"
        "- `distilled.safetensors`: the exact set in 32-bit floats, as it is stored before partition and expansion"
    )


def _properties(synthetic: SyntheticSet) -> Iterable[tuple[str, str]]:
    spec = synthetic.spec
    facts = dict(synthetic.provenance)
    yield "source data set", f"{spec.name}, fingerprint {spec.fingerprint}"
    yield "licence of the source", spec.licence or "not known"
    yield "method", facts.pop("method", "not known")
    yield "seed", facts.pop("seed", "not known")
    yield from facts.items()
    yield f"stored {spec.noun}s per class (IPC)", str(synthetic.ipc)
    if synthetic.factor:
        rows, columns = synthetic.factor
        tiles = f"each stored {spec.noun} holds {rows * columns} samples, enlarged bilinearly"
        yield "factor", f"{rows} x {columns}" + (f": {tiles}" if rows * columns > 1 else "")
    else:
        yield "parameterisation", synthetic.way.describe()
    yield "storage", f"{synthetic.numbers_stored:,} numbers, {synthetic.bytes_stored:,} bytes"
    channels, height, width = spec.shape
    yield "samples", f"{len(synthetic)}, {channels} channel{'s' * (channels > 1)}, {height} x {width}"
    yield (
        "classes",
        f"{len(synthetic.classes)}"
        + (
            f" of {spec.num_classes}: " + ", ".join(spec.classes[c] for c in synthetic.classes)
            if len(synthetic.classes) < spec.num_classes
            else ""
        ),
    )


def _pixel_values(synthetic: SyntheticSet, clipped: float) -> str:
    low, high = synthetic.spec.value_range
    text = f"Gray level 0 of a picture stands for {low:g} and 255 for {high:g}: value = {_mapping(low, high)}. "
    if clipped:
        text += f"{100 * clipped:.2g} % of the exact values lie outside and are clamped in the pictures. "
    return text + (
        "Before training, values are normalised per channel, (value - mean) / std, with\n"
        f"mean {_numbers(synthetic.spec.mean)} and std {_numbers(synthetic.spec.std)}."
    )


def _mapping(low: float, high: float) -> str:
    return "level / 255" if (low, high) == (0, 1) else f"{low!r} + level / 255 * {high - low!r}"


def _numbers(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _training(synthetic: SyntheticSet) -> str:
    spec = synthetic.spec
    channels, height, width = spec.shape
    mirror = "left-right flips" if spec.mirror else "but no left-right flips, which change the label here"
    advice = f"strong augmentation: colour, crops, scaling, rotation,\n{mirror}"
    if spec.modality == "sound":
        advice = "none of the augmentation\nthat images get: these are log spectrograms, frequency (low first) by time"
    return f"""```python
import numpy as np
import torch
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train")  # or its name on the hub
level = torch.from_numpy(np.stack([np.array(image) for image in rows["image"]]))
level = level.reshape(-1, {height}, {width}, {channels}).permute(0, 3, 1, 2).float()
value = {_mapping(*spec.value_range)}
mean, std = torch.tensor({_numbers(spec.mean)}), torch.tensor({_numbers(spec.std)})
images = (value - mean[:, None, None]) / std[:, None, None]
labels = torch.tensor(rows["label"])
```

The exact set is a torch `Dataset` of such {spec.noun}s and labels, decoded and normalised:

```python
from potstill.sets.synthetic import SyntheticSet

train = SyntheticSet.load("path/to/this/folder")
```

So few {spec.noun}s need many epochs, 1000 and more, and {advice}.
Normalise test {spec.noun}s with the same mean and std."""


def _accuracy(facts: Mapping[str, Any]) -> str:
    exact = _score_rows("exact", facts.get("scores", ()))
    rounded = _score_rows("8 bits", facts.get("eight_bit_scores", ()))
    if not exact and not rounded:
        return "Not measured when this card was written."
    header = ("set", "network", "protocol", "epochs", "accuracy, %", "networks", "recipe", "device", "commit")
    note = (
        "On the test split of the original data, at the last epoch: mean and sample standard deviation over networks "
        "trained from scratch on this one set; exact is `distilled.safetensors`, 8 bits the pictures."
    )
    return f"{_table(header, [*exact, *rounded])}\n\n{note}"


def _score_rows(pixels: str, scores: Iterable[Score]) -> list[tuple[str, ...]]:
    """One row per network, protocol and length, recipe and machine, over all scores that share them."""
    groups: dict[tuple[str, ...], list[Score]] = {}
    for score in scores:
        shared = (*map(str, score.terms), score.recipe_hash, score.device, score.commit)
        groups.setdefault(shared, []).append(score)
    rows = []
    for key, group in sorted(groups.items()):
        measured = Scores(tuple(group))
        accuracy = percent_text(measured.mean, measured.std)
        rows.append((pixels, *key[:3], accuracy, str(len(group)), *key[3:]))
    return rows


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return markdown(str(text))
