"""One front door for everything that holds a distilled set."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError, UsageError
from ..files import expanded
from ..spec import DatasetSpec
from .export.pt import FORMS, SUFFIXES, read_pt
from .parameterisations import Factor
from .synthetic import SyntheticSet

#: Where a folder may hold its set: an export, the folder of a run.
IN_FOLDERS = ("distilled.safetensors", "synthetic/distilled.safetensors")


def read_set(
    path: str | Path, spec: DatasetSpec | None = None, *, factor: Factor | None = None, normalised: bool | None = None
) -> SyntheticSet:
    """The set in a `distilled.safetensors` file, in a folder or run that holds one, or in a `.pt` file.

    Args:
        spec: of the data set it stands for. A `.pt` file needs it; other sets bring theirs, which must fit it.
        factor: of a `.pt` file, (1, 1) where None; other sets bring theirs.
        normalised: of a `.pt` file, as in `read_pt`; other sets are on the pixel scale.
    Raises:
        UsageError: a `.pt` file without `spec`, or what is said of a set that knows better.
        DataError: missing, damaged, of an unknown form, or of another shape or number of classes than `spec`.
    """
    path = expanded(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected a distilled set: {_expected()}")
    file = _in_folder(path) if path.is_dir() else path
    if file.suffix in SUFFIXES:
        if spec is None:
            raise UsageError(f"{file}: does not say which data set it stands for: add --dataset NAME (and --factor)")
        return read_pt(file, spec, factor=factor, normalised=normalised)
    if file.suffix != ".safetensors":
        raise DataError(f"{file}: not a distilled set, expected {_expected()}")
    synthetic = SyntheticSet.load(file)
    if spec is not None:
        _check_fit(file, synthetic.spec, spec)
    check_told(file, synthetic, factor, normalised)
    return synthetic


def check_told(file: Path, synthetic: SyntheticSet, factor: Factor | None, normalised: bool | None) -> None:
    """Raises UsageError where something else is said of a set than it says itself."""
    if normalised:
        raise UsageError(f"{file}: holds pixels, not normalised images: leave normalised out")
    if factor is not None and factor != synthetic.factor:
        own = "{},{}".format(*synthetic.factor) if synthetic.factor else f"none ({synthetic.way.describe()})"
        raise UsageError(f"{file}: has factor {own}, not {factor[0]},{factor[1]}: leave the factor out")


def _expected() -> str:
    return f"a folder or run with {IN_FOLDERS[0]}, such a file, or a .pt file with {FORMS}"


def _in_folder(folder: Path) -> Path:
    for name in IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: holds no distilled set, expected {' or '.join(IN_FOLDERS)} in it")


def _check_fit(file: Path, own: DatasetSpec, spec: DatasetSpec) -> None:
    if (own.shape, own.num_classes) != (spec.shape, spec.num_classes):
        raise DataError(
            f"{file}: stands for {own.name} with {own.num_classes} classes of shape {own.shape}, "
            f"expected {spec.num_classes} of shape {spec.shape} as in {spec.name}; "
            "name the right data, or the size that its pictures had (--size)"
        )
