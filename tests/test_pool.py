"""The pool: what a member is, when it is read and when trained, and which one a step draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from potstill.errors import DataError, RunError, UsageError
from potstill.files import default_cache
from potstill.learning import pool as module
from potstill.learning.augment import Strategy
from potstill.learning.fit import Schedule, accuracy, fit, rule_of
from potstill.learning.inner import Batch, Learner
from potstill.learning.pool import (
    FAST,
    PAPER,
    SCHEDULES,
    Pool,
    member_keys,
    pretrain,
    read_member,
    snapshot_epochs,
    untrained,
)
from potstill.machine.runtime import Runtime
from potstill.networks import Backbone, build_network
from potstill.seeding import derive, generator
from potstill.spec import LabelledDataset
from potstill.tensors import pack, read_tensors

QUICK = Schedule(epochs=2, batch=16, learning_rate=0.01, augment="color_crop", cutmix=0.5)


@pytest.fixture
def data(toy_dataset: LabelledDataset) -> LabelledDataset:
    """Few images, as networks are compared here and not judged."""
    return replace(toy_dataset, train=toy_dataset.train.subset(torch.arange(24)))


def make(data: LabelledDataset, cache: Path, **keys) -> Pool:
    given = {"cache": cache, "runtime": Runtime(), "members": 2, "schedule": QUICK, "seed": 0}
    return pretrain(data.train, data.spec, **{**given, **keys})


def weights_by_hand(data: LabelledDataset, run: int, until: int, seed: int = 0) -> dict[str, Tensor]:
    """The training run of one member up to an epoch, in the precision members are kept in."""
    own = derive(seed, "pool", run)
    network, kept = build_network("convnet", data.spec, own), {}

    def keep(epoch: int, loss: float) -> None:
        if epoch == until:
            kept.update({name: value.half().float() for name, value in network.state_dict().items()})

    fit(network, data.train, data.spec, QUICK, Runtime(), seed=own, on_epoch=keep)
    return kept


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*.safetensors")}


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch):
    """Call it to forbid training from there on."""

    def forbid() -> None:
        monkeypatch.setattr(module, "fit", lambda *a, **k: pytest.fail("trained although the cache has the member"))

    return forbid


def test_members_are_the_last_epochs_of_training_runs_by_seeds_of_their_own(
    data: LabelledDataset, tmp_path: Path
) -> None:
    pool = make(data, tmp_path)
    assert len(pool) == 2 and pool.network == "convnet"
    for run in range(2):
        assert same(pool.members[run], weights_by_hand(data, run, until=2))
    assert not same(*pool.members)
    assert len(set(pool.digests)) == 2
    assert {f"{digest}.safetensors" for digest in pool.digests} == files(tmp_path)


def test_snapshots_are_members_and_do_not_change_the_run(data: LabelledDataset, tmp_path: Path) -> None:
    pool = make(data, tmp_path, snapshots=(1, 2))
    assert len(pool) == 4
    order = [(0, 1), (0, 2), (1, 1), (1, 2)]
    for member, (run, epoch) in zip(pool.members, order, strict=True):
        assert same(member, weights_by_hand(data, run, until=epoch))
    assert len(set(pool.digests)) == 4


def test_the_untrained_network_and_parts_of_epochs_are_members_and_change_nothing(
    data: LabelledDataset, tmp_path: Path
) -> None:
    """24 images in batches of 16 are two steps an epoch: half an epoch is one step."""
    pool = make(data, tmp_path, members=1, snapshots=(0, 0.5, 1.0))
    assert len(pool) == 4 == len(set(pool.digests))
    fresh = build_network("convnet", data.spec, derive(0, "pool", 0)).state_dict()
    assert same(pool.members[0], {name: value.half().float() for name, value in fresh.items()})
    plain = make(data, tmp_path / "plain", members=1, snapshots=(1,))
    assert pool.digests[2:] == plain.digests, "1.0 is 1"
    assert same(pool.members[2], plain.members[0]) and same(pool.members[3], plain.members[1])
    network = build_network("convnet", data.spec, derive(0, "pool", 0))
    first = torch.randperm(24, generator=generator(derive(0, "pool", 0), "order", 0))[:16]
    rows, strategy = data.train.subset(first), Strategy(("color", "crop"))
    learner = Learner(network, data.spec, Runtime(), rule=rule_of(QUICK), strategy=strategy, cutmix=0.5)
    weights = network.state_dict()
    batch = Batch(rows.images, rows.labels, QUICK.learning_rate, generator(derive(0, "pool", 0), "batch", 0, 0))
    stepped = learner.step(weights, learner.init(weights), batch, 0).weights
    assert same(pool.members[1], {name: value.half().float() for name, value in stepped.items()})


def test_the_untrained_network_joins_a_pool_without_any_training(
    data: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(data, tmp_path, members=1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
        joined = make(data, tmp_path, members=1, snapshots=(0,))
    assert joined.moments == (0, QUICK.epochs)
    whole = make(data, tmp_path / "anew", members=1, snapshots=(0,))
    assert whole.digests == joined.digests and all(map(same, whole.members, joined.members))


def test_snapshots_that_fall_on_one_step_are_all_kept(data: LabelledDataset, tmp_path: Path) -> None:
    pool = make(data, tmp_path, members=1, snapshots=(0, 0.01))
    assert len(pool) == 3 and same(pool.members[0], pool.members[1])


def test_addresses_of_whole_epochs_are_those_of_before(data: LabelledDataset) -> None:
    """Computed at commit c75f3b2: a pool that is in someone's cache is found again."""
    spec = replace(data.spec, mean=(0.5,), std=(0.25,))
    keys = member_keys(spec, "convnet", QUICK, 7, snapshot_epochs(QUICK, (1.0,)))
    assert [key.digest() for key in keys] == ["c4144cf52ed18f5c26b3f75a", "2df2e5b85005dea70635698c"]


def test_taking_a_snapshot_leaves_the_network_in_training(
    data: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accuracy is noted at each snapshot, in evaluation mode; a batch norm left there would learn no more."""
    modes = []

    def watched_fit(network: Backbone, *given, on_snapshot, **keys) -> Backbone:
        def watched(epoch: float, loss: float) -> None:
            on_snapshot(epoch, loss)
            modes.append(network.training)

        return fit(network, *given, on_snapshot=watched, **keys)

    monkeypatch.setattr(module, "fit", watched_fit)
    make(data, tmp_path, members=1, snapshots=(1,))
    assert modes == [True, True]


def test_cached_members_are_read_not_trained(data: LabelledDataset, tmp_path: Path, no_training) -> None:
    first = make(data, tmp_path, snapshots=(1,))
    no_training()
    again = make(data, tmp_path, snapshots=(1,))
    assert again.digests == first.digests
    assert all(map(same, again.members, first.members))
    assert again.seconds == first.seconds
    # Fewer runs, or only their last epochs, are in the cache as well.
    assert make(data, tmp_path, members=1).digests == (first.digests[1],)


def test_a_cache_that_holds_the_pool_may_be_read_only(
    data: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that several users share: nothing is tried to be written there, not even a lock."""
    made = make(data, tmp_path)
    for name in ("require_writable", "sweep", "FileLock"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("writes to the cache"))
    assert make(data, tmp_path).digests == made.digests


def test_a_cache_that_cannot_be_written_is_found_before_training(
    data: LabelledDataset, tmp_path: Path, no_training
) -> None:
    no_training()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/pool: the cache cannot be written .* POTSTILL_CACHE_DIR or --cache-dir"):
        make(data, tmp_path / "file" / "pool")


def test_more_members_keep_the_first_and_train_the_rest(
    data: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(data, tmp_path)
    trained = []
    monkeypatch.setattr(module, "fit", lambda *a, **k: (trained.append(k["seed"]), fit(*a, **k)))
    more = make(data, tmp_path, members=3)
    assert more.digests[:2] == first.digests
    assert trained == [derive(0, "pool", 2)]


def test_all_that_changes_weights_changes_the_file(data: LabelledDataset, tmp_path: Path) -> None:
    spec = data.spec
    variants: list[dict] = [
        {},
        {"seed": 1},
        {"network": "convnet3"},
        {"schedule": replace(QUICK, learning_rate=0.02)},
        {"schedule": replace(QUICK, epochs=1)},
        {"schedule": replace(QUICK, cutmix=0.4)},
    ]
    specs = [
        replace(spec, fingerprint="toy-2"),
        replace(spec, mirror=True),
        replace(spec, mean=(spec.mean[0] + 1e-3,)),
        replace(spec, std=(spec.std[0] + 1e-3,)),
    ]
    digests = {make(data, tmp_path, members=1, **keys).digests[0] for keys in variants}
    digests |= {make(replace(data, spec=s), tmp_path, members=1).digests[0] for s in specs}
    assert len(digests) == len(files(tmp_path)) == len(variants) + len(specs)


def test_names_and_the_last_digits_of_a_measured_mean_do_not_matter(
    data: LabelledDataset, tmp_path: Path, no_training
) -> None:
    digests = make(data, tmp_path, members=1).digests
    no_training()
    mean = (round(data.spec.mean[0], 6) + 1e-8,)
    spec = replace(data.spec, name="renamed", mean=mean, licence="MIT")
    assert make(replace(data, spec=spec), tmp_path, members=1).digests == digests


def exact_member(data: LabelledDataset) -> Backbone:
    """The first member before it is rounded."""
    own = derive(0, "pool", 0)
    return fit(build_network("convnet", data.spec, own), data.train, data.spec, QUICK, Runtime(), seed=own)


def test_members_survive_half_precision(data: LabelledDataset, tmp_path: Path) -> None:
    """fp16 keeps 11 bits: weights are right to 2^-11, features to some of it."""
    exact, member = exact_member(data), make(data, tmp_path, members=1).members[0]
    assert all(value.dtype == torch.float32 for value in member.values())
    for name, value in exact.state_dict().items():
        torch.testing.assert_close(member[name], value, rtol=2**-11, atol=1e-7)
    kept = build_network("convnet", data.spec, 9)
    kept.load_state_dict(member)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, expected = kept.embed(x), exact.embed(x)
    assert (features - expected).norm() < 2e-3 * expected.norm()
    (file,) = tmp_path.glob("*.safetensors")
    parameters = sum(value.numel() for value in member.values())
    assert 2 * parameters < file.stat().st_size < 2 * parameters + 4096


def test_facts_are_kept_with_a_member(data: LabelledDataset, tmp_path: Path) -> None:
    losses = []
    pool = make(data, tmp_path, members=1, on_epoch=lambda *told: losses.append(told))
    facts = pool.metadata[0]
    assert float(facts["loss"]) == pytest.approx(losses[-1][2], abs=1e-5)
    expected = accuracy(exact_member(data), data.train, data.spec, Runtime())
    assert float(facts["train_accuracy"]) == pytest.approx(expected, abs=1e-4)
    assert facts["runtime"] == Runtime().describe()
    assert '"epoch": 2' in facts["key"] and '"fingerprint": "toy-1"' in facts["key"]
    assert pool.seconds == float(facts["seconds"])


def test_progress_names_the_run(data: LabelledDataset, tmp_path: Path) -> None:
    told = []
    make(data, tmp_path, on_epoch=lambda run, epoch, loss: told.append((run, epoch)))
    assert told == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_seconds_are_those_from_nothing_also_where_a_killed_run_left_its_first_snapshots(
    data: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that ticks once an epoch; the cache holds epoch 1 of 2."""
    now = count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    first = make(data, tmp_path, members=1, snapshots=(1,))
    (tmp_path / f"{first.digests[1]}.safetensors").unlink()
    again = make(data, tmp_path, members=1, snapshots=(1,))
    assert first.seconds == again.seconds == make(data, tmp_path, members=1, snapshots=(1,)).seconds == 2


def test_core_seconds_are_the_work_of_training_and_of_older_members_the_seconds_times_their_threads(
    data: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    monkeypatch.setattr(module.work, "core_seconds", lambda device: 5.0 * next(now))
    made = make(data, tmp_path, members=2, runtime=Runtime(threads=2))
    assert made.core_seconds == make(data, tmp_path, members=2).core_seconds > 2 * made.seconds > 0
    for path in tmp_path.glob("*.safetensors"):
        tensors, facts = read_tensors(path, "member", "")
        path.write_bytes(pack(tensors, {key: value for key, value in facts.items() if key != "core_seconds"}))
    assert make(data, tmp_path, members=2).core_seconds == 2 * made.seconds


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_damaged_member_is_named_with_the_remedy(keep: int, data: LabelledDataset, tmp_path: Path) -> None:
    pool = make(data, tmp_path, members=1)
    file = tmp_path / f"{pool.digests[0]}.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{file.name}: damaged pool member .*delete the file to train it again"):
        make(data, tmp_path, members=1)
    file.unlink()
    assert same(make(data, tmp_path, members=1).members[0], pool.members[0])


def test_missing_member_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.safetensors: damaged pool member"):
        read_member(tmp_path / "gone.safetensors")


def test_draw_depends_on_seed_and_step_alone(data: LabelledDataset) -> None:
    pool = untrained(data.spec, members=3)
    sequence = [pool.draw(0, step) for step in range(50)]
    torch.manual_seed(5)
    assert [pool.draw(0, step) for step in reversed(range(50))] == sequence[::-1]
    assert [pool.draw(1, step) for step in range(50)] != sequence


def test_draw_is_uniform(data: LabelledDataset) -> None:
    """1000 each of 3000, a deviation is 26; and as often the same one twice in a row."""
    pool = untrained(data.spec, members=3)
    sequence = [pool.draw(0, step) for step in range(3001)]
    counts = Counter(sequence[:-1])
    assert set(counts) == {0, 1, 2}
    assert all(abs(count - 1000) < 104 for count in counts.values())
    assert abs(sum(a == b for a, b in pairwise(sequence)) - 1000) < 104


def test_untrained_pool_holds_fresh_networks(data: LabelledDataset) -> None:
    pool = untrained(data.spec, members=2, seed=7)
    for run, member in enumerate(pool.members):
        assert same(member, build_network("convnet", data.spec, derive(7, "pool", run)).state_dict())
    assert not same(*pool.members)
    assert len({*pool.digests, *untrained(data.spec, members=2, seed=8).digests}) == 4
    assert pool.seconds == 0


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"members": 0}, "pool.members=0: need at least 1 network"),
        ({"snapshots": (-0.5,)}, r"pool.snapshots=\[-0.5\]: must lie in 0..2"),
        ({"snapshots": (1, 3)}, r"pool.snapshots=\[1, 3\]: must lie in 0..2"),
        ({"snapshots": (float("nan"),)}, r"pool.snapshots=\[nan\]: must lie in 0..2"),
    ],
)
def test_impossible_pools_are_refused(keys: dict, complaint: str, data: LabelledDataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=complaint):
        make(data, tmp_path, **keys)


def test_paper_schedule_has_the_published_numbers() -> None:
    """pre_train_model.py: 20 epochs, batch 256, SGD .01, momentum .9, weight decay 5e-4, colour + crop, CutMix .5."""
    assert (SCHEDULES["paper"], SCHEDULES["fast"]) == (PAPER, FAST)
    published = Schedule(
        epochs=20,
        batch=256,
        learning_rate=0.01,
        optimizer="sgd",
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        decay="none",
        augment="color_crop",
        cutmix=0.5,
    )
    assert published == PAPER


def test_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("POTSTILL_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache" / "potstill"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/potstill")
    monkeypatch.setenv("POTSTILL_CACHE_DIR", "/own")
    assert default_cache() == Path("/own")


def test_pool_seconds_count_each_training_run_once_however_many_snapshots(toy_dataset, tmp_path):
    schedule = Schedule(epochs=2, batch=32, learning_rate=0.01)
    pool = pretrain(
        toy_dataset.train,
        toy_dataset.spec,
        cache=tmp_path,
        runtime=Runtime(),
        members=1,
        schedule=schedule,
        snapshots=(1,),
    )
    first, last = (float(facts["seconds"]) for facts in pool.metadata)
    assert first <= last
    assert pool.seconds == last
