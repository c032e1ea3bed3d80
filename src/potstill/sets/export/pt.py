"""The two `.pt` forms that published scripts write and read.

pt: `[images, labels]` of IDC and what is built on it (DREAM, DSDM): stored images on the pixel scale, not decoded, and
without the factor. pt-data: `{"data": [[images, labels], ...], "accs_all_exps": {...}}` of DC, DSA and DM: normalised
samples as networks see them. Files are read with `weights_only=True`: nothing in them is run.
"""

from __future__ import annotations

import io
import re
import reprlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import DataError, UsageError, refuse_out_of_memory, unreadable
from ...spec import DatasetSpec, normalise
from ..parameterisations.tiles import Factor, check_factor
from ..synthetic import SyntheticSet
from .base import EXPORTS, Form, logger

SUFFIXES = (".pt", ".pth")
FORMS = '[images, labels] (IDC, DSDM) or {"data": [[images, labels], ...]} (DC, DM)'
IMAGE_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LABEL_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def to_pt(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> bytes:
    """`[images, labels]`: `(K * IPC, C, H, W)` stored images on the pixel scale and their labels, class by class.

    What is not stored as images is decoded.
    """
    if synthetic.factor is None:
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
    logger.warning(
        "pt-data: normalised by the mean %s and std %s of %s; scripts of DC and DM normalise their test images by "
        "constants of their own: set those to these", _short(spec.mean), _short(spec.std), spec.name,
    )  # fmt: skip
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
    factor: Factor | None = None,
    normalised: bool | None = None,
    which: int = 0,
) -> SyntheticSet:
    """A set from either form, found out from the file.

    Args:
        spec: of the data set that the file stands for. Its mean and std undo a normalisation, so they must be those
            that the script used (`load_dataset(..., normalisation="common")` for the constants in wide use).
        factor: of partition and expansion, which no form holds; (1, 1) where None.
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
    if factor is None and form == "pt":
        logger.warning(
            "%s: does not hold its factor, 1 is taken: give --factor 2 (factor=(2, 2)) if each image holds 2 x 2", path
        )
    if normalised is None:
        normalised = form == "pt-data"
        _announce_scale(path, images, spec, normalised)
    if normalised:
        images = images * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
    images = images.reshape(spec.num_classes, -1, *spec.shape).contiguous()
    provenance = {"imported": path.name, "form": form}
    return SyntheticSet(images, spec, check_factor(factor or (1, 1), spec), provenance=provenance)


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
        raise DataError(f"{path}: not a file, expected {FORMS}")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        refuse_out_of_memory(error, str(path))
        raise unreadable(path, error) from error
    except Exception as error:  # damaged files fail in many ways, refused ones as UnpicklingError
        refuse_out_of_memory(error, str(path))
        # Not torch's own words: they advise to load the file without protection.
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        found = f"asks for {foreign[1]}, which is refused" if foreign else _unreadable(path)
        raise DataError(f"{path}: {found}; expected plain tensors, {FORMS}") from error


def _unreadable(path: Path) -> str:
    """What a file that torch cannot read most likely is, and what to do."""
    with path.open("rb") as file:
        start = file.read(100)
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer and not the file itself: fetch it with git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "is a web page and not the file itself: download it again"
    return "was not written by torch.save, or is damaged or cut short: take another copy"


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
        return f"a dictionary of {', '.join(map(reprlib.repr, list(content)[:5])) or 'nothing'}{data}"
    if isinstance(content, (list, tuple)):
        return f"a {type(content).__name__} of {len(content)} ({', '.join(type(x).__name__ for x in content[:3])})"
    if isinstance(content, Tensor):
        return f"one tensor ({_kind(content)})"
    return f"an object of type {type(content).__name__}"


def _kind(tensor: Tensor) -> str:
    """How a tensor keeps its numbers, safe for all that a file may hold."""
    if tensor.is_nested:  # has no shape
        return "nested"
    kind = "without values (meta)" if tensor.is_meta else tensor.layout if tensor.layout != torch.strided else ""
    return f"{kind} {tensor.dtype} of shape {tuple(tensor.shape)}".replace("torch.", "").strip()


def _holds(tensor: Tensor, types: tuple[torch.dtype, ...]) -> bool:
    """Whether a tensor is an ordinary array of one of these types: others refuse much of what arrays can do."""
    ordinary = not tensor.is_nested and tensor.layout == torch.strided and not tensor.is_meta
    return ordinary and tensor.dtype in types


def _check(path: Path, images: Tensor, labels: Tensor, spec: DatasetSpec) -> None:
    """Every reason why these images and labels are not a balanced set for `spec`."""
    if not _holds(images, IMAGE_TYPES) or images.shape[1:] != spec.shape:
        shape = ", ".join(map(str, spec.shape))
        raise DataError(
            f"{path}: images are {_kind(images)}, expected floats of 16, 32 or 64 bits (N, {shape}) for {spec.name}"
        )
    if not _holds(labels, LABEL_TYPES) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{path}: labels are {_kind(labels)}, expected an integer (uint8, int8 to int64) "
            f"for each of {len(images)} images"
        )
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
    finite = torch.isfinite(images.float()).flatten(1).all(1)
    if not finite.all():
        raise DataError(
            f"{path}: image {int((~finite).nonzero()[0])} has NaN or infinite pixels, expected finite values"
        )


def _announce_scale(path: Path, images: Tensor, spec: DatasetSpec, normalised: bool) -> None:
    low, high = (float(value) for value in images.aminmax())
    if normalised:
        logger.warning(
            "%s: taken as normalised images; the mean %s and std %s of %s undo it, which must be the script's: "
            "scripts of DC and DM use constants of their own (try --normalisation common)",
            path, _short(spec.mean), _short(spec.std), spec.name,
        )  # fmt: skip
    elif low < spec.value_range[0] - 0.1 or high > spec.value_range[1] + 0.1:
        logger.warning(
            "%s: taken as pixels, but they reach from %g to %g, beyond %g to %g: give --normalised true "
            "(normalised=True) if they are not",
            path, low, high, *spec.value_range,
        )  # fmt: skip


def _short(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
