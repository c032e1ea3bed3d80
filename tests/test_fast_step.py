"""Whole steps of DSDM on the compiled path against the same steps in eager fp32, and what swapping networks compiles.

`test_extractor` holds the network passes to their oracle; here are the losses made of them. The covariance term is the
one to watch: its distance is a small difference of large numbers. So the set starts as mosaics of smooth real images,
as many samples a class as the real batch has: the distance is a sixth of the two covariances' own squares.

Tolerances are about twice the largest error of 48 steps, six root seeds of the eight steps below: AMD EPYC with
AVX512-BF16, torch 2.13. In brackets is that error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.learning.augment import Strategy
from potstill.learning.optim import Descent
from potstill.learning.pool import Pool, untrained
from potstill.machine.compiler import find_compiler
from potstill.machine.runtime import Runtime, has_bf16
from potstill.matching.statistics import covariance_distance, covariances
from potstill.methods import Metrics, Problem
from potstill.methods.dsdm import DSDM, DSDMConfig, DSDMState
from potstill.methods.real_features import BankConfig, real_batch
from potstill.seeding import generator
from potstill.spec import DatasetSpec, Split

pytestmark = [
    pytest.mark.slow,
    # torch.compile walks into deprecated corners of torch and hides the warnings itself; as errors they would stop it.
    pytest.mark.filterwarnings("ignore"),
]

#: With this root seed the steps draw networks 0, 1, 0, 1 of two; a test checks it.
SEED_0101 = 1
MEMBERS = (0, 1, 0, 1)
RATE = 0.08  #: the default at IPC 4
#: Relative, of each term. A bank keeps features in bf16: a rounding error may carry one to the next such number.
ROUNDING = {"fresh": 2e-6, "bank": 5e-5}  # (7.3e-7, 2.6e-5)
BF16 = {"prototype": 3e-3, "covariance": 1.8e-3, "history": 3.5e-3, "calibration": 1.5e-3}  # (1.4, .89, 1.7, .74 e-3)
#: Three classes of 16 real images and of 16 samples: four passes of 10 and one that is filled up from 8.
EAGER = Runtime(chunk=10)


class Compared(NamedTuple):
    """One step from one state, by both paths.

    Attributes:
        eager, fast: the metrics of the step.
        gradient_errors: of the image gradients, relative, in norm, one for each stored image.
        history_error: of the memory bank after the step, relative, in norm.
        graphs: that the step compiled.
    """

    statistics: str
    eager: Metrics
    fast: Metrics
    gradient_errors: Tensor
    history_error: float
    graphs: int

    def errors_of_terms(self) -> dict[str, float]:
        """Relative; a network's first step has no history term, which is 0 by both paths."""
        return {
            term: abs(self.fast.terms[term] - self.eager.terms[term]) / (self.eager.terms[term] or 1.0) for term in BF16
        }


@pytest.fixture(scope="module")
def settings_restored() -> Iterator[None]:
    """Starting a runtime makes settings of the process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch._dynamo.config.recompile_limit = limit


@pytest.fixture(scope="module")
def fp32(settings_restored: None) -> list[Compared]:
    return compared_steps(replace(EAGER, compile=True))


@pytest.fixture(scope="module")
def bf16(settings_restored: None) -> list[Compared]:
    if not has_bf16("cpu"):
        pytest.skip("no bf16 in hardware")
    return compared_steps(replace(EAGER, compile=True, precision="bf16"))


def compared_steps(runtime: Runtime) -> list[Compared]:
    """Four steps with fresh real features, then four from a bank, all through one extractor."""
    if not find_compiler():
        pytest.skip("no C++ compiler")
    fast = problem_of(runtime)
    return [step for statistics in ("fresh", "bank") for step in steps_of_both(fast, statistics)]


def problem_of(runtime: Runtime) -> Problem:
    """Smooth 3x32x32 images of three classes, 20 each, and two networks."""
    draws = generator(0, "images")
    labels = torch.arange(3).repeat_interleave(20)
    coarse = (torch.rand(3, 3, 8, 8, generator=draws)[labels] + torch.rand(60, 3, 8, 8, generator=draws)) / 2
    pixels = F.interpolate(coarse, size=(32, 32), mode="bilinear")
    std, mean = (tuple(values.tolist()) for values in torch.std_mean(pixels, (0, 2, 3)))
    spec = DatasetSpec("smooth", (3, 32, 32), ("a", "b", "c"), mean, std, mirror=True, fingerprint="smooth-1")
    train = Split((pixels * 255).round().to(torch.uint8), labels)
    pool = pool_of(spec)
    return Problem(spec=spec, train=train, ipc=4, parameterisation=(2, 2), seed=SEED_0101, runtime=runtime, pool=pool)


def pool_of(spec: DatasetSpec) -> Pool:
    """Two networks that differ in every weight: as initialised, all have the same norm layers."""
    pool, draws = untrained(spec, members=2), generator(0, "norms")
    members = [
        {name: w + 0.3 * torch.randn(w.shape, generator=draws) if "norm" in name else w for name, w in member.items()}
        for member in pool.members
    ]
    return replace(pool, members=members)


def dsdm(statistics: str) -> DSDM:
    """All terms, those of dsdm_plus included; the images move by rate times gradient."""
    keys = {"descent": Descent(RATE), "scale_rate": False, "clamp": "never", "calibration_weight": 1.0}
    return DSDM(DSDMConfig(**keys, real_batch=16, real_statistics=statistics, bank=BankConfig(draws=2)))  # type: ignore[arg-type]


def steps_of_both(fast: Problem, statistics: str) -> Iterator[Compared]:
    """Each step starts from the eager state, so that errors do not add up."""
    from torch._dynamo.utils import counters  # not above: the compiler takes seconds to import

    EAGER.start()
    oracle, by_oracle, by_fast = problem_of(EAGER), dsdm(statistics), dsdm(statistics)
    before = by_oracle.init(oracle)
    for _ in MEMBERS:
        EAGER.start()
        expected, eager_metrics = by_oracle.step(oracle, before)
        fast.runtime.start()
        graphs = counters["stats"]["unique_graphs"]
        found, fast_metrics = by_fast.step(fast, before)
        yield Compared(
            statistics=statistics,
            eager=eager_metrics,
            fast=fast_metrics,
            gradient_errors=relative_errors(gradient(before, found), gradient(before, expected)),
            history_error=float(relative_errors(found.history[None, None], expected.history[None, None])),
            graphs=counters["stats"]["unique_graphs"] - graphs,
        )
        before = expected


def gradient(before: DSDMState, after: DSDMState) -> Tensor:
    return (before.images - after.images) / RATE


def relative_errors(found: Tensor, expected: Tensor) -> Tensor:
    """In norm, of every `[i, j]`."""
    return ((found - expected).flatten(2).norm(dim=2) / expected.flatten(2).norm(dim=2)).flatten()


def test_the_covariance_distance_is_a_small_difference_here() -> None:
    """Of the squared covariances of both sides; or the tolerances below would say little."""
    problem = problem_of(EAGER)
    assert problem.pool is not None
    weights = problem.pool.members[0]
    real = real_batch(problem, weights, Strategy.parse("color_crop_cutout"), 16, 0)
    samples = problem.decode(problem.initial_images())
    synthetic = problem.extractor.embed(weights, samples, real.draw)
    squares = [covariances(features, 1).square().sum((1, 2)) for features in (real.features, synthetic)]
    shares = covariance_distance(real.features, synthetic, 1) / (squares[0] + squares[1])
    assert 0.1 < float(shares.min()) < float(shares.max()) < 0.2


def test_compiled_fp32_terms_equal_the_eager_ones(fp32: list[Compared]) -> None:
    for step in fp32:
        assert step.errors_of_terms() == pytest.approx(dict.fromkeys(BF16, 0.0), abs=ROUNDING[step.statistics])
        assert step.fast.notes["spread"] == pytest.approx(step.eager.notes["spread"], abs=ROUNDING[step.statistics])
        assert step.history_error < 3e-6  # (1.4e-6)


def test_compiled_fp32_gradients_equal_the_eager_ones(fp32: list[Compared]) -> None:
    """But where rounding carries a value across ReLU's corner: a few images."""
    for step in fp32:
        assert step.gradient_errors.median() < {"fresh": 1.2e-5, "bank": 5e-4}[step.statistics]  # (5.4e-6, 2.3e-4)
        assert step.gradient_errors.max() < 3e-2  # (1.6e-2)


def test_compiled_bf16_terms_stay_within_their_precision(bf16: list[Compared]) -> None:
    for step in bf16:
        errors = step.errors_of_terms()
        assert {term: error for term, error in errors.items() if error > BF16[term]} == {}
        assert step.fast.notes["spread"] == pytest.approx(step.eager.notes["spread"], abs=6e-4)  # (2.8e-4)
        assert step.history_error < 4e-3  # (1.9e-3)


def test_compiled_bf16_gradients_stay_within_their_precision(bf16: list[Compared]) -> None:
    """A few percent of every image's gradient: many values cross ReLU's corner."""
    for step in bf16:
        assert 5e-3 < step.gradient_errors.median() < 0.11  # (.015 at least, .054)
        assert step.gradient_errors.max() < 0.15  # (.077)


@pytest.mark.parametrize("path", ["fp32", "bf16"])
def test_swapping_networks_compiles_nothing_more(path: str, request: pytest.FixtureRequest) -> None:
    """One graph for real batches and one for samples, both in the first step: all networks share them."""
    steps: list[Compared] = request.getfixturevalue(path)
    assert [step.fast.notes["network"] for step in steps] == [*MEMBERS, *MEMBERS]
    assert [step.graphs for step in steps] == [2, *[0] * 7]
    assert all(
        step.eager.terms["history"] > 0 for step in (*steps[2:4], *steps[6:8])
    )  # so all terms were there to compare
