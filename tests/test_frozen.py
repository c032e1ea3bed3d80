"""Frozen modules as members of a pool: which tensor is the feature, and what is refused of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import potstill
from potstill import Frozen
from potstill.cli import main
from potstill.errors import UsageError
from potstill.learning.augment import PLAIN
from potstill.learning.extractor import Extractor
from potstill.learning.pool import Pool, untrained
from potstill.machine.runtime import Runtime
from potstill.methods import Problem
from potstill.methods.herding import Herding
from potstill.networks import build_network, frozen
from potstill.report import collect, render_report
from potstill.run.distil import read_run_recipe
from potstill.run.store import RunStore
from potstill.spec import LabelledDataset, normalise, to_pixels


class Small(nn.Module):
    """As anyone writes a network: nothing of it is named as the networks of this project name it."""

    def __init__(self, channels: int = 1, classes: int = 3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stem(x)).flatten(1))


@pytest.fixture
def trained(toy_dataset: LabelledDataset) -> Small:
    """A module that a loop of plain PyTorch has trained: it knows most of the test images."""
    torch.manual_seed(0)
    net, spec = Small(), toy_dataset.spec
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    x = normalise(to_pixels(toy_dataset.train.images), mean, std)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x), toy_dataset.train.labels).backward()
        optimiser.step()
    seen = net.eval()(normalise(to_pixels(toy_dataset.test.images), mean, std)).argmax(1)
    assert (seen == toy_dataset.test.labels).float().mean() > 0.8
    return net


WAYS: list[tuple[dict[str, Any], Any]] = [
    ({"features": "pool"}, lambda net, x: net.pool(net.stem(x)).flatten(1)),
    ({"features": "stem.0"}, lambda net, x: net.stem[0](x).flatten(1)),
    ({"classifier": "head"}, lambda net, x: net.pool(net.stem(x)).flatten(1)),
    ({"features": lambda net, x: net.stem(x).mean((2, 3))}, lambda net, x: net.stem(x).mean((2, 3))),
    ({}, lambda net, x: net(x)),
]


def embedded(one: Frozen, data: LabelledDataset, samples: Tensor, **runtime: Any) -> tuple[Tensor, Tensor]:
    """Features of samples `(K, N, C, H, W)` as methods have them, and the gradient of their squares to the samples."""
    pool = Pool.of(one)
    extractor = Extractor(build_network(pool.network, data.spec, 0), data.spec, Runtime(chunk=4, **runtime))
    pixels = samples.clone().requires_grad_()
    features = extractor.embed(pool.members[0], pixels, PLAIN.repeat(len(samples)))
    (gradient,) = torch.autograd.grad(features.square().sum(), pixels)
    return features.detach(), gradient


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_the_feature_is_the_tensor_that_was_named(
    way: int, trained: Small, toy_dataset: LabelledDataset, seeded: torch.Generator
) -> None:
    keys, by_hand = WAYS[way]
    spec = toy_dataset.spec
    samples = torch.rand(2, 5, 1, 8, 8, generator=seeded)
    pixels = samples.clone().requires_grad_()
    expected = by_hand(trained, normalise(pixels.flatten(0, 1), torch.tensor(spec.mean), torch.tensor(spec.std)))
    features, gradient = embedded(Frozen(trained, **keys), toy_dataset, samples)
    torch.testing.assert_close(features.flatten(0, 1), expected.detach(), rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected.square().sum(), pixels)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile walks into deprecated corners of torch and hides them itself
def test_a_named_feature_is_the_same_when_compiled(
    trained: Small, toy_dataset: LabelledDataset, seeded: torch.Generator
) -> None:
    samples = torch.rand(1, 4, 1, 8, 8, generator=seeded)
    eager, compiled = (
        embedded(Frozen(trained, features="pool"), toy_dataset, samples, compile=how) for how in (False, True)
    )
    for plain, fast in zip(eager, compiled, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_a_module_is_copied_and_never_changed(trained: Small, toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    before, trained.training = copy.deepcopy(trained.state_dict()), True
    small = {"ipc": 1, "steps": 2, "real_batch": 8, "cache": tmp_path}
    potstill.distill(toy_dataset, method="dsdm", pool=Frozen(trained, classifier="head"), **small)
    assert trained.training and all(p.requires_grad for p in trained.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_images_are_chosen_by_the_features_of_the_module(toy_dataset: LabelledDataset) -> None:
    """Herding at one image a class takes the one nearest to the class's mean: here in brightness."""
    pool = Pool.of(Frozen(nn.Identity(), features=lambda _, x: x.mean((2, 3))))
    problem = Problem(spec=toy_dataset.spec, train=toy_dataset.train, ipc=1, pool=pool, network=pool.network)
    chosen = Herding().init(problem).images[:, 0, 0].mean((1, 2))
    for cls, found in enumerate(chosen):
        brightness = to_pixels(toy_dataset.train.images[toy_dataset.train.labels == cls]).mean((1, 2, 3))
        nearest = brightness[(brightness - brightness.mean()).abs().argmin()]
        assert found.item() == pytest.approx(nearest.item(), abs=1e-6)


def test_a_set_is_distilled_in_the_features_of_several_modules(
    trained: Small, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    other = copy.deepcopy(trained)
    nn.init.normal_(other.head.weight)
    pool = [Frozen(one, classifier="head") for one in (trained, other)]
    keys: dict[str, Any] = {"ipc": 2, "steps": 30, "real_batch": 30, "learning_rate": 0.01, "cache": tmp_path}
    run = potstill.distill(toy_dataset, method="dsdm", pool=pool, out=tmp_path / "run", **keys)
    (record,) = collect(tmp_path / "run")
    assert {line["notes"]["network"] for line in record.metrics} == {0, 1}
    losses = [line["terms"]["prototype"] for line in record.metrics]
    assert sum(losses[-9:]) < 0.8 * sum(losses[:9]), "the prototypes come nearer in these features"
    assert run.recipe.pool.network.startswith("frozen:") and not run.recipe.pool.pretrained
    assert "against networks as frozen:" in render_report([record])
    assert not (tmp_path / "pool").exists(), "nothing was trained"


def test_terms_that_ask_for_logits_have_them_by_the_named_classifier_alone(
    trained: Small, toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    small = {"ipc": 2, "steps": 1, "real_batch": 8, "cache": tmp_path}
    potstill.distill(toy_dataset, method="dsdm_plus", pool=Frozen(trained, classifier="head"), **small)
    for method in ("dsdm_plus", "dance", "tgdd", "ncfm"):
        with pytest.raises(UsageError, match=r"is frozen and has no logits: name its linear layer") as refused:
            potstill.distill(
                toy_dataset, method=method, pool=Frozen(trained, features="pool"), out=tmp_path / method, **small
            )
        assert "\n" not in str(refused.value)
        assert not (tmp_path / method).exists(), "refused before anything is claimed"


def test_a_finished_run_is_scored_where_the_module_is_not(
    trained: Small, toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {"method": "dsdm", "ipc": 1, "steps": 2, "real_batch": 8, "cache": tmp_path}
    keys |= {"pool": Frozen(trained, features="pool"), "out": tmp_path / "run"}
    first = potstill.distill(toy_dataset, **keys)
    again = potstill.distill(toy_dataset, **keys, resume=True)
    assert torch.equal(first.synthetic.images, again.synthetic.images)
    monkeypatch.setattr(frozen, "_GIVEN", {})  # as in another process
    with pytest.raises(UsageError, match=r"given in Python and are not here; pass them again, pool="):
        build_network(first.recipe.pool.network, toy_dataset.spec, 0)
    assert read_run_recipe(RunStore(tmp_path / "run")).hash() == first.recipe.hash()
    assert 0 <= potstill.evaluate(potstill.read_set(tmp_path / "run"), toy_dataset, nets=1, epochs=1).mean <= 1


def test_other_weights_or_another_feature_are_another_pool(trained: Small) -> None:
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.stem[0].weight[0, 0, 0, 0] += 1e-3
    names = [
        Pool.of(one).network
        for one in (
            Frozen(trained, features="pool"),
            Frozen(other, features="pool"),
            Frozen(trained, features="stem"),
            Frozen(trained, features=lambda net, x: net.stem(x)),
            Frozen(trained, features=lambda net, x: net.stem(x) + 1),
        )
    ]
    assert len(set(names)) == 5
    assert Pool.of(Frozen(copy.deepcopy(trained), features="pool")).network == names[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"features": "body"}, r"the module has no layer 'body'; it has stem, pool, head"),
        ({"classifier": "stem"}, r"its classifier is a Sequential: need a Linear layer from \d+ features to 3 classes"),
        ({"features": "stem", "classifier": "head"}, r"its classifier goes from 24 to 3: need .* from 384 features"),
        ({"features": lambda net, x: net.pool(x)[0]}, r"features \(1, 4\) torch.float32 of 2 images, expected \(2, "),
        ({"features": lambda net, x: net.head(x)}, r"fails on images \(1, 8, 8\): RuntimeError"),
        (
            {"features": lambda net, x: net(x).argmax(1)[:, None]},
            r"torch.int64 of 2 images, expected \(2, ",
        ),
    ],
)
def test_a_module_that_cannot_serve_is_refused_in_one_line(
    keys: dict[str, Any], message: str, toy_dataset: LabelledDataset
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        build_network(Pool.of(Frozen(Small(), **keys)).network, toy_dataset.spec, 0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], r"no modules"),
        ([nn.Linear(2, 2)], r"member 0 is a Linear; wrap it, potstill.Frozen"),
        ([Frozen(nn.Linear(2, 2)), Frozen(nn.Linear(2, 3))], r"member 1 is of another architecture than the first"),
    ],
)
def test_members_that_make_no_pool_are_refused(members: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pool.of(members)


def test_a_method_that_draws_from_no_pool_is_given_none(trained: Small, toy_dataset: LabelledDataset) -> None:
    with pytest.raises(UsageError, match=r"method dc draws from none; leave it out, or use one of dance, dsdm, "):
        potstill.distill(toy_dataset, method="dc", ipc=1, pool=Frozen(trained))


# --- by the place of a factory

OWN = """
import torch
from torch import nn
from potstill import Frozen

def trained(shape, num_classes):
    torch.manual_seed(7)  # stands for weights from a file
    pixels = shape[0] * shape[1] * shape[2]
    layers = nn.Flatten(), nn.Linear(pixels, 12), nn.Tanh(), nn.Linear(12, num_classes)
    return Frozen(nn.Sequential(*layers), classifier="3")

def drawn(shape, num_classes):
    return Frozen(nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 12)))
"""
DISTILL = ("distill", "--dataset", "digits", "--method", "dsdm_plus", "--ipc", "1", "--method.steps", "2")
KEYS = ("--method.real_batch", "8", "--method.bank_draws", "2", "-q")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "net.py").write_text(OWN)
    return f"{tmp_path}/net.py"


def test_a_factory_may_give_a_frozen_module(net: str, tmp_path: Path) -> None:
    words = (*DISTILL, *KEYS, "--pool.network", f"{net}:trained", "--pool.pretrained", "false")
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    (record,) = collect(tmp_path / "run")
    assert len(record.metrics) == 2 and all(line["terms"]["calibration"] > 0 for line in record.metrics)
    assert main(["evaluate", str(tmp_path / "run"), "--nets", "1", "--epochs", "1", "-q"]) == 0


def test_a_factory_is_asked_once_for_each_member_and_equal_ones_count_once(
    net: str, toy_dataset: LabelledDataset
) -> None:
    assert len(untrained(toy_dataset.spec, network=f"{net}:trained", members=3)) == 1
    drawn = untrained(toy_dataset.spec, network=f"{net}:drawn", members=3)
    assert len(set(drawn.digests)) == len(drawn) == 3


@pytest.mark.parametrize("words", [("--pool.network", "{}:trained"), ("evaluate",)])
def test_a_frozen_module_is_never_trained(
    words: tuple[str, ...], net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words == ("evaluate",):
        assert main(["distill", "--dataset", "digits", "--method", "random", "--out", str(tmp_path / "run"), "-q"]) == 0
        code = main(["evaluate", str(tmp_path / "run"), "--network", f"{net}:trained", "--nets", "1", "-q"])
    else:
        code = main([*DISTILL, *KEYS, *(word.format(net) for word in words), "--out", str(tmp_path / "run")])
        assert not (tmp_path / "run").exists(), "refused before anything is claimed"
    told = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(told) == 1
    assert "is frozen and cannot be trained: for a pool of it set pool.pretrained=false" in told[0]
