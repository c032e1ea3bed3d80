"""What is left to do, from a few timed steps: by the samples that pass a network, not by the number of steps alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from potstill.methods import Method, Metrics, Problem, State
from potstill.recipe import resolve
from potstill.run import estimate
from potstill.run.distil import passes_of
from potstill.run.study import Cell
from potstill.spec import LabelledDataset


@dataclass(frozen=True)
class UnevenConfig:
    steps: int = 1000
    every: int = 2
    known: bool = True


class Uneven(Method[State]):
    """Its first step takes 60 seconds more, for compiling; a network that trains after most steps takes 9, a step 1."""

    Config = UnevenConfig
    now = 0.0

    def init(self, problem: Problem) -> State:
        return State(0, torch.zeros(1))

    def step(self, problem: Problem, state: State) -> tuple[State, Metrics]:
        trains = (state.step + 1) % self.config.every > 0
        Uneven.now += 1 + 9 * trains + 60 * (state.step == 0)
        return state.advanced(), Metrics(0.0)

    def passes(self, problem: Problem) -> int:
        steps, every = self.config.steps, self.config.every
        return 100 * (steps + 9 * (steps - steps // every)) if self.config.known else 0


@pytest.mark.parametrize("every", [2, 4, 10, 1000])
def test_uneven_steps_are_counted_by_their_passes(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=every))
    state, seconds = estimate._time_steps(method, None, method.passes(None))  # type: ignore[arg-type]
    assert state.step == 1 + estimate.STEPS
    assert seconds == pytest.approx(60 + 1000 + 9 * (1000 - 1000 // every), rel=0.3 if every == 4 else 0.02)


def test_steps_of_unknown_passes_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: Uneven.now)
    method: Any = Uneven(UnevenConfig(every=1, known=False))
    assert estimate._time_steps(method, None, 0)[1] == 60 + 1000  # type: ignore[arg-type]
    only: Any = Uneven(UnevenConfig(steps=1, every=1))
    assert estimate._time_steps(only, None, 100)[1] == 60 + 1  # type: ignore[arg-type]


def test_a_bank_that_is_full_takes_no_more_time(toy_dataset: LabelledDataset) -> None:
    """Real batches are computed at the first steps alone: 3 networks x 4 draws of 16 images, of 1000 steps."""
    keys = {"method": {"name": "dsdm_plus", "real_batch": 16, "draws": 4, "steps": 1000}, "ipc": 1, "factor": [2, 2]}
    recipe = resolve(keys)
    assert passes_of(recipe, recipe.build_method(), toy_dataset) == 3 * (1000 * 4 * 2 + 12 * 16)
    short = resolve(keys, {"method.steps": 5})
    assert passes_of(short, short.build_method(), toy_dataset) == 3 * (5 * 4 * 2 + 5 * 16)


@pytest.mark.parametrize(("name", "times"), [("herding", 40 / 10), ("random", 1.0)])
def test_a_choice_takes_as_long_as_the_images_it_looks_at(
    name: str, times: float, toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 2.0])  # around `init`
    monkeypatch.setattr(estimate, "PER_CLASS", 10)
    monkeypatch.setattr(estimate, "evaluation_seconds", lambda *_: 0.0)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    cell = Cell(name, name, resolve({"method": name, "ipc": 1, "factor": [1, 1]}))
    assert estimate.timed(cell, toy_dataset).distill_seconds == 2.0 * times
