"""Both forms of the covariance distance, each against torch.cov and loops, in value and gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from potstill.matching import statistics
from potstill.matching.statistics import (
    centred,
    covariance_distance,
    covariance_distance_direct,
    covariance_distance_gram,
    covariances,
    prototypes,
    scatter,
    spread,
)

DDOF = pytest.mark.parametrize("ddof", [0, 1])


@pytest.fixture
def real(seeded: torch.Generator) -> Tensor:
    """(3, 7, 5) with a mean far from zero, so that a form that does not centre is caught."""
    return torch.randn(3, 7, 5, generator=seeded, dtype=torch.float64) * 2 + 4


@pytest.fixture
def synthetic(seeded: torch.Generator) -> Tensor:
    return torch.randn(3, 4, 5, generator=seeded.manual_seed(1), dtype=torch.float64) - 1


def test_prototypes_are_class_means(real: Tensor) -> None:
    for k in range(3):
        for d in range(5):
            assert prototypes(real)[k, d].item() == pytest.approx(sum(real[k, n, d].item() for n in range(7)) / 7)


def test_centred_features_have_mean_zero_and_keep_differences(real: Tensor) -> None:
    rows = centred(real)
    torch.testing.assert_close(rows.mean(1), torch.zeros(3, 5, dtype=torch.float64), atol=1e-14, rtol=0)
    torch.testing.assert_close(rows[:, 0] - rows[:, 3], real[:, 0] - real[:, 3])


@DDOF
def test_covariances_match_torch_cov(real: Tensor, ddof: int) -> None:
    for features, covariance in zip(real, covariances(real, ddof), strict=True):
        torch.testing.assert_close(covariance, torch.cov(features.T, correction=ddof), rtol=1e-12, atol=1e-12)


@DDOF
def test_covariance_ignores_translation(real: Tensor, ddof: int) -> None:
    moved = real + torch.tensor([100.0, -50, 0, 3, 7], dtype=torch.float64)
    torch.testing.assert_close(covariances(moved, ddof), covariances(real, ddof), rtol=1e-10, atol=1e-10)


@DDOF
def test_direct_distance_is_the_sum_over_all_entries(real: Tensor, synthetic: Tensor, ddof: int) -> None:
    for k, distance in enumerate(covariance_distance_direct(real, synthetic, ddof)):
        a, b = (torch.cov(x[k].T, correction=ddof) for x in (real, synthetic))
        expected = sum((a[m, n].item() - b[m, n].item()) ** 2 for m in range(5) for n in range(5))
        assert distance.item() == pytest.approx(expected, rel=1e-12)


@DDOF
@pytest.mark.parametrize("form", [covariance_distance_direct, covariance_distance_gram, covariance_distance])
def test_distance_ignores_where_either_side_lies(form, real: Tensor, synthetic: Tensor, ddof: int) -> None:
    expected = form(real, synthetic, ddof)
    torch.testing.assert_close(form(real + 9, synthetic, ddof), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(form(real, synthetic - 9, ddof), expected, rtol=1e-10, atol=0)


def value_and_gradients(form, real: Tensor, synthetic: Tensor, ddof: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distances and the gradients to both sides, each class under a weight of its own."""
    real, synthetic = real.clone().requires_grad_(), synthetic.clone().requires_grad_()
    distance = form(real, synthetic, ddof)
    weights = torch.arange(1, len(real) + 1, dtype=real.dtype)
    return (distance.detach(), *torch.autograd.grad((weights * distance).sum(), (real, synthetic)))


@DDOF
@pytest.mark.parametrize("width", [2, 5, 40])
def test_gram_form_equals_direct_form_in_value_and_gradient(ddof: int, width: int, seeded: torch.Generator) -> None:
    """Wider than both sample counts together, between them, and narrower than either."""
    real = torch.randn(3, 7, width, generator=seeded, dtype=torch.float64) * 2 + 1
    synthetic = torch.randn(3, 4, width, generator=seeded, dtype=torch.float64)
    direct = value_and_gradients(covariance_distance_direct, real, synthetic, ddof)
    gram = value_and_gradients(covariance_distance_gram, real, synthetic, ddof)
    assert direct[0].min() > 0.1 and direct[2].abs().max() > 0.01  # nothing is zero by chance
    for expected, found in zip(direct, gram, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@DDOF
@pytest.mark.parametrize("width", [5, 40])
def test_a_known_scatter_changes_neither_value_nor_gradient(ddof: int, width: int, seeded: torch.Generator) -> None:
    real, synthetic = (torch.randn(3, n, width, generator=seeded, dtype=torch.float64) for n in (7, 4))
    plain = value_and_gradients(covariance_distance, real, synthetic, ddof)
    known = value_and_gradients(partial(covariance_distance, known=scatter(real)), real, synthetic, ddof)
    for expected, found in zip((plain[0], plain[2]), (known[0], known[2]), strict=True):  # real ones are constant
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_known_scatter_spares_the_product_of_the_real_rows(
    seeded: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synthetic = (torch.randn(3, n, 40, generator=seeded) for n in (7, 4))
    known, products = scatter(real), []
    gram = statistics._gram
    monkeypatch.setattr(statistics, "_gram", lambda x, y: products.append((x.shape[1], y.shape[1])) or gram(x, y))
    covariance_distance(real, synthetic, 1, known)
    assert sorted(products) == [(4, 4), (7, 4)]


@pytest.mark.parametrize(("count", "width"), [(7, 5), (4, 9)])
def test_scatter_is_trace_and_squared_norm_of_the_scatter_matrix(
    count: int, width: int, seeded: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(3, count, width, generator=seeded, dtype=torch.float64) + 4
    matrices, sides, gram = covariances(features, 0) * count, [], statistics._gram
    monkeypatch.setattr(statistics, "_gram", lambda x, y: sides.append((x.shape[1], y.shape[1])) or gram(x, y))
    found = scatter(features)
    torch.testing.assert_close(found.trace, matrices.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.square, matrices.square().sum(dim=(1, 2)), rtol=1e-12, atol=0)
    assert sides == [(min(count, width),) * 2]


@DDOF
def test_gram_form_holds_in_single_precision(ddof: int, seeded: torch.Generator) -> None:
    """At the sizes of a CIFAR run in small: prototypes and spreads of like order, features non-negative after ReLU."""
    real = torch.randn(2, 64, 256, generator=seeded).relu()
    synthetic = torch.randn(2, 40, 256, generator=seeded).relu()
    expected = value_and_gradients(covariance_distance_direct, real.double(), synthetic.double(), ddof)
    found = value_and_gradients(covariance_distance_gram, real, synthetic, ddof)
    for exact, single in zip(expected, found, strict=True):
        error = (single.double() - exact).norm() / exact.norm()
        assert error < 1e-5


@pytest.mark.parametrize(
    ("n", "m", "width", "cheaper"),
    [
        # Multiply-adds for (N, M, D): Gram (N^2 + N M + M^2) D, direct (N + M) D^2.
        (16, 8, 200, "covariance_distance_gram"),  # 0.09 M against 0.96 M
        (16, 8, 10, "covariance_distance_direct"),  # 0.0045 M against 0.0024 M
    ],
)
def test_the_cheaper_form_is_taken(n: int, m: int, width: int, cheaper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("covariance_distance_gram", "covariance_distance_direct"):
        monkeypatch.setattr(statistics, name, lambda real, synthetic, ddof, *_, name=name: taken.append((name, ddof)))
    for ddof in (0, 1):
        covariance_distance(torch.zeros(1, n, width), torch.zeros(1, m, width), ddof)
    assert taken == [(cheaper, 0), (cheaper, 1)]


@DDOF
def test_spread_is_the_trace_of_the_covariance(real: Tensor, ddof: int) -> None:
    expected = torch.stack([covariance.trace() for covariance in covariances(real, ddof)])
    torch.testing.assert_close(spread(real, ddof), expected, rtol=1e-12, atol=0)
