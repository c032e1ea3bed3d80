"""Clips to listen to: CLASS/0000.wav, made from spectrograms by Griffin and Lim's iteration."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...spec import DatasetSpec
from ...spectrogram import RATE, SIDE, waves
from ..synthetic import SyntheticSet
from .base import EXPORTS, Form
from .names import folder_names


def to_wav(synthetic: SyntheticSet, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Decoded samples by class as 16-bit clips of a second, each as loud as its loudest sample allows.

    Raises:
        UsageError: a set that is not of sound in this package's spectrograms.
    """
    spec = synthetic.spec
    if not is_playable(spec):
        raise UsageError(f"wav: {spec.name} is of {spec.modality} {spec.shape}, expected sound (1, {SIDE}, {SIDE})")
    folders = folder_names(spec.classes)
    return {
        f"{folders[cls]}/{number:04}.wav": wav_bytes(sound)
        for cls, clips in zip(synthetic.classes, sounds(synthetic), strict=True)
        for number, sound in enumerate(clips)
    }


def is_playable(spec: DatasetSpec) -> bool:
    """Whether samples are spectrograms of this package, which there is a way back from."""
    return spec.modality == "sound" and spec.shape == (1, SIDE, SIDE)


def sounds(synthetic: SyntheticSet, per_class: int | None = None) -> Tensor:
    """Waves `(K, N, 16000)` of the first decoded samples of each class, of all where None."""
    samples = synthetic.spec.to_source(synthetic.samples()[:, :per_class])
    return waves(samples.flatten(0, 1)).reshape(*samples.shape[:2], RATE)


def wav_bytes(sound: Tensor) -> bytes:
    """A mono WAV file of `(length,)` samples of any loudness."""
    levels = (sound / sound.abs().max().clamp_min(1e-9) * 32767).round().to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(RATE)
        clip.writeframes(levels.numpy().astype("<i2").tobytes())
    return file.getvalue()


EXPORTS.register("wav")(Form(to_wav))
