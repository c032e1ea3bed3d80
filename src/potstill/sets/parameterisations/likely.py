"""Which parameterisations are likely to do best on data that nothing was tried on."""

from __future__ import annotations

from ...spec import DatasetSpec
from .base import parse
from .tiles import SMALLEST_TILE

#: IPC values below this one want more and smaller samples.
FEW = 5
#: Images as they are.
WHOLE = "tiles:rows=1,columns=1"


def likely(ipc: int, spec: DatasetSpec) -> list[str]:
    """Others than tiles, the likeliest first, as `parse` reads them; none where channels are neither 1 nor 3.

    On CIFAR-10 a luma side of a third was best at IPC 1 (57.3 % against 51.3 of 3 x 3 tiles) and one of a half at IPC
    10 (69.8 against 66.4), dct of as many coefficients as the tile has pixels equal to it (57.1, 70.1); in gray at IPC
    1 dct had 84.0 on Fashion-MNIST against 80.7 of tiles, 94.1 on digits against 86.4. results/tuning,
    docs/parameterisations.md.
    """
    channels, *size = spec.shape
    even = 2 if channels == 3 else 1  # chroma takes half of it
    third, half = (even * round(min(size) / (n * even)) for n in (3, 2))
    found = []
    for luma in (third, half) if ipc < FEW else (half, third):
        if channels == 3 and luma >= SMALLEST_TILE:
            found.append(f"half_chroma:luma={luma},chroma={luma // 2}")
        if channels in (1, 3) and luma >= SMALLEST_TILE:
            found.append(f"dct:luma={luma**2},chroma={luma**2 // 4 if channels == 3 else 0}")
    return list(dict.fromkeys(found))


def suited(ipc: int, spec: DatasetSpec, images: int) -> str:
    """What to store where nothing is tried: the likeliest for colour and for few gray images, else tiles of 2 x 2, else
    whole images.

    Args:
        images: of the smallest class, which must have one to start each sample from.
    """
    few = ipc < FEW and spec.modality == "image"
    ways = likely(ipc, spec) if few or spec.shape[0] == 3 else []
    if min(spec.shape[1:]) >= 2 * SMALLEST_TILE and 4 * ipc <= images:
        ways.append("tiles")  # of the recipe's factor, 2 x 2 where none is said
    return next((way for way in ways if way == "tiles" or parse(way).samples(ipc, spec) <= images), WHOLE)
