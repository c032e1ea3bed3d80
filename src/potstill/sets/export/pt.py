"""The two `.pt` forms that published scripts write and read.

pt: `[images, labels]` of IDC and what is built on it (DREAM, DSDM): stored images on the pixel scale, not decoded, and
without the factor. pt-data: `{"data": [[images, labels], ...], "accs_all_exps": {...}}` of DC, DSA and DM: normalised
samples as networks see them. Files are read with `weights_only=True`: nothing in them is run.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError, UsageError
from ...spec import DatasetSpec, normalise
from ..parameterisations.tiles import Factor, check_factor
from ..synthetic import SyntheticSet
from .base import EXPORTS, Form, logger

SUFFIXES = (".pt", ".pth")
FORMS = '[images, labels] (IDC, DSDM) or {"data": [[images, labels], ...]} (DC, DM)'


def to_pt(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> bytes:
    """`[images, labels]`: `(K * IPC, C, H, W)` stored images on the pixel scale and their labels, class by class.

    What is not stored as images is decoded, and said.
    """
    if synthetic.factor is None:
        logger.warning("the form pt holds images: the decoded samples of %s are written", synthetic.way.describe())
        split = synthetic.decoded()
        return _saved([split.images.detach().cpu().clone(), split.labels])
    if synthetic.factor != (1, 1):
        logger.warning(
            "the form pt does not hold the factor: give %d,%d when the file is read again", *synthetic.factor
        )
    images = synthetic.images.detach().cpu().flatten(0, 1).clone()  # a view would be saved with all of its storage
    return _saved([images, torch.tensor(synthetic.classes).repeat_interleave(synthetic.ipc)])


def to_pt_data(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> bytes:
    """`{"data": [[images, labels]], "accs_all_exps": {}}`: all decoded samples, normalised by the spec's statistics."""
    split, spec = synthetic.decoded(), synthetic.spec
    images = normalise(split.images.detach().cpu(), torch.tensor(spec.mean), torch.tensor(spec.std))
    return _saved({"data": [[images, split.labels]], "accs_all_exps": {}})


EXPORTS.register("pt")(Form(to_pt, SUFFIXES))
EXPORTS.register("pt-data")(Form(to_pt_data, SUFFIXES))


def _saved(record: Any) -> bytes:
    file = io.BytesIO()
    torch.save(record, file)
    return file.getvalue()


def read_pt(
    path: str | Path,
    spec: DatasetSpec,
    *,
    factor: Factor = (1, 1),
    normalised: bool | None = None,
    which: int = 0,
) -> SyntheticSet:
    """A set from either form, found out from the file.

    Args:
        spec: of the data set that the file stands for. Its mean and std undo a normalisation, so they must be those
            that the script used (`load_dataset(..., normalisation="common")` for the constants in wide use).
        factor: of partition and expansion; no form holds it.
        normalised: whether the file holds normalised images; where None, as scripts of its form do.
        which: the set to take where the file holds several.
    Raises:
        DataError: not one of the forms, anything but plain tensors, or a set that does not fit `spec`.
        UsageError: a factor that the images do not allow, or a `which` that the file does not have.
    """
    path = Path(path)
    form, images, labels = _pair(path, _load(path), which)
    _check(path, images, labels, spec)
    images = images.detach().float()[labels.argsort(stable=True)]
    if normalised is None:
        normalised = form == "pt-data"
        _announce_scale(path, images, spec, normalised)
    if normalised:
        images = images * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
    images = images.reshape(spec.num_classes, -1, *spec.shape).contiguous()
    return SyntheticSet(images, spec, check_factor(factor, spec), provenance={"imported": path.name, "form": form})


class _Ignored:
    """Stands in for the numpy numbers among the accuracies that scripts save beside the sets. Keeps nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_NUMPY_NUMBERS: list[Any] = [
    (_Ignored, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
]


def _load(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file, expected {FORMS}")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways, refused ones as UnpicklingError
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        found = f"asks for {foreign[1]}, which is refused" if foreign else f"cannot be read ({first_line})"
        raise DataError(f"{path}: {found}; expected plain tensors, {FORMS}") from error


def _pair(path: Path, content: Any, which: int) -> tuple[str, Tensor, Tensor]:
    """The form's name and its images and labels."""
    if _is_pair(content):
        if which != 0:
            raise UsageError(f"which={which}: {path} holds 1 set, use 0")
        return "pt", *content
    sets = content.get("data") if isinstance(content, dict) else None
    if not isinstance(sets, (list, tuple)) or not sets or not all(_is_pair(entry) for entry in sets):
        raise DataError(f"{path}: holds {_describe(content)}, expected {FORMS}")
    if not 0 <= which < len(sets):
        raise UsageError(f"which={which}: {path} holds {len(sets)} sets, use 0 to {len(sets) - 1}")
    if len(sets) > 1:
        logger.warning("%s: holds %d sets, number %d is read", path, len(sets), which)
    return "pt-data", *sets[which]


def _is_pair(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and len(content) == 2 and all(isinstance(x, Tensor) for x in content)


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        data = f', with {_describe(content["data"])} as "data"' if "data" in content else ""
        return f"a dictionary of {', '.join(map(repr, list(content)[:5])) or 'nothing'}{data}"
    if isinstance(content, (list, tuple)):
        return f"a {type(content).__name__} of {len(content)} ({', '.join(type(x).__name__ for x in content[:3])})"
    if isinstance(content, Tensor):
        return f"one tensor of shape {tuple(content.shape)}"
    return f"an object of type {type(content).__name__}"


def _check(path: Path, images: Tensor, labels: Tensor, spec: DatasetSpec) -> None:
    """Every reason why these images and labels are not a balanced set for `spec`."""
    if not images.is_floating_point() or images.shape[1:] != spec.shape:
        found = f"{images.dtype} images of shape {tuple(images.shape)}".removeprefix("torch.")
        raise DataError(f"{path}: {found}, expected floats (N, {', '.join(map(str, spec.shape))}) for {spec.name}")
    if labels.is_floating_point() or labels.is_complex() or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} labels of shape {tuple(labels.shape)}".removeprefix("torch.")
        raise DataError(f"{path}: {found}, expected an integer for each of {len(images)} images")
    wrong = (labels < 0) | (labels >= spec.num_classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        found = f"label {int(labels[first])} at position {first}"
        raise DataError(f"{path}: {found}, expected 0 to {spec.num_classes - 1} for {spec.name}")
    counts = torch.bincount(labels.long(), minlength=spec.num_classes)
    if counts.min() != counts.max() or len(labels) == 0:
        few, many = int(counts.argmin()), int(counts.argmax())
        raise DataError(
            f"{path}: {int(counts[few])} images of class {spec.classes[few]!r} but {int(counts[many])} of "
            f"{spec.classes[many]!r}, expected the same number, at least 1, of every class of {spec.name}"
        )
    finite = torch.isfinite(images).flatten(1).all(1)
    if not finite.all():
        raise DataError(
            f"{path}: image {int((~finite).nonzero()[0])} has NaN or infinite pixels, expected finite values"
        )


def _announce_scale(path: Path, images: Tensor, spec: DatasetSpec, normalised: bool) -> None:
    low, high = (float(value) for value in images.aminmax())
    if normalised:
        logger.warning(
            "%s: taken as normalised images; the mean %s and std %s of %s undo it, which must be the script's",
            path, _short(spec.mean), _short(spec.std), spec.name,
        )  # fmt: skip
    elif low < spec.value_range[0] - 0.1 or high > spec.value_range[1] + 0.1:
        logger.warning(
            "%s: taken as pixels, but they reach from %g to %g, beyond %g to %g: give normalised=True if they are not",
            path, low, high, *spec.value_range,
        )  # fmt: skip


def _short(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
