"""The plain loop of `benchmarks/plain.py` against DSDM: all speed ratios divide by it, so it must do the same work."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from data_factory import noise
from torch import Tensor

from potstill.learning.augment import BRIGHT, CONTRAST_AT, CROP_X, CROP_Y, CUT_X, CUT_Y, SATURATE, Strategy
from potstill.learning.pool import Pool, untrained
from potstill.methods import Problem
from potstill.methods.dsdm import DSDM, DSDMConfig
from potstill.seeding import generator
from potstill.spec import DatasetSpec, Split

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
#: With this root seed steps 0, 1, 2 draw networks 0, 1, 0 of two, which is the order of the plain loop.
SEED_010 = 1


@pytest.fixture
def equality(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark of whole runs, which knows the plain loop's keys, networks and checkpoints."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("equality")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8)], ids=str)
def test_a_plain_step_computes_what_a_step_of_dsdm_does(
    shape: tuple[int, int, int], equality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Same images, networks, real batches and augmentation: same loss, image change and history. Three steps."""
    problem = problem_of(shape)
    spec, pool = problem.spec, problem.require_pool("plain")
    loop = equality.plain.PlainDSDM(
        problem.train.images,
        problem.train.labels,
        problem.initial_images(),
        equality.save_for_plain(pool, spec, tmp_path),
        torch.tensor(spec.mean),
        torch.tensor(spec.std),
        build=partial(equality.plain_network, spec),
        real_batch=8,
        rate=equality.RATE,
        momentum=0.0,
    )
    rows: list[Tensor] = []
    augment = equality.plain.augment
    monkeypatch.setattr(equality.plain, "augment", lambda x, _: augment(x, rows.pop(0)))
    method = DSDM(DSDMConfig(**equality.AS_PLAIN, real_batch=8))
    state = method.init(problem)
    state = replace(state, images=1.2 * state.images - 0.1)  # some are out of range, where clamping shows
    for t in range(3):
        before = state.images
        loop.images.data.copy_(before)
        loop.index = [problem.sampler.batch(c, t, 8) for c in problem.classes]  # it takes them in another order
        rows += [*plain_rows(problem, t), *plain_rows(problem, -1 - t)]
        loss = loop.step(t)
        state, metrics = method.step(problem, state)
        assert not rows
        assert (metrics.loss, metrics.notes["network"]) == (pytest.approx(loss, rel=1e-5), t % 2)
        assert (metrics.terms["history"] > 0) == (t > 0)
        moved, apart = state.images - before.clamp(0, 1), state.images - loop.images.detach()
        errors = apart.flatten(2).norm(dim=2) / moved.flatten(2).norm(dim=2)
        # Rounding may carry a value across ReLU's corner in one image or the other; what is wrong shows in all.
        assert errors.min() < 1e-5 and errors.max() < 2e-2
        remembered = (torch.stack(loop.history) - state.history[0]).norm(dim=1) / state.history[0].norm(dim=1)
        assert remembered.min() < 1e-5 and remembered.max() < 1e-3


def problem_of(shape: tuple[int, int, int]) -> Problem:
    """Two of ten classes of noise: the plain networks have ten."""
    images, labels = (torch.from_numpy(array) for array in noise(200, shape, classes=10))
    std, mean = (tuple(values.tolist()) for values in torch.std_mean(images / 255, (0, 2, 3)))
    spec = DatasetSpec("noise", shape, tuple("abcdefghij"), mean, std, mirror=False, fingerprint="noise-1")
    train, pool = Split(images, labels), pool_of(spec)
    return Problem(spec=spec, train=train, ipc=2, parameterisation=(2, 2), seed=SEED_010, pool=pool, classes=(0, 1))


def pool_of(spec: DatasetSpec) -> Pool:
    """Two networks of which no two weights are alike: as initialised, all have the same norm layers."""
    pool, draws = untrained(spec, members=2), generator(0, "weights")
    members = [
        {name: weight + 0.1 * torch.randn(weight.shape, generator=draws) for name, weight in member.items()}
        for member in pool.members
    ]
    return replace(pool, members=members)


def plain_rows(problem: Problem, number: int) -> list[Tensor]:
    """DSDM's draws for batch `number`, one row per class, in the plain loop's columns: it crops where we shift."""
    drawn = problem.class_draw(Strategy.parse("color_crop_cutout", mirror=problem.spec.mirror), number)
    u = drawn.uniform[:, [BRIGHT, SATURATE, CONTRAST_AT, CROP_Y, CROP_X, CUT_Y, CUT_X]].clone()
    u[:, 3:5] = 1 - u[:, 3:5]
    return list(u)
