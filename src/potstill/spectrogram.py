"""Log-magnitude spectrograms of speech and the way back, as functions of tensors. Leaves files to `data` and `sets`.

The front end of IDC's speech experiments (Kim et al. 2022), which DSDM's Table 2 uses: one second at 16 kHz, a Hann
window of 255 samples every 128, magnitudes of 128 frequencies x 125 frames padded to 128 x 128, halved to 64 x 64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RATE = 16_000  # samples per second
LENGTH = RATE  # samples of a clip
SIDE = 64  # frequencies, and frames
WINDOW, HOP = 255, 128
FRAMES_BEFORE, FRAMES_AFTER = 1, 2  # of silence, to 128 frames
EPSILON = 1e-3  # keeps the logarithm of silence finite
SILENCE = math.log(EPSILON)


def log_spectrograms(waves: Tensor) -> Tensor:
    """`(N, 16000)` float32 waves in [-1, 1] to log magnitudes `(N, 1, 64, 64)`: frequency (low first), time."""
    magnitudes = F.pad(_stft(waves).abs(), (FRAMES_BEFORE, FRAMES_AFTER))
    return (F.avg_pool2d(magnitudes[:, None], 2) + EPSILON).log()


def waves(spectrograms: Tensor, *, steps: int = 60, seed: int = 0) -> Tensor:
    """Waves `(N, 16000)` whose spectrograms are close to `(N, 1, 64, 64)` log magnitudes.

    Phases by Griffin and Lim's iteration (1984): the phases of the wave that the last phases give, again and again.
    """
    magnitudes = F.interpolate(spectrograms.exp() - EPSILON, scale_factor=2, mode="bilinear").clamp_min(0)
    magnitudes = magnitudes[:, 0, :, FRAMES_BEFORE:-FRAMES_AFTER]
    start = torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(seed)) * (2 * math.pi)
    sound = _inverse(torch.polar(magnitudes, start))
    for _ in range(steps):
        sound = _inverse(torch.polar(magnitudes, _stft(sound).angle()))
    return sound


def _stft(sound: Tensor) -> Tensor:
    """`(N, 128, 125)` complex: frames are centred, with zeros beyond both ends."""
    return torch.stft(sound, WINDOW, HOP, window=_window(), pad_mode="constant", return_complex=True)


def _inverse(stft: Tensor) -> Tensor:
    # Of the last hop only the window's thin end is known; dividing by it would make a bang of nothing.
    return F.pad(torch.istft(stft, WINDOW, HOP, window=_window(), length=LENGTH - HOP), (0, HOP))


def _window() -> Tensor:
    return torch.hann_window(WINDOW)
