"""DD against unrolled steps that autograd differentiates, in float64, and its own protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from potstill.cli.listing import names
from potstill.errors import RunError, UsageError
from potstill.evaluation import evaluate_once
from potstill.learning.augment import Draw
from potstill.learning.unroll import Labelled, Unrolled
from potstill.machine.runtime import Runtime
from potstill.methods import Problem, run_method
from potstill.methods.dd import DD, DDConfig
from potstill.networks import build_network
from potstill.recipe import resolve
from potstill.run.distil import distill_run
from potstill.run.progress import Reporter
from potstill.run.score import evaluate
from potstill.run.store import RunStore
from potstill.run.timing import Timings
from potstill.seeding import derive
from potstill.sets.parameterisations.dct import DCT
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset, normalise, to_pixels

NETWORK = "convnet:width=8"


def problem_of(data: LabelledDataset, **keys) -> Problem:
    given = {"ipc": 4, "parameterisation": (1, 1), "seed": 3, "network": NETWORK, **keys}
    return Problem(spec=data.spec, train=data.train, **given)


def unrolled_loss(network, weights: dict[str, Tensor], steps: list, real: tuple[Tensor, Tensor]) -> Tensor:
    """What the paper minimises: the loss on real samples after w <- w - r dL(w)/dw over all (samples, labels, r)."""
    for samples, labels, rate in steps:
        loss = F.cross_entropy(functional_call(network, weights, (samples,)), labels)
        slope = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - rate * g for (name, w), g in zip(weights.items(), slope, strict=True)}
    return F.cross_entropy(functional_call(network, weights, (real[0],)), real[1])


def normalised(data: LabelledDataset, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (data.spec.mean, data.spec.std))
    return normalise(images, mean, std)


@pytest.mark.parametrize("steps_kept", [100, 3, 1])
def test_the_way_back_is_autograds_however_little_is_kept(steps_kept: int, toy_colour: LabelledDataset):
    """Seven steps over two batches; two are kept of three asked for, as segments have one length."""
    spec = toy_colour.spec
    network = build_network(NETWORK, spec, 0)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    size = sum(value.numel() for value in weights.values())
    draws = torch.Generator().manual_seed(0)
    batches = [Labelled(torch.rand(6, *spec.shape, generator=draws), torch.arange(6) % 3) for _ in range(2)]
    rates = torch.linspace(0.05, 0.3, 7)
    real = toy_colour.train.images[:10], toy_colour.train.labels[:10]
    unrolled = Unrolled(network, spec, Runtime(), keep=steps_kept * size)
    trail = unrolled.forward(weights, batches, rates)
    assert len(trail.kept) <= steps_kept and trail.stride * len(trail.kept) >= 7
    nothing = torch.zeros(1, 11)
    loss, slope = unrolled.learner.gradients.loss(trail.weights, *real, Draw((), nothing))
    to_batches, to_rates = unrolled.backward(trail, batches, rates, slope)

    leaves = [batch.samples.double().requires_grad_() for batch in batches]
    double_rates = rates.double().requires_grad_()
    steps = [(normalised(toy_colour, leaves[t % 2]), batches[t % 2].labels, double_rates[t]) for t in range(7)]
    start = {name: value.double().requires_grad_() for name, value in weights.items()}
    expected = unrolled_loss(
        network.double(), start, steps, (normalised(toy_colour, to_pixels(real[0]).double()), real[1])
    )
    *to_samples, along = torch.autograd.grad(expected, [*leaves, double_rates])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(to_rates.double(), along, rtol=1e-3, atol=1e-5)
    for found, theirs in zip(to_batches, to_samples, strict=True):
        torch.testing.assert_close(found.double(), theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()) + 1e-7)


def test_two_steps_are_the_published_loop_with_adam_on_normalised_pixels_and_rates(toy_colour: LabelledDataset):
    problem = problem_of(toy_colour)
    method = DD(DDConfig(steps=20, inner=3, epochs=2, inner_rate=0.1, real_batch=24))
    state = method.init(problem)
    images = normalised(toy_colour, state.images.flatten(0, 1).double()).view(state.images.shape).requires_grad_()
    raw = torch.full((2, 3), 0.1, dtype=torch.float64).expm1().log().requires_grad_()
    adam = torch.optim.Adam([images, raw], 0.01, betas=(0.5, 0.999))
    network = build_network(NETWORK, toy_colour.spec, 0).double()
    parts = [slice(0, 2), slice(2, 3), slice(3, 4)]  # four samples of a class in three steps
    for step in range(2):
        state, metrics = method.step(problem, state)
        rates = F.softplus(raw)
        steps = [
            (images[:, part].flatten(0, 1), torch.arange(3).repeat_interleave(part.stop - part.start), rates[epoch, i])
            for epoch in range(2)
            for i, part in enumerate(parts)
        ]
        real = torch.cat([toy_colour.train.images[problem.sampler.batch(c, step, 8)] for c in range(3)])
        weights = problem.fresh_network(step)
        start = {name: value.double().requires_grad_() for name, value in weights.items()}
        labels = torch.arange(3).repeat_interleave(8)
        loss = unrolled_loss(network, start, steps, (normalised(toy_colour, to_pixels(real).double()), labels))
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-4)
    found = normalised(toy_colour, state.images.flatten(0, 1).double()).view_as(images)
    assert (found - images).abs().mean() < 2e-4 and (images.detach() - found).abs().max() < 0.02
    torch.testing.assert_close(state.rates.double(), raw.detach(), rtol=1e-3, atol=1e-4)


def test_the_outer_rate_is_halved_at_every_tenth(toy_dataset: LabelledDataset):
    method = DD(DDConfig(steps=400))
    assert [method._rate_at(step) for step in (0, 39, 40, 80, 399)] == [0.01, 0.01, 0.005, 0.0025, 0.01 / 2**9]


@pytest.mark.parametrize("ipc", [1, 2, 5])
def test_there_are_as_many_rates_as_steps_for_any_ipc_and_way_of_storing(ipc: int, toy_colour: LabelledDataset):
    ways = {(1, 1): ipc, (2, 2): 4 * ipc, DCT(luma=128, chroma=32).for_data(toy_colour.train, toy_colour.spec): None}
    for way, samples in ways.items():
        problem = problem_of(toy_colour, ipc=ipc, parameterisation=way)
        method = DD(DDConfig(steps=1, inner=3, epochs=2, real_batch=9))
        begun = method.init(problem)
        after, _ = method.step(problem, begun)
        assert after.rates.shape == (2, min(3, samples or problem.samples))
        assert ((after.images - begun.images) != 0).flatten(2).any(dim=2).all()  # every sample moved


# --- the protocol


def small_set(data: LabelledDataset, **keys) -> SyntheticSet:
    given = {"steps": 2, "inner": 2, "epochs": 3, "inner_rate": 0.05, "real_batch": 12, **keys}
    return run_method(DD(DDConfig(**given)), problem_of(data))


def test_networks_take_the_steps_of_the_set_at_its_rates(toy_colour: LabelledDataset, tmp_path: Path):
    made = small_set(toy_colour)
    path = tmp_path / "distilled.safetensors"
    path.write_bytes(made.to_bytes())
    made = SyntheticSet.load(path)
    assert made.extras["rates"].shape == (3, 2) and "network_seed" not in made.extras
    score = evaluate_once(made, made.spec, toy_colour.test, network=NETWORK, protocol="dd", seed=5, runtime=Runtime())
    network = build_network(NETWORK, made.spec, derive(5, "evaluate"))
    samples = normalise(made.samples().flatten(0, 1), torch.tensor(made.spec.mean), torch.tensor(made.spec.std))
    samples = samples.unflatten(0, (3, 4))
    for epoch in range(3):
        for i, part in enumerate(samples.split(2, dim=1)):
            network.zero_grad()
            F.cross_entropy(network(part.flatten(0, 1)), torch.arange(3).repeat_interleave(2)).backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= made.extras["rates"][epoch, i] * parameter.grad
    test = normalise(to_pixels(toy_colour.test.images), torch.tensor(made.spec.mean), torch.tensor(made.spec.std))
    right = (network(test).argmax(dim=1) == toy_colour.test.labels).double().mean()
    assert score.accuracy == pytest.approx(right.item()) and (score.protocol, score.epochs) == ("dd", 3)


def test_a_set_for_one_network_is_scored_on_it_and_a_set_for_any_on_many(toy_colour: LabelledDataset):
    alone, many = small_set(toy_colour, initialisation="fixed"), small_set(toy_colour)
    assert int(alone.extras["network_seed"]) == derive(3, "random network", 0)
    keys = {"network": NETWORK, "nets": 2, "protocol": "dd", "runtime": Runtime()}
    one, other = ([s.train_loss for s in evaluate(made, toy_colour, **keys).scores] for made in (alone, many))
    assert one[0] == one[1] and other[0] != other[1]


def test_a_set_with_rates_is_scored_by_a_common_protocol_too(toy_dataset: LabelledDataset):
    scores = evaluate(small_set(toy_dataset), toy_dataset, network=NETWORK, nets=1, epochs=2, runtime=Runtime())
    assert scores.scores[0].protocol == "dsdm"


def test_what_a_set_has_not_learned_is_refused_in_a_line(toy_dataset: LabelledDataset):
    made, bare = small_set(toy_dataset), problem_of(toy_dataset).synthetic_set(torch.rand(3, 4, 1, 8, 8))
    keys = {"network": NETWORK, "nets": 1, "protocol": "dd", "runtime": Runtime()}
    assert evaluate(made, toy_dataset, epochs=1, **keys).scores[0].epochs == 1
    with pytest.raises(UsageError, match="epochs=4: the set has learned rates for 3"):
        evaluate(made, toy_dataset, epochs=4, **keys)
    with pytest.raises(UsageError, match="protocol=dd: needs a set with learned rates"):
        evaluate(bare, toy_dataset, **keys)
    made.extras["rates"] = made.extras["rates"] * 1e30
    with pytest.raises(RunError, match="do not suit this network"):
        evaluate(made, toy_dataset, **keys)


def test_the_protocol_is_listed_and_bad_keys_are_refused():
    assert "learned" in names("protocols")["dd"]
    with pytest.raises(UsageError, match="initialisation='known': use one of random, fixed"):
        DDConfig(initialisation="known")
    with pytest.raises(UsageError, match="inner_rate=0: need a number above 0"):
        DDConfig(inner_rate=0.0)


def test_a_protocol_that_the_sets_are_not_made_for_is_refused_before_distilling(
    toy_dataset: LabelledDataset, tmp_path: Path
):
    recipe = resolve({"method": {"name": "dm", "steps": 1}, "ipc": 1, "evaluation": {"protocol": "dd"}})
    with pytest.raises(UsageError, match="needs a set with learned rates"):
        distill_run(recipe, toy_dataset, RunStore(tmp_path / "run"), Reporter(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_time_of_its_own_protocol_is_estimated_on_the_whole_set(toy_dataset: LabelledDataset):
    recipe = resolve(
        {
            "ipc": 4,
            "method": {"name": "dd", "steps": 1},
            "evaluation": {"protocol": "dd", "network": NETWORK, "nets": 1},
            "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
        }
    )
    seconds, _ = Timings(Reporter(quiet=True)).scores_of(recipe, toy_dataset)
    assert seconds > 0
