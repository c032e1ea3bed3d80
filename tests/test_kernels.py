"""M3D's and NCFM's distances against their formulas, entry by entry in float64."""

from __future__ import annotations

import cmath
import itertools

import pytest
import torch
from torch import Tensor

from potstill.matching.frequencies import match_characteristic_functions
from potstill.matching.kernels import BANDWIDTHS, match_kernel_means


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return features(0, 2, 5, 3) + 4, features(1, 2, 3, 3)


def mmd_of_one_class(real: Tensor, synthetic: Tensor) -> float:
    rows = [*synthetic, *real]
    pairs = list(itertools.product(range(len(rows)), repeat=2))
    distance = {(i, j): float(((rows[i] - rows[j]) ** 2).sum()) for i, j in pairs}
    width = sum(distance.values()) / (len(rows) ** 2 - len(rows))
    kernel = {ij: sum(cmath.exp(-d / (b * width)).real for b in BANDWIDTHS) for ij, d in distance.items()}
    m = len(synthetic)

    def mean(first: range, second: range) -> float:
        return sum(kernel[i, j] for i in first for j in second) / (len(first) * len(second))

    ours, theirs = range(m), range(m, len(rows))
    return mean(ours, ours) + mean(theirs, theirs) - 2 * mean(ours, theirs)


def test_the_kernel_distance_is_the_published_formula_summed_over_classes(pair: tuple[Tensor, Tensor]):
    by_hand = sum(mmd_of_one_class(r, s) for r, s in zip(*pair, strict=True))
    assert float(match_kernel_means(*pair)) == pytest.approx(by_hand, rel=1e-12)


def test_the_kernel_distance_of_equal_samples_is_zero_and_its_gradient_pulls_together(pair: tuple[Tensor, Tensor]):
    real, synthetic = pair
    assert float(match_kernel_means(real, real)) == pytest.approx(0, abs=1e-12)
    synthetic = synthetic.requires_grad_()
    before = match_kernel_means(real, synthetic)
    (gradient,) = torch.autograd.grad(before, synthetic)
    assert gradient.isfinite().all()
    assert match_kernel_means(real, synthetic - 0.1 * gradient) < before


def test_the_kernels_width_is_a_constant_to_the_gradient(pair: tuple[Tensor, Tensor]):
    real, synthetic = pair
    scaled = torch.ones((), dtype=torch.float64, requires_grad=True)
    joint = match_kernel_means(real * scaled, synthetic * scaled)
    (gradient,) = torch.autograd.grad(joint, scaled)
    # The value does not depend on a common scale; with a width held fixed its derivative does.
    assert float(match_kernel_means(3 * real, 3 * synthetic)) == pytest.approx(joint.item(), rel=1e-12)
    assert abs(float(gradient)) > 1e-3


def test_the_kernel_distance_keeps_its_digits_far_from_the_origin(pair: tuple[Tensor, Tensor]):
    real, synthetic = (x.float() for x in pair)
    far = match_kernel_means(real + 1000, synthetic + 1000)
    torch.testing.assert_close(far, match_kernel_means(real, synthetic), rtol=1e-3, atol=1e-4)


def ncfm_of_one_class(real: Tensor, synthetic: Tensor, frequencies: Tensor) -> float:
    def phi(rows: Tensor, t: Tensor) -> complex:
        return sum(cmath.exp(1j * float(t @ (f / f.norm()))) for f in rows) / len(rows)

    total = 0.0
    for t in frequencies:
        r, s = phi(real, t), phi(synthetic, t)
        apart = 2 * (abs(r) * abs(s) - (r * s.conjugate()).real)
        total += (0.5 * (abs(r) - abs(s)) ** 2 + 0.5 * apart) ** 0.5
    return total / len(frequencies)


def test_the_characteristic_distance_is_the_published_formula_summed_over_classes(pair: tuple[Tensor, Tensor]):
    frequencies = features(2, 7, 3)
    by_hand = sum(ncfm_of_one_class(r, s, frequencies) for r, s in zip(*pair, strict=True))
    assert float(match_characteristic_functions(*pair, frequencies)) == pytest.approx(by_hand, rel=1e-9)


def test_the_characteristic_distance_of_equal_samples_is_nothing_and_has_a_finite_gradient(pair: tuple[Tensor, Tensor]):
    real, _ = pair
    same = real.clone().requires_grad_()
    loss = match_characteristic_functions(real, same, features(2, 7, 3))
    (gradient,) = torch.autograd.grad(loss, same)
    assert loss.item() < 1e-5 and gradient.isfinite().all()


def test_amplitude_and_phase_are_weighed_as_asked(pair: tuple[Tensor, Tensor]):
    frequencies = features(2, 7, 3)
    amplitude, phase = (match_characteristic_functions(*pair, frequencies, share) for share in (0.0, 1.0))
    half = match_characteristic_functions(*pair, frequencies)
    assert min(amplitude, phase) < half < max(amplitude, phase)
