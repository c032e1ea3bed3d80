"""A folder of clips, CLASS/*.wav or train/CLASS/*.wav and test/CLASS/*.wav, as log spectrograms of one second."""

from __future__ import annotations

from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError, MissingExtra, refuse_out_of_memory
from ...spectrogram import LENGTH, RATE, log_spectrograms
from ..records import FORMATS, RawDataset, RawSplit, Size, logger, reason
from .folder import Files, class_files, is_saved_by_datasets, labels_of, paths_of, split_roots

SUFFIXES = (".wav", ".flac", ".ogg", ".aiff", ".aif")
LONGEST = 600 * 192_000  # samples of a file that are read: ten minutes at the highest usual rate


@FORMATS.register("a folder of sound")  # before "folder", which would miss pictures in it
def read_sound(source: Any, size: Size | None) -> RawDataset | None:
    """Clips by class; class names are the folder names, in alphabetical order. `size` is left to `finish`.

    Any rate is resampled to 16 kHz, stereo mixed down, and any length cut or padded with silence to a second.

    Raises:
        DataError: no class folders, a class without clips, or a clip that cannot be used.
        MissingExtra: soundfile or scipy are not installed.
    """
    if not isinstance(source, Path) or not source.is_dir() or is_saved_by_datasets(source) or not _sounds(source):
        return None
    train_root, test_root = split_roots(source, SUFFIXES)
    train = class_files(train_root, SUFFIXES)
    test = class_files(test_root, SUFFIXES, known=tuple(train)) if test_root else None
    name = source.resolve().name
    return RawDataset(
        name,
        read_split(name, train_root, train, tuple(train)),
        read_split(name, test_root, test, tuple(train)) if test_root and test else None,
        classes=tuple(train),
        mirror=False,
        modality="sound",
    )


def read_split(name: str, root: Path, files: Files, classes: tuple[str, ...]) -> RawSplit:
    """Log spectrograms `(N, 1, 64, 64)` of all clips, what was changed announced once."""
    paths = paths_of(files)
    clips = np.zeros((len(paths), LENGTH), np.float32)
    other_rate = stereo = short = long = 0
    for row, path in zip(clips, paths, strict=True):
        samples, rate = read_clip(path)
        stereo += samples.shape[1] > 1
        other_rate += rate != RATE
        wave = resampled(samples.mean(axis=1), rate)[: LENGTH + 1]
        short += len(wave) < LENGTH
        long += len(wave) > LENGTH
        row[: len(wave)] = wave[:LENGTH]
    changed = (
        (other_rate, f"resampled to {RATE} Hz"),
        (stereo, "mixed down to one channel"),
        (short, "shorter than a second padded with silence"),
        (long, "longer than a second cut"),
    )
    said = ", ".join(f"{count} {what}" for count, what in changed if count)
    if said:
        logger.warning("%s: of %d clips in %s: %s", name, len(paths), root, said)
    spectrograms = [log_spectrograms(part) for part in torch.from_numpy(clips).split(256)]
    return RawSplit(torch.cat(spectrograms).numpy(), labels_of(files, classes), str(root))


def read_clip(path: Path) -> tuple[np.ndarray, int]:
    """Samples `(length, channels)` float32 in [-1, 1] and their rate.

    Raises:
        DataError: damaged, empty, or with samples that are not finite.
    """
    try:
        import soundfile  # optional
    except ImportError:
        raise MissingExtra(f"reading {path}", "audio") from None
    try:
        samples, rate = soundfile.read(path, frames=LONGEST, dtype="float32", always_2d=True)
    except Exception as problem:  # decoders fail in many ways
        refuse_out_of_memory(problem, str(path))
        raise DataError(f"{path}: cannot be read ({reason(problem)}), expected a complete clip") from problem
    if not len(samples) or not np.isfinite(samples).all():
        raise DataError(f"{path}: {len(samples)} samples, expected at least one, all of them finite")
    return samples, rate


def resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    """`(length,)` at 16 kHz, by a polyphase filter."""
    if rate == RATE:
        return wave
    try:
        from scipy.signal import resample_poly  # optional
    except ImportError:
        raise MissingExtra(f"resampling {rate} Hz to {RATE}", "audio") from None
    common = gcd(rate, RATE)
    return resample_poly(wave, RATE // common, rate // common).astype(np.float32)


def _sounds(source: Path) -> bool:
    """Whether there is a clip in the folders of classes, or in those below."""
    for pattern in ("*/*", "*/*/*", "*/*/*/*"):
        if any(path.suffix.lower() in SUFFIXES for path in source.glob(pattern)):
            return True
    return False
