"""Update rules of stored numbers and of weights against torch.optim, and their refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from potstill.errors import UsageError
from potstill.learning.optim import Descent, Rule

STEPS = 5


def gradients() -> list[Tensor]:
    """Some pixels have no gradient, some one as small as Adam's epsilon."""
    draws = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 1e-3, 1e-8, 0.0], dtype=torch.float64)
    return [torch.randn(2, 3, 4, generator=draws, dtype=torch.float64) * sizes for _ in range(STEPS)]


def start() -> Tensor:
    return torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def walk(descent: Descent) -> list[Tensor]:
    images, memory, path = start(), descent.init(start()), []
    for step, gradient in enumerate(gradients()):
        images, memory = descent(images, gradient, memory, step=step, steps=STEPS)
        path.append(images)
    return path


def torch_walk(make, rates: list[float]) -> list[Tensor]:
    images, path = start().requires_grad_(), []
    optimiser = make([images])
    for rate, gradient in zip(rates, gradients(), strict=True):
        optimiser.param_groups[0]["lr"] = rate
        images.grad = gradient
        optimiser.step()
        path.append(images.detach().clone())
    return path


CASES = {
    "sgd": (("sgd", 0.0), lambda parameters: torch.optim.SGD(parameters, lr=1)),
    "momentum": (("sgd", 0.5), lambda parameters: torch.optim.SGD(parameters, lr=1, momentum=0.5)),
    "adam": (("adam", 0.0), lambda parameters: torch.optim.Adam(parameters, lr=1)),
    "adam ignores momentum": (("adam", 0.5), lambda parameters: torch.optim.Adam(parameters, lr=1)),
}


@pytest.mark.parametrize(("decay", "rates"), [("none", [0.3] * 5), ("linear", [0.3, 0.24, 0.18, 0.12, 0.06])])
@pytest.mark.parametrize(("choice", "make"), CASES.values(), ids=CASES)
def test_descent_equals_torch(choice: tuple[str, float], make, decay: str, rates: list[float]) -> None:
    """Linear decay over 5 steps: .3 times 1, .8, .6, .4, .2."""
    optimizer, momentum = choice
    path = walk(Descent(0.3, optimizer, momentum, decay))
    for ours, theirs in zip(path, torch_walk(make, rates), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_linear_decay_ends_at_zero_after_the_last_step() -> None:
    descent = Descent(0.3, decay="linear")
    assert descent.rate_at(0, 1000) == 0.3
    assert descent.rate_at(500, 1000) == pytest.approx(0.15)
    assert descent.rate_at(999, 1000) == pytest.approx(0.0003)


def test_descent_leaves_its_arguments_alone() -> None:
    """A state that was handed out stays what it was: snapshots and resumed runs rest on that."""
    for optimizer in ("sgd", "adam"):
        descent = Descent(0.3, optimizer, 0.5)
        images, gradient, memory = start(), gradients()[0], descent.init(start())
        _, later = descent(images, gradient, memory, step=0, steps=STEPS)
        before = later.clone()
        descent(images, gradient, later, step=1, steps=STEPS)
        assert torch.equal(images, start()) and torch.equal(gradient, gradients()[0])
        assert not memory.any() and torch.equal(later, before)


@pytest.mark.parametrize(
    ("optimizer", "momentum", "buffers"), [("sgd", 0.0, 0), ("sgd", 0.5, 1), ("adam", 0.0, 2), ("adam", 0.5, 2)]
)
def test_memory_has_as_many_buffers_as_needed(optimizer: str, momentum: float, buffers: int) -> None:
    memory = Descent(0.3, optimizer, momentum).init(start())
    assert memory.shape == (buffers, 2, 3, 4) and not memory.any()
    assert memory.dtype == torch.float64


def test_unknown_choices_are_refused_by_the_name_of_their_key() -> None:
    with pytest.raises(UsageError, match=r"^optimizer='rmsprop': use one of sgd, adam$"):
        Descent(0.3, "rmsprop")
    with pytest.raises(UsageError, match=r"^decay='cosine': use one of none, linear$"):
        Descent(0.3, decay="cosine")
    with pytest.raises(UsageError, match=r"^optimizer='lion': use one of sgd, adam, adamw$"):
        Rule("lion")


RULES = {
    "plain": (Rule(), torch.optim.SGD, {}),
    "decayed": (Rule(weight_decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    "momentum": (
        Rule(momentum=0.9, weight_decay=0.1),
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
    "nesterov": (
        Rule(momentum=0.9, nesterov=True, weight_decay=0.1),
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (
        Rule("adam", betas=(0.5, 0.99), weight_decay=0.1),
        torch.optim.Adam,
        {"betas": (0.5, 0.99), "weight_decay": 0.1},
    ),
    "adamw": (Rule("adamw", weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw without decay": (Rule("adamw"), torch.optim.AdamW, {"weight_decay": 0.0}),
}


@pytest.mark.parametrize(("rule", "optimiser", "keys"), RULES.values(), ids=RULES)
def test_rule_on_a_mapping_of_weights_equals_torch_step_by_step(rule: Rule, optimiser, keys) -> None:
    rates = [0.3, 0.3, 0.1, 0.05, 0.2]
    path = torch_walk(lambda parameters: optimiser(parameters, lr=1, **keys), rates)
    weights = {"first": start()[:1], "second": start()[1:]}
    memory = rule.init(weights)
    assert {name: value.shape for name, value in memory.items()} == dict.fromkeys(weights, (rule.buffers, 1, 3, 4))
    for step, (rate, gradient, theirs) in enumerate(zip(rates, gradients(), path, strict=True)):
        before = {name: value.clone() for name, value in memory.items()}
        given = {"first": gradient[:1], "second": gradient[1:]}
        moved, later = rule.updated(weights, given, memory, rate=rate, step=step)
        assert all(torch.equal(before[name], value) for name, value in memory.items())
        torch.testing.assert_close(torch.cat([moved["first"], moved["second"]]), theirs, rtol=1e-12, atol=1e-12)
        weights, memory = moved, later
