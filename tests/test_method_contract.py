"""What every method owes the rest, checked on each one in the registry: a new method needs no line here."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from potstill.errors import UsageError
from potstill.learning.pool import untrained
from potstill.machine.compiler import find_compiler
from potstill.machine.runtime import Runtime
from potstill.methods import METHODS, Init, Method, Problem, State, run_method
from potstill.recipe import resolve
from potstill.recipe.names import kinds, short_names
from potstill.run.distil import distill_run
from potstill.run.progress import Reporter
from potstill.run.store import RunStore
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import LabelledDataset

every_method = pytest.mark.parametrize("name", list(METHODS))
every_iterative_method = pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n]().steps])

#: Settings that make any method quick, where it has such keys.
QUICK = {"steps": 4, "real_batch": 16, "synthetic_batch": 16}
#: A narrow network owes the rest what a wide one does.
NETWORK = "convnet:width=32"
#: What a single sample per class needs: it has no covariance.
ONE_SAMPLE = {"covariance_weight": 0.0}


def quick_keys(name: str, **keys: Any) -> dict[str, Any]:
    """Small settings of the method; keys it does not have are left out."""
    known = {*kinds(METHODS[name].Config), *short_names(METHODS[name].Config)}
    given = {**QUICK, **METHODS[name].quick, **keys}
    return {key: value for key, value in given.items() if key in known}


def quick(name: str, **keys: Any) -> Method[Any]:
    return resolve({"method": {"name": name, **quick_keys(name, **keys)}}).build_method()


def problem_of(data: LabelledDataset, **changes: Any) -> Problem:
    pool = untrained(data.spec, network=NETWORK, members=2)
    given = {"ipc": 2, "parameterisation": (2, 2), "pool": pool, "network": NETWORK, "runtime": Runtime()}
    return Problem(spec=data.spec, train=data.train, **{**given, **changes})


def distilled(name: str, problem: Problem, **keys: Any) -> SyntheticSet:
    return run_method(quick(name, **keys), problem)


def through_a_snapshot(method: Method[Any], state: State) -> State:
    return method.State.from_tensors(load(save(state.to_tensors())), "cpu")


@every_method
@pytest.mark.parametrize("ipc", [1, 2])
@pytest.mark.parametrize("factor", [(1, 1), (2, 2)])
@pytest.mark.parametrize("dataset", ["toy_dataset", "toy_colour"])
def test_a_result_has_its_shape_for_gray_and_colour_at_every_small_ipc_and_factor(
    name: str, ipc: int, factor: tuple[int, int], dataset: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(dataset)
    single = ONE_SAMPLE if ipc * factor[0] * factor[1] == 1 else {}
    small = distilled(name, problem_of(data, ipc=ipc, parameterisation=factor), steps=2, **single)
    assert small.images.shape == (data.spec.num_classes, ipc, *data.spec.shape)
    assert small.images.dtype == torch.float32
    assert small.images.isfinite().all()
    assert small.factor == (factor if METHODS[name].uses_factor else (1, 1))
    assert small.classes == tuple(range(data.spec.num_classes))


@every_method
def test_decoded_labels_are_balanced(name: str, toy_dataset: LabelledDataset) -> None:
    small = distilled(name, problem_of(toy_dataset))
    split = small.decoded()
    assert len(split) == len(small)
    assert split.labels.bincount().tolist() == [len(small) // 3] * 3


@every_method
def test_values_stay_in_range_however_large_the_step(name: str, toy_dataset: LabelledDataset) -> None:
    if not METHODS[name].clamps:
        pytest.skip(f"{name} does not promise it")
    images = distilled(name, problem_of(toy_dataset), learning_rate=100.0).images
    low, high = toy_dataset.spec.value_range
    assert low <= images.min() and images.max() <= high


@every_method
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name: str, toy_dataset: LabelledDataset) -> None:
    first, again, other = (distilled(name, problem_of(toy_dataset, seed=seed)) for seed in (0, 0, 1))
    assert first.to_bytes() == again.to_bytes()
    assert torch.equal(first.images, other.images) != METHODS[name].uses_seed


@every_iterative_method
def test_stopping_and_resuming_gives_the_bytes_of_an_uninterrupted_run(name: str, toy_dataset: LabelledDataset) -> None:
    whole = distilled(name, problem_of(toy_dataset))
    method, problem = quick(name), problem_of(toy_dataset)
    state = method.init(problem)
    while state.step < method.steps // 2:
        state, _ = method.step(problem, state)
    # Another process: nothing but the snapshot is left.
    method, problem = quick(name), problem_of(toy_dataset)
    state = through_a_snapshot(method, state)
    while state.step < method.steps:
        state, _ = method.step(problem, state)
    assert method.result(problem, state).to_bytes() == whole.to_bytes()


@every_method
def test_a_snapshot_of_the_first_state_is_equal_to_it(name: str, toy_dataset: LabelledDataset) -> None:
    method, problem = quick(name), problem_of(toy_dataset)
    state = method.init(problem)
    again = through_a_snapshot(method, state)
    assert type(again) is type(state)
    assert_equal_states(state, again)


def assert_equal_states(one: State, other: State) -> None:
    """In structure, names and every number."""
    old, new = one.to_tensors(), other.to_tensors()
    assert sorted(old) == sorted(new)
    assert [name for name in old if not torch.equal(old[name], new[name])] == []
    assert tree_spec({f.name: getattr(one, f.name) for f in fields(one)}) == tree_spec(
        {f.name: getattr(other, f.name) for f in fields(other)}
    )


def tree_spec(value: Any) -> Any:
    """The shape of nested tuples and mappings, with the type of each leaf."""
    if isinstance(value, Mapping):
        return {key: tree_spec(item) for key, item in sorted(value.items())}
    return tuple(map(tree_spec, value)) if isinstance(value, tuple) else type(value)


@dataclass(frozen=True)
class QueueState(State):
    """Of a method with a queue of networks, each with the memory of its optimiser."""

    queue: tuple[Mapping[str, torch.Tensor], ...]
    memory: tuple[Mapping[str, torch.Tensor], ...] = ()
    counts: Mapping[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)


def test_a_state_of_nested_tuples_and_mappings_comes_back_from_a_snapshot() -> None:
    networks = tuple({"conv.weight": torch.rand(2, 3), "conv.bias": torch.tensor(float(i))} for i in range(12))
    memory = ({}, {"conv.weight": torch.arange(3)})
    state = QueueState(7, torch.rand(2, 2), networks, memory, {"right": (torch.tensor(5), torch.tensor(6)), "no": ()})
    tensors = load(save(state.to_tensors()))
    assert {"images", "queue/11/conv.weight", "memory/1/conv.weight", "counts/right/1"} < set(tensors)
    assert_equal_states(state, QueueState.from_tensors(tensors, "cpu"))
    assert_equal_states(bare := QueueState(0, torch.rand(1), ()), QueueState.from_tensors(bare.to_tensors(), "cpu"))
    with pytest.raises(KeyError, match="queue"):
        QueueState.from_tensors({"step": torch.tensor(0), "images": torch.rand(1)}, "cpu")


def test_a_step_shares_what_it_leaves_alone() -> None:
    state = QueueState(0, torch.rand(1), ({"weight": torch.rand(3)},))
    assert state.advanced(images=torch.rand(1)).queue[0]["weight"] is state.queue[0]["weight"]


@every_method
def test_a_method_knows_the_name_it_is_registered_by(name: str, toy_dataset: LabelledDataset) -> None:
    assert METHODS[name].name == name
    assert distilled(name, problem_of(toy_dataset)).provenance["method"] == name
    if METHODS[name].needs_pool:
        with pytest.raises(UsageError, match=f"method '{name}' needs pre-trained networks"):
            quick(name).init(problem_of(toy_dataset, pool=None))


@every_iterative_method
def test_passes_grow_with_steps_classes_and_samples(name: str, toy_dataset: LabelledDataset) -> None:
    problem, method = problem_of(toy_dataset), quick(name)
    passes = method.passes(problem)
    assert passes >= 2 * method.steps * len(problem.classes) * problem.samples
    assert quick(name, steps=2 * method.steps).passes(problem) > passes
    # A shard does what its classes need, and all that does not depend on classes.
    assert passes / 3 <= method.passes(problem_of(toy_dataset, classes=(1,))) < passes
    assert method.passes(problem_of(toy_dataset, ipc=1)) < passes


@every_method
def test_a_method_pickled_and_back_gives_equal_bytes(name: str, toy_dataset: LabelledDataset) -> None:
    method, problem = quick(name), problem_of(toy_dataset)
    state = method.init(problem)
    if method.steps:
        state, _ = method.step(problem, state)
    sent, there = pickle.loads(pickle.dumps(method)), problem_of(toy_dataset)
    begun = sent.init(there)
    again = sent.step(there, begun)[0] if method.steps else begun
    assert sent.result(there, again).to_bytes() == method.result(problem, state).to_bytes()


@every_iterative_method
def test_a_step_leaves_the_state_it_started_from_alone(name: str, toy_dataset: LabelledDataset) -> None:
    method, problem = quick(name), problem_of(toy_dataset)
    state, _ = method.step(problem, method.init(problem))
    before = {k: v.clone() for k, v in state.to_tensors().items()}
    method.step(problem, state)
    after = state.to_tensors()
    assert all(torch.equal(before[k], after[k]) for k in before)


@every_method
def test_one_method_object_serves_two_problems_in_turn(name: str, toy_dataset: LabelledDataset) -> None:
    problems = [problem_of(toy_dataset, seed=seed) for seed in (0, 1)]
    alone = [distilled(name, problem).to_bytes() for problem in problems]
    method = quick(name)
    states = [method.init(problem) for problem in problems]
    for _ in range(method.steps):
        states = [method.step(problem, state)[0] for problem, state in zip(problems, states, strict=True)]
    together = [method.result(problem, state).to_bytes() for problem, state in zip(problems, states, strict=True)]
    assert together == alone


@every_method
def test_the_training_images_and_the_pool_are_left_as_they_were(name: str, toy_dataset: LabelledDataset) -> None:
    problem = problem_of(toy_dataset)
    assert problem.pool is not None
    kept = [toy_dataset.train.images, toy_dataset.train.labels, *(v for m in problem.pool.members for v in m.values())]
    before = [tensor.clone() for tensor in kept]
    distilled(name, problem)
    assert all(torch.equal(old, new) for old, new in zip(before, kept, strict=True))


@every_iterative_method
def test_metrics_are_plain_numbers_and_the_terms_add_up_to_the_loss(name: str, toy_dataset: LabelledDataset) -> None:
    method, problem = quick(name), problem_of(toy_dataset)
    _, metrics = method.step(problem, method.init(problem))
    numbers = [metrics.loss, *metrics.terms.values(), *metrics.notes.values()]
    assert all(type(value) is float for value in numbers)
    assert not metrics.terms or sum(metrics.terms.values()) == pytest.approx(metrics.loss, rel=1e-5)


@every_iterative_method
def test_the_loss_falls_on_a_toy_problem(name: str, toy_dataset: LabelledDataset) -> None:
    problem = problem_of(toy_dataset, init=Init(kind="noise"))
    method = quick(name, steps=30)
    state, losses = method.init(problem), []
    for _ in range(method.steps):
        state, metrics = method.step(problem, state)
        losses.append(metrics.loss)
    assert fmean(losses[-10:]) < 0.9 * fmean(losses[:10])


@every_method
def test_shards_of_the_classes_give_what_the_whole_gives(name: str, toy_dataset: LabelledDataset) -> None:
    if not METHODS[name].independent_classes:
        pytest.skip(f"the classes of {name} depend on each other")
    whole = distilled(name, problem_of(toy_dataset)).images
    parts = [distilled(name, problem_of(toy_dataset, classes=classes)).images for classes in ((0,), (1, 2))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=0)


def test_a_small_class_cuts_no_other_classs_batch(toy_dataset: LabelledDataset) -> None:
    """Of 3, 40 and 40 images: batches of 16 hold 16 images of each, the small class's three five or six times."""
    rare = (toy_dataset.train.labels == 0).nonzero().flatten()[3:]
    kept = torch.tensor([i for i in range(120) if i not in set(rare.tolist())])
    problem = problem_of(replace(toy_dataset, train=toy_dataset.train.subset(kept)))
    assert problem.batch_size(16) == 16 and problem.batch_size(256) == 40
    small, *large = problem.class_batches(16, 3)
    assert small.flatten(1).unique(dim=0, return_counts=True)[1].tolist() in ([5, 5, 6], [5, 6, 5], [6, 5, 5])
    assert all(len(batch.flatten(1).unique(dim=0)) == 16 for batch in large)


@every_method
def test_a_shard_names_its_classes(name: str, toy_dataset: LabelledDataset) -> None:
    small = distilled(name, problem_of(toy_dataset, classes=(2, 0)))
    assert small.classes == (2, 0)
    assert set(small.decoded().labels.tolist()) == {0, 2}


# --- the test split


class Poisoned:
    """Stands in for a test split; whoever looks at it fails the test."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a method asked the test split for {name!r}")

    def __len__(self) -> int:
        raise AssertionError("a method asked for the length of the test split")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile's own corners, which it hides itself
@every_iterative_method
def test_a_compiled_step_moves_the_images_as_an_eager_one(name: str, toy_dataset: LabelledDataset) -> None:
    if not find_compiler():
        pytest.skip("no C++ compiler")
    pool = replace(untrained(toy_dataset.spec, network=NETWORK, members=2), moments=(0, 1))
    method, moved = quick(name), []
    for runtime in (Runtime(), Runtime(compile=True)):
        runtime.start()
        problem = problem_of(toy_dataset, pool=pool, runtime=runtime)
        start = method.init(problem)
        state, _ = method.step(problem, start)
        moved.append(state.images - start.images)
    assert moved[0].norm() > 0
    assert (moved[1] - moved[0]).norm() <= 1e-2 * moved[0].norm()


def test_a_problem_has_no_place_for_a_test_split() -> None:
    splits = [f.name for f in fields(Problem) if "Split" in str(f.type) or "LabelledDataset" in str(f.type)]
    assert splits == ["train"]


@every_method
def test_a_run_never_touches_the_test_split(name: str, toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    recipe = resolve(
        {
            "method": {"name": name, **quick_keys(name)},
            "ipc": 1,
            "pool": {"members": 2, "epochs": 1, "snapshots": [0], "network": NETWORK},  # trained: under test as well
            "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
        }
    )
    written = []
    for split in (toy_dataset.test, Poisoned()):
        data = replace(toy_dataset)
        object.__setattr__(data, "test", split)  # past the constructor, which looks at a split's statistics
        place = tmp_path / str(len(written))
        store = RunStore(place / "run")
        distill_run(recipe, data, store, Reporter(quiet=True), cache=place / "cache")
        written.append(store.distilled.read_bytes())
    assert written[0] == written[1]


# --- the two Random rows


def test_random_keeps_whole_training_images_at_any_factor(toy_dataset: LabelledDataset) -> None:
    small = distilled("random", problem_of(toy_dataset, parameterisation=(2, 2)))
    assert small.factor == (1, 1) and len(small) == 3 * 2
    for label, images in zip(small.classes, small.images, strict=True):
        own = toy_dataset.train.images[toy_dataset.train.labels == label] / 255
        assert all(any(torch.equal(image, real) for real in own) for image in images)


def test_random_mix_is_what_dsdm_starts_from(toy_dataset: LabelledDataset) -> None:
    problem = problem_of(toy_dataset)
    mosaic = distilled("random_mix", problem)
    assert mosaic.factor == (2, 2)
    assert torch.equal(mosaic.images, quick("dsdm").init(problem).images)
