"""The losses of the paper against values worked out by hand and against its formulas as loops.

The hand-made set has 2 classes of 2 samples with 2 features:

    real       class 0: (1,0) (3,4), mean (2,2)    class 1: (0,0) (2,2), mean (1,1)
    synthetic  class 0: (0,1) (2,1), mean (1,1)    class 1: (1,3) (1,1), mean (1,2)
    history    class 0: (0,0)                      class 1: (1,0)

Scatter matrices (sums of outer products of the centred rows):

    real       [[2,4],[4,8]]   [[2,2],[2,2]]
    synthetic  [[2,0],[0,0]]   [[0,0],[0,2]]
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potstill.errors import UsageError
from potstill.matching.features import (
    calibrate,
    integrate_history,
    match_channel_covariances,
    match_covariances,
    match_history,
    match_prototypes,
)
from potstill.matching.influence import influence_means, match_influence_means
from potstill.matching.statistics import prototypes

REAL = torch.tensor([[[1, 0], [3, 4]], [[0, 0], [2, 2]]], dtype=torch.float64)
SYNTHETIC = torch.tensor([[[0, 1], [2, 1]], [[1, 3], [1, 1]]], dtype=torch.float64)
HISTORY = torch.tensor([[0, 0], [1, 0]], dtype=torch.float64)


def features(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + seed


def test_prototype_loss_by_hand() -> None:
    """Eq. 4: |(1,1)|^2 + |(0,-1)|^2 = 3."""
    assert match_prototypes(REAL, SYNTHETIC).item() == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize(("ddof", "expected"), [(1, 54.0), (0, 13.5)])
def test_covariance_loss_by_hand(ddof: int, expected: float) -> None:
    """Eq. 5: differences [[0,4],[4,8]] and [[2,2],[2,0]] give 96 + 12 = 108, over d = 2 is 54 with divisor 1.

    With the paper's divisor |B| = 2 the covariances are half as large: 54 / 4.
    """
    assert match_covariances(REAL, SYNTHETIC, ddof=ddof).item() == pytest.approx(expected, abs=1e-12)


def test_covariance_divisor_is_unbiased_unless_told() -> None:
    assert match_covariances(REAL, SYNTHETIC).item() == pytest.approx(54, abs=1e-12)


def test_history_loss_by_hand() -> None:
    """Eq. 6: |(1,1) - (0,0)|^2 + |(1,2) - (1,0)|^2 = 2 + 4; divided by d = 2 as in the authors' code: 3."""
    assert match_history(SYNTHETIC, HISTORY).item() == pytest.approx(6, abs=1e-12)
    assert match_history(SYNTHETIC, HISTORY, divide=True).item() == pytest.approx(3, abs=1e-12)


def test_history_update_by_hand() -> None:
    """Eq. 7 and 8 with alpha = .75: .75 (0,0) + .25 (1,1) = (.25,.25) and .75 (1,0) + .25 (1,2) = (1,.5)."""
    expected = torch.tensor([[0.25, 0.25], [1, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(integrate_history(HISTORY, prototypes(SYNTHETIC), 0.75), expected)


def test_history_update_is_the_weighted_sum() -> None:
    history, current = features((3, 5), 1), features((3, 5), 2)
    torch.testing.assert_close(integrate_history(history, current, 0.99), 0.99 * history + 0.01 * current)
    torch.testing.assert_close(integrate_history(history, current, 0.0), current)
    torch.testing.assert_close(integrate_history(history, current, 1.0), history)


def test_total_loss_of_the_hand_made_set_descends_as_derived() -> None:
    """Eq. 9 with weights 50 and .2: 3 + 50 * 54 + .2 * 6 = 2704.2, and its gradient at the first synthetic sample.

    Prototype: 2 (mu_S - mu_T) / M = (-1,-1). History: .2 * 2 (mu_S - h) / M = (.2,.2). Covariance: with
    E = Cov_S - Cov_T = [[0,-4],[-4,-8]], 4 E y / (M - 1) / d for the centred sample y = (-1,0) is (0,8); times 50.
    """
    synthetic = SYNTHETIC.clone().requires_grad_()
    terms = match_prototypes(REAL, synthetic), match_covariances(REAL, synthetic), match_history(synthetic, HISTORY)
    total = terms[0] + 50 * terms[1] + 0.2 * terms[2]
    (gradient,) = torch.autograd.grad(total, synthetic)
    assert total.item() == pytest.approx(2704.2, abs=1e-9)
    assert gradient[0, 0].tolist() == pytest.approx([-1 + 0.2, -1 + 0.2 + 400], abs=1e-9)


def paper_covariance_loss(real: Tensor, synthetic: Tensor, ddof: int) -> float:
    """Eq. 5 entry by entry."""
    total = 0.0
    for t, s in zip(real.tolist(), synthetic.tolist(), strict=True):
        d = len(t[0])
        for m in range(d):
            for n in range(d):
                entries = []
                for rows in (t, s):
                    mu_m, mu_n = (sum(row[i] for row in rows) / len(rows) for i in (m, n))
                    cross = sum((row[m] - mu_m) * (row[n] - mu_n) for row in rows)
                    entries.append(cross / (len(rows) - ddof))
                total += (entries[0] - entries[1]) ** 2 / d
    return total


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("width", [3, 20])
def test_covariance_loss_equals_the_published_formula(width: int, ddof: int) -> None:
    """Narrow and wide features, so by the direct and the Gram form; unlike sample counts on the two sides."""
    real, synthetic = features((3, 6, width), 1), features((3, 4, width), 2)
    expected = paper_covariance_loss(real, synthetic, ddof)
    assert match_covariances(real, synthetic, ddof=ddof).item() == pytest.approx(expected, rel=1e-10)


LOSSES = {
    "prototypes": match_prototypes,
    "covariances": match_covariances,
    "history": lambda real, synthetic: match_history(synthetic, prototypes(real)),
    "divided history": lambda real, synthetic: match_history(synthetic, prototypes(real), divide=True),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@EVERY_LOSS
def test_a_set_against_itself_costs_nothing(loss) -> None:
    x = features((3, 6, 5), 1)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-20)
    assert loss(x, features((3, 6, 5), 2)).item() > 0.1


@EVERY_LOSS
def test_order_of_samples_does_not_matter(loss, seeded: torch.Generator) -> None:
    real, synthetic = features((3, 6, 5), 1), features((3, 4, 5), 2)
    shuffled = real[:, torch.randperm(6, generator=seeded)], synthetic[:, [3, 1, 0, 2]]
    torch.testing.assert_close(loss(*shuffled), loss(real, synthetic), rtol=1e-12, atol=0)


@EVERY_LOSS
def test_loss_of_all_classes_is_the_sum_over_shards(loss) -> None:
    """Otherwise a class would be pulled harder or softer by how many are distilled beside it."""
    real, synthetic = features((5, 6, 4), 1), features((5, 3, 4), 2)
    shards = loss(real[:2], synthetic[:2]) + loss(real[2:], synthetic[2:])
    torch.testing.assert_close(loss(real, synthetic), shards, rtol=1e-12, atol=0)


@EVERY_LOSS
def test_real_side_may_be_constant(loss) -> None:
    real, synthetic = features((2, 6, 4), 1), features((2, 3, 4), 2).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(real, synthetic), synthetic)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 1)])
def test_covariance_of_one_sample_is_refused_with_the_remedy(n: int, m: int) -> None:
    with pytest.raises(UsageError, match=r"1 sample per class.*raise ipc or factor.*covariance_weight=0"):
        match_covariances(torch.zeros(2, n, 3), torch.zeros(2, m, 3))


def test_calibration_equals_a_loop_of_cross_entropies() -> None:
    logits, labels = features((3, 4, 6), 1), torch.tensor([5, 0, 2])
    expected = 0.0
    for k in range(3):
        for m in range(4):
            row = logits[k, m]
            expected += (row.exp().sum().log() - row[labels[k]]).item() / 4
    assert calibrate(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_calibration_by_hand() -> None:
    """Two even logits cost log 2 each; a class of two such samples costs their mean, two classes the sum: 2 log 2."""
    assert calibrate(torch.zeros(2, 2, 2, dtype=torch.float64), torch.tensor([0, 1])).item() == pytest.approx(
        2 * 0.6931471805599453
    )


def test_influence_means_by_hand() -> None:
    """Even logits of two outputs: g is -1/2 at the label and +1/2 beside it, so that rho .2 weighs .9 and 1.1."""
    one = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    means = influence_means(one, torch.zeros(1, 1, 2, dtype=torch.float64), torch.tensor([1]), 0.2)
    assert torch.allclose(means, torch.tensor([[[1.1, 2.2], [0.9, 1.8]]], dtype=torch.float64), rtol=1e-15)


@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_influence_means_are_matched_as_their_formula_says(rho: float) -> None:
    labels, sides = torch.tensor([2, 0]), []
    for number, count in enumerate((7, 3)):
        found, logits = features((2, count, 5), number), features((2, count, 4), 10 + number)
        plain = torch.zeros(2, 4, 5, dtype=torch.float64)
        for c, label in enumerate(labels.tolist()):
            for f, z in zip(found[c], logits[c], strict=True):
                for j in range(4):
                    g = float(z.exp()[j] / z.exp().sum()) - (j == label)
                    plain[c, j] += (1 + rho * g) * f / count
        assert torch.allclose(influence_means(found, logits, labels, rho), plain, rtol=1e-12, atol=1e-14)
        sides.append((found, logits, plain))
    (real, _, one), (synthetic, _, other) = sides
    matched = match_influence_means(*(influence_means(f, z, labels, rho) for f, z, _ in sides)).item()
    assert matched == pytest.approx(
        sum(float((one[:, j] - other[:, j]).square().sum()) for j in range(4)) / 4, rel=1e-12
    )
    assert (matched == pytest.approx(match_prototypes(real, synthetic).item(), rel=1e-12)) == (rho == 0)


def test_channel_covariance_by_hand() -> None:
    """One class, one sample of 2 channels x 2 positions: real (1,3 | 0,4), synthetic (0,2 | 1,1).

    Observations (1,0) (3,4) and (0,1) (2,1): covariances [[2,4],[4,8]] and [[2,0],[0,0]], 0 + 16 + 16 + 64 over C = 2.
    """
    real = torch.tensor([[[1, 3, 0, 4]]], dtype=torch.float64)
    synthetic = torch.tensor([[[0, 2, 1, 1]]], dtype=torch.float64)
    assert match_channel_covariances(real, synthetic, 2).item() == pytest.approx(48, abs=1e-12)
    with pytest.raises(UsageError, match="need at least 2"):
        match_channel_covariances(real, synthetic, 4)


@pytest.mark.parametrize("ddof", [0, 1])
def test_channel_covariance_equals_torch_cov_over_samples_and_positions(ddof: int) -> None:
    real, synthetic = features((3, 7, 5 * 4), 1), features((3, 2, 5 * 4), 2)
    expected = 0.0
    for c in range(3):
        r, s = (x[c].reshape(-1, 5, 2, 2).permute(1, 0, 2, 3).reshape(5, -1) for x in (real, synthetic))
        expected += float((torch.cov(r, correction=ddof) - torch.cov(s, correction=ddof)).square().sum()) / 5
    assert match_channel_covariances(real, synthetic, 5, ddof=ddof).item() == pytest.approx(expected, rel=1e-12)
    alone = match_channel_covariances(real, synthetic, 20, ddof=ddof)  # no positions: the paper's term
    assert torch.equal(alone, match_covariances(real, synthetic, ddof=ddof))


def test_channel_covariance_has_a_gradient_in_every_position() -> None:
    real, synthetic = features((2, 6, 3 * 4), 1), features((2, 3, 3 * 4), 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: match_channel_covariances(real, s, 3), synthetic)
    (gradient,) = torch.autograd.grad(match_channel_covariances(real, synthetic, 3), synthetic)
    assert (gradient != 0).all()
