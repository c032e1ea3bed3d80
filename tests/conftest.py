"""Fixtures shared by all tests: one thread, seeded draws and toy data that a small network can learn."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from potstill.methods.dsdm import DSDM
from potstill.run import distil as stages
from potstill.spec import DatasetSpec, LabelledDataset, Split, to_pixels

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def seeded() -> torch.Generator:
    """A generator at the start of one fixed stream, fresh for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def toy_dataset() -> LabelledDataset:
    """3 classes of 1x8x8 uint8 images, 40 each for training and 20 for testing."""
    return _blobs("toy", (1, 8, 8), torch.Generator().manual_seed(1))


@pytest.fixture
def toy_colour() -> LabelledDataset:
    """3 classes of 3x16x16 uint8 images, 40 each for training and 20 for testing."""
    return _blobs("toy_colour", (3, 16, 16), torch.Generator().manual_seed(2))


def _blobs(name: str, shape: tuple[int, int, int], draws: torch.Generator, num_classes: int = 3) -> LabelledDataset:
    """Bright spots on noise. A class has its place on a circle, and with three channels its main colour too."""

    def split(per_class: int) -> Split:
        labels = torch.arange(num_classes).repeat_interleave(per_class)[
            torch.randperm(num_classes * per_class, generator=draws)
        ]
        angle = 2 * math.pi * labels / num_classes
        centre = torch.stack([angle.sin(), angle.cos()], 1) / 2 + 0.2 * torch.randn(len(labels), 2, generator=draws)
        rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape[1:]), indexing="ij")
        distance = (rows - centre[:, 0, None, None]) ** 2 + (columns - centre[:, 1, None, None]) ** 2
        colour = torch.where(torch.arange(shape[0]) == labels[:, None] % shape[0], 0.7, 0.4)
        pixels = (-distance / 0.15).exp()[:, None] * colour[:, :, None, None]
        pixels = pixels + 0.2 + 0.15 * torch.randn(len(labels), *shape, generator=draws)
        return Split((pixels.clamp(0, 1) * 255).round().to(torch.uint8), labels)

    train, test = split(40), split(20)
    std, mean = torch.std_mean(to_pixels(train.images), (0, 2, 3))
    spec = DatasetSpec(
        name=name,
        shape=shape,
        classes=tuple("abcdefgh"[:num_classes]),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        mirror=False,
        fingerprint=f"{name}-1",
    )
    return LabelledDataset(spec, train, test)


@pytest.fixture
def step_of_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the steps of DSDM move."""
    now, plain = [1000.0], DSDM.step

    def slow(*given: Any) -> Any:
        now[0] += 30
        return plain(*given)

    monkeypatch.setattr(DSDM, "step", slow)
    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: now[0]))
