"""`parameterisation: auto`: short trials on a hold-out of the training split settle what a run stores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import potstill
from potstill.cli import main
from potstill.cli.distill import asked
from potstill.cli.main import build_parser
from potstill.errors import DataError, Interrupted, UsageError
from potstill.recipe import Recipe, resolve, sections
from potstill.recipe.sections import PoolConfig
from potstill.report import collect, make_rows
from potstill.run import distil, search
from potstill.run.compare import run_study
from potstill.run.distil import distill_run, read_asked_recipe, read_run_recipe
from potstill.run.plan import with_steps
from potstill.run.progress import Reporter
from potstill.run.search import apart, settle, ways, weights
from potstill.run.store import RunStore
from potstill.run.study import read_study, study_of
from potstill.scores import Score, Scores
from potstill.sets.synthetic import SyntheticSet
from potstill.spec import DatasetSpec, LabelledDataset, Split

QUIET = Reporter(quiet=True)
TINY: dict[str, Any] = {
    "parameterisation": "auto",
    "ipc": 2,
    "factor": [2, 2],
    "method": {"name": "dsdm_plus", "steps": 2, "real_batch": 8, "bank_draws": 1},
    "pool": {"members": 2, "pretrained": False},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
    "evaluation": {"nets": 1, "epochs": 1},
}


def auto(**changes: Any) -> Recipe:
    return resolve(TINY, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def many(toy_colour: LabelledDataset) -> LabelledDataset:
    """Enough training images to hold some out: 3 x 120 of 3 x 16 x 16."""
    train, test = toy_colour.train, toy_colour.test
    images, labels = torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels])
    return replace(toy_colour, train=Split(torch.cat([images, images.flip(3)]), labels.repeat(2)))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "run")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Trials that train nothing: what each scores, by its name; 0 where it is not listed. Each takes a minute."""
    accuracy: dict[str, float] = {}
    now = [0.0]

    def scored(cell: Any, holdout: int, data: LabelledDataset, *_: Any) -> Scores:
        assert holdout == len(data.test)
        now[0] += accuracy.get("seconds", 60)
        ran.append(cell)
        return Scores((Score("convnet", "dsdm", 1, 0, accuracy.get(cell.name, 0.0)),))

    ran: list[Any] = []
    accuracy["ran"] = ran  # type: ignore[assignment]
    monkeypatch.setattr(sections, "SEARCH_MINUTES", 1000.0)
    monkeypatch.setattr(search, "distil_and_score", scored)
    monkeypatch.setattr(search, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(search.Timings, "scores_of", lambda *_: (60.0, 0))
    monkeypatch.setattr(search, "passes_of", lambda *_: 0)
    monkeypatch.setattr(search, "plan", lambda recipe, _, seconds, **__: (with_steps(recipe, int(seconds / 3.6)), 5))
    return accuracy


#: Trials of the toy: 28, 28, 16, 15, 8, 18, 2 and 32 samples of a class.
EVERY = ["half_chroma6", "dct36", "half_chroma8", "dct64", "tiles2x2", "tiles3x3", "tiles1x1", "tiles4x4"]


def names(said: dict[str, Any]) -> list[str]:
    return [cell.name for cell in said["ran"]]


# --- what is tried


def shaped(*shape: int, images: int = 1000) -> LabelledDataset:
    """Two classes of that shape."""
    some = (0.5,) * shape[0]
    spec = DatasetSpec(name="s", shape=shape, classes=("a", "b"), mean=some, std=some, mirror=False, fingerprint="f")  # type: ignore[arg-type]
    split = Split(torch.zeros(2 * images, *shape, dtype=torch.uint8), torch.arange(2).repeat(images))
    return LabelledDataset(spec, split, split)


def tried(recipe: Recipe, *shape: int, images: int = 1000) -> list[str]:
    data = shaped(*shape, images=images)
    return list(ways(recipe.by_default(data), data))


def test_what_is_likely_is_tried_first_and_tiles_last() -> None:
    assert tried(auto(ipc=10), 3, 32, 32) == [
        "half_chroma16", "dct256", "half_chroma10", "dct100", "tiles2x2", "tiles3x3", "tiles1x1", "tiles4x4",
    ]  # fmt: skip
    assert tried(auto(ipc=1), 3, 32, 32) == [
        "half_chroma10", "dct100", "half_chroma16", "dct256", "tiles2x2", "tiles3x3", "tiles4x4",
    ]  # fmt: skip
    assert tried(auto(ipc=1), 1, 28, 28) == ["dct81", "dct196", "tiles2x2", "tiles3x3", "tiles4x4"]
    assert tried(auto(ipc=10, method="dm"), 3, 64, 96)[:3] == ["tiles2x2", "half_chroma32", "dct1024"]
    assert tried(auto(), 3, 8, 8) == ["half_chroma4", "dct16", "tiles2x2", "tiles1x1"]
    assert tried(auto(), 2, 32, 32) == ["tiles2x2", "tiles3x3", "tiles1x1", "tiles4x4"]


def test_no_trial_wants_more_samples_than_a_class_has_images() -> None:
    assert tried(auto(ipc=10), 3, 32, 32, images=80) == ["half_chroma16", "dct256", "tiles2x2", "tiles1x1"]
    assert tried(auto(ipc=10), 3, 32, 32, images=60) == ["tiles2x2", "tiles1x1"]


def test_candidates_fit_the_data() -> None:
    for shape in ((3, 32, 32), (1, 64, 33), (3, 8, 8), (2, 9, 40), (3, 6, 7)):
        data = shaped(*shape)
        recipe = resolve(TINY, {"parameterisation": "auto", "factor": 1 if min(shape[1:]) < 8 else 2}).by_default(data)
        for variant in ways(recipe, data).values():
            variant.way().check(data.spec)
            assert variant.way().samples(variant.ipc, data.spec) > 1 and not variant.open


def test_calibration_is_tried_where_the_method_has_one_that_counts() -> None:
    found = weights("tiles2x2", auto(method__calibration_weight=2, factor=2))
    assert {name: recipe.method.calibration_weight for name, recipe in found.items()} == {
        "tiles2x2": 2, "tiles2x2-calibration1": 1, "tiles2x2-calibration0.5": 0.5,
    }  # fmt: skip
    assert list(weights("t", auto(method={"name": "dsdm"}, factor=2))) == ["t"]
    assert list(weights("t", auto(method={"name": "dm"}, factor=2))) == ["t"]


def test_trials_learn_from_training_images_that_are_not_scored(many: LabelledDataset) -> None:
    part = apart(many, 72)
    assert len(part.test) == 72 and len(part.train) == 288
    indexed = {tuple(image.flatten().tolist()) for image in many.train.images}
    for split in (part.train, part.test):
        assert {tuple(image.flatten().tolist()) for image in split.images} <= indexed
    assert part.spec.fingerprint != many.spec.fingerprint and part.spec.mean == many.spec.mean
    assert torch.equal(apart(many, 72).train.images, part.train.images)


def test_many_images_are_thinned_evenly_and_a_small_class_is_spared(
    many: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PART", 90)
    monkeypatch.setattr(search, "PART_OF_CLASS", 5)
    assert torch.bincount(apart(many, 72).train.labels).tolist() == [30, 30, 30]
    assert torch.bincount(apart(many, 72, 40).train.labels).tolist() == [40, 40, 40]  # a trial starts from as many
    one = (many.train.labels == 2).nonzero().flatten()[1:]
    keep = torch.ones(len(many.train), dtype=torch.bool).index_fill(0, one, value=False)
    rare = replace(many, train=many.train.subset(keep.nonzero().flatten()))
    assert torch.bincount(apart(rare, 48).train.labels, minlength=3)[2] == 1


# --- what is chosen


def test_the_best_trial_is_chosen_and_nothing_is_left_open(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    said |= {"tiles2x2": 0.5, "half_chroma8": 0.8, "half_chroma8-calibration0.25": 0.9, "dct36": 0.7}
    chosen = settle(auto(), many, store, QUIET)
    assert (chosen.parameterisation, chosen.method.calibration_weight) == ("half_chroma:luma=8,chroma=4", 0.25)
    assert chosen.method.steps == auto().method.steps and not chosen.open
    assert chosen.pool == auto().pool and chosen.evaluation == auto().evaluation
    assert names(said) == [*EVERY, "half_chroma8-calibration0.5", "half_chroma8-calibration0.25"]
    again = settle(auto(evaluation__nets=5), many, store, QUIET)  # how a set is scored is no part of the search
    assert again.hash() == chosen.hash() and again.evaluation.nets == 5 and len(said["ran"]) == len(set(names(said)))
    told = store.read_json("search/chosen.json")["told"]
    assert told == (
        "half_chroma:luma=8,chroma=4, calibration weight 0.25: the likeliest within 5.0 points of the best of 10 "
        "trials, half_chroma6 0.0, dct36 70.0, half_chroma8 80.0, dct64 0.0, tiles2x2 50.0, tiles3x3 0.0, tiles1x1 0.0"
        ", tiles4x4 0.0, "
        "half_chroma8-calibration0.5 0.0, half_chroma8-calibration0.25 90.0 % on 72 held-out training images, "
        "100% of 150 steps and 200 epochs"
    )


def test_a_trial_must_be_better_by_more_than_chance(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    """That of the difference of two scores on 72 images is 7.6 points at 70 %."""
    said |= {"tiles2x2": 0.6, "tiles3x3": 0.64, "tiles1x1": 0.70, "tiles1x1-calibration0.5": 0.99}
    assert settle(auto(), many, store, QUIET).factor == (3, 3)


def test_of_equal_trials_the_recipes_own_is_chosen(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    chosen = settle(auto(), many, store, QUIET)
    assert (chosen.parameterisation, chosen.method.calibration_weight) == ("half_chroma:luma=6,chroma=3", 1)


def test_trials_are_short_and_steps_are_not_theirs(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    settle(auto(method__steps=1500, evaluation__epochs=None, evaluation__stored_bits=8), many, store, QUIET)
    for cell in said["ran"]:
        recipe = cell.recipe
        assert (recipe.method.steps, recipe.evaluation.epochs, recipe.pool.members) == (search.STEPS, search.EPOCHS, 1)
        assert recipe.evaluation.stored_bits is None and recipe.budget.minutes is None


def test_a_search_runs_as_many_trials_as_its_minutes_hold(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    """A trial takes a minute; half of 6.5 are the search's."""
    said |= {"half_chroma8": 0.9}
    chosen = settle(auto(budget__minutes=6.5, method__steps=1000), many, store, QUIET)
    assert names(said) == [*EVERY[:3], "tiles1x1"]  # two samples fit still, as it seems
    assert chosen.budget.minutes == pytest.approx(6.5 - 4)
    assert chosen.method.steps == int(0.9 * 2.5 * 60 / 3.6)  # as long as a step takes


def test_trials_that_take_longer_than_was_estimated_leave_out_others(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    """A minute was estimated, and each takes ten: after two of them 25 hold no other of 16 samples."""
    said |= {"seconds": 600, "tiles2x2": 0.9}
    assert settle(auto(budget__minutes=50), many, store, QUIET).parameterisation == "tiles"
    assert names(said) == [*EVERY[:2], "tiles2x2"]


def test_trials_get_shorter_until_four_fit_and_stay_so_when_the_search_goes_on(
    many: LabelledDataset, store: RunStore, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, the first four take 60 + 60 + 34 + 32 s."""
    said |= {"seconds": 1}
    given = {"method__steps": 100, "evaluation__epochs": 100}
    for minutes, share in ((7, 1.0), (6, 0.5), (2, 0.25), (1.1, 0.25)):  # of which half are the search's
        before, store = len(said["ran"]), RunStore(store.root / "next")
        settle(auto(budget__minutes=minutes, **given), many, store, QUIET)
        found = {(cell.recipe.method.steps, cell.recipe.evaluation.epochs) for cell in said["ran"][before:]}
        assert found == {(100 * share, 100 * share)}
    before = len(said["ran"])
    settle(auto(budget__minutes=0.9, **given), many, RunStore(store.root / "next"), QUIET)
    assert len(said["ran"]) == before  # two do not fit, even so
    store.chosen.unlink()
    monkeypatch.setattr(search.Timings, "scores_of", lambda *_: pytest.fail("timed again"))
    settle(auto(budget__minutes=1.1, **given), many, store, QUIET)
    assert len(said["ran"]) == before


def test_time_that_steps_are_timed_for_is_part_of_the_budget(
    many: LabelledDataset, store: RunStore, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute and a half of the four that a search left."""
    now = iter((0.0, 90.0))
    monkeypatch.setattr(search, "time", SimpleNamespace(perf_counter=lambda: next(now, 90.0)))
    monkeypatch.setattr(search, "_search", lambda recipe, data, *_: (recipe.by_default(data), "", 60.0))
    chosen = settle(auto(budget__minutes=5, method__steps=1000), many, store, QUIET)
    assert chosen.budget.minutes == pytest.approx(5 - 1 - 1.5)
    assert chosen.method.steps == round(60 * 2.5 / 4)


def test_fewer_steps_than_its_own_are_larger_ones_with_a_smaller_bank(
    many: LabelledDataset, store: RunStore, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_search", lambda recipe, data, *_: (recipe.by_default(data), "", 0.0))
    few = 45 // (16 * 2)  # 45 fit, and the pool is of two networks
    for steps, draws, times in ((10, 16, 1), (45 * 4, few, 2**0.5)):
        given = {"method__bank_draws": 16, "method__steps": steps, "budget__minutes": 3}
        chosen = settle(auto(**given), many, RunStore(store.root / str(steps)), QUIET)
        assert (chosen.method.steps, chosen.method.bank.draws) == (min(steps, 45), draws)
        assert chosen.method.descent.learning_rate == pytest.approx(0.01 * times)


def test_without_a_budget_steps_stay_and_the_run_has_none(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    chosen = settle(auto(method__steps=1000), many, store, QUIET)
    assert (chosen.method.steps, chosen.budget.minutes) == (1000, None)


@pytest.mark.parametrize(
    ("changes", "stored", "why"),
    [
        (
            {"budget__minutes": 2},
            "half_chroma:luma=6,chroma=3",
            "two short trials take about 2.0 min, more than the 1.0 min of the search; for one use --over",
        ),
        ({"few": 20}, "half_chroma:luma=8,chroma=4", "60 training images are too few to hold some out for a search"),
        ({"few": 10}, "tiles", "30 training images are too few to hold some out for a search"),
        ({"few": 30, "of": (2,)}, "half_chroma:luma=6,chroma=3", "a class of 30 training images is too small to hold"),
    ],
)
def test_where_no_search_can_be_the_default_is_taken_and_a_line_says_why(
    changes: dict[str, Any], stored: str, why: str, many: LabelledDataset, store: RunStore, said: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if few := changes.pop("few", 0):
        left = {c: few for c in changes.pop("of", range(3))}
        chosen = torch.cat([(many.train.labels == c).nonzero().flatten()[: left.get(c)] for c in range(3)])
        many = replace(many, train=many.train.subset(chosen))
    settled = settle(auto(**changes), many, store, Reporter())
    assert settled.parameterisation == stored and not said["ran"]
    assert settled.method.steps == 2  # though more would fit
    told = "tiles 2 x 2" if stored == "tiles" else stored
    assert f"auto: {told}, calibration weight 1 without a search: {why}" in capsys.readouterr().err


def test_the_pool_of_the_run_is_part_of_the_budget_and_gets_smaller_before_it_takes_most_of_it(
    many: LabelledDataset, store: RunStore, said: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(search.Timings, "pool_of", lambda _, recipe, data, runs: 30.0 * runs)
    given = {"pool__pretrained": True, "pool__members": 4, "method__steps": 1000, "ipc": 10}
    chosen = settle(auto(budget__minutes=50, **given), many, store, Reporter(), cache=store.root.parent)
    assert "the pool of the run, 4 networks, takes about 2.0 min of the budget" in capsys.readouterr().err
    assert (chosen.pool.members, chosen.budget.minutes) == (4, 50 - 2 - len(said["ran"]))
    other = RunStore(store.root.parent / "other")
    chosen = settle(auto(budget__minutes=4, **given), many, other, Reporter(), cache=store.root.parent)
    assert "the pool of the run, 2 of 4 networks, takes about 1.0 min of the budget" in capsys.readouterr().err
    assert chosen.pool.members == 2 and chosen.budget.minutes == 3
    settle(auto(**given), many, RunStore(store.root.parent / "none"), Reporter(), cache=store.root.parent)
    assert "the pool of the run" not in capsys.readouterr().err


def test_a_pool_gets_smaller_by_runs_where_samples_are_many_and_by_epochs_where_they_are_few() -> None:
    asked = PoolConfig(members=3, snapshots=(2, 4))

    def sizes(images: int, few: bool) -> list[tuple[int, int]]:
        return [(pool.members, pool.training().epochs) for pool in search.smaller_pools(asked, images, few=few)]

    assert sizes(60_000, few=False) == [(3, 6), (2, 6), (1, 6), (1, 3), (1, 1)]
    assert sizes(60_000, few=True) == [(3, 6), (3, 3), (3, 1), (2, 1), (1, 1)]
    # Of 10,000 images an epoch is 79 steps, of 1,000 all six are 48: networks too young are the last resort.
    assert sizes(10_000, few=True) == [(3, 6), (3, 3), (2, 3), (1, 3), (1, 1)]
    assert sizes(1_000, few=True) == sizes(1_000, few=False)
    first, half, *_, least = search.smaller_pools(asked, 60_000, few=True)
    assert first == asked and half.snapshots == (1, 2) and least.snapshots == (0.33, 0.67)
    one = PoolConfig(members=1, epochs=1)
    assert search.smaller_pools(one, 60_000, few=True) == [one]


def test_a_pool_that_one_run_would_overrun_has_a_shorter_one_and_trials_are_as_they_were(
    many: LabelledDataset, store: RunStore, said: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def takes(_: Any, recipe: Recipe, data: LabelledDataset, runs: int) -> float:
        part = "search" in data.spec.fingerprint  # the trials' own, of few images
        return 300.0 * runs * recipe.pool.training().epochs * (not part)

    monkeypatch.setattr(search.Timings, "pool_of", takes)
    given = {"pool__pretrained": True, "pool__members": 2, "pool__snapshots": (2, 4), "ipc": 10}
    chosen = settle(auto(budget__minutes=60, **given), many, store, Reporter(), cache=store.root.parent)
    said_so = "the pool of the run, 1 of 2 networks of 3 in place of 6 epochs, takes about 15.0 min of the budget"
    assert said_so in capsys.readouterr().err
    assert (chosen.pool.members, chosen.pool.epochs, chosen.pool.snapshots) == (1, 3, (1, 2))
    assert said["ran"] and all(cell.recipe.pool.epochs is None for cell in said["ran"])


def test_one_class_leaves_nothing_to_tell_trials_apart(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    spec = replace(many.spec, classes=("a",))
    train = Split(many.train.images, torch.zeros_like(many.train.labels))
    chosen = settle(auto(), LabelledDataset(spec, train, train), store, QUIET)
    assert chosen.parameterisation == "half_chroma:luma=6,chroma=3" and not said["ran"]
    assert "one class" in store.read_json("search/chosen.json")["told"]


def test_a_trial_that_fails_leaves_the_others(
    many: LabelledDataset, store: RunStore, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = search.distil_and_score

    def picky(cell: Any, *given: Any) -> Scores:
        if cell.name != "tiles1x1":
            raise DataError("no")
        return plain(cell, *given)

    monkeypatch.setattr(search, "distil_and_score", picky)
    assert settle(auto(), many, store, QUIET).factor == (1, 1)
    monkeypatch.setattr(search, "distil_and_score", lambda *_: (_ for _ in ()).throw(DataError("no")))
    other = RunStore(store.root.parent / "other")
    assert settle(auto(), many, other, QUIET).parameterisation == "half_chroma:luma=6,chroma=3"
    assert "no trial came to an end" in other.read_json("search/chosen.json")["told"]


def test_methods_without_steps_keep_tiles_and_search_nothing(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    recipe = settle(auto(method={"name": "random_mix"}), many, store, QUIET)
    assert (recipe.parameterisation, recipe.factor) == ("tiles", (2, 2)) and not store.root.exists()


# --- resuming and refusing


def test_a_killed_search_goes_on_where_it_was(
    many: LabelledDataset, store: RunStore, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said |= {"tiles1x1": 0.9}
    plain = search.distil_and_score

    def stopped(cell: Any, *given: Any) -> Scores:
        if len(said["ran"]) == 2:
            raise Interrupted("signal")
        return plain(cell, *given)

    monkeypatch.setattr(search, "distil_and_score", stopped)
    with pytest.raises(Interrupted, match=f"potstill distill --resume {re.escape(str(store.root))}"):
        settle(auto(), many, store, QUIET)
    assert not store.config.exists() and read_asked_recipe(store).open
    monkeypatch.setattr(search, "distil_and_score", plain)
    chosen = settle(read_asked_recipe(store), many, store, QUIET)
    assert len(names(said)) == len(set(names(said))) == len(EVERY) + 2
    assert chosen.factor == (1, 1)
    assert store.read_json("search/chosen.json")["seconds"] == 60 * len(said["ran"])


def test_another_recipe_is_refused_and_overwrite_searches_anew(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    settle(auto(), many, store, QUIET)
    with pytest.raises(UsageError, match="holds a search for a recipe with ipc 2, not 3; use another"):
        settle(auto(ipc=3), many, store, QUIET)
    before = len(said["ran"])
    assert settle(auto(ipc=3), many, store, QUIET, overwrite=True).ipc == 3
    assert len(said["ran"]) == 2 * before
    store.write_config(auto(parameterisation="tiles").on(many).to_yaml())
    assert settle(auto(ipc=2), many, store, QUIET, overwrite=True).ipc == 2 and not store.config.exists()
    settle(auto(parameterisation="tiles"), many, store, QUIET, overwrite=True)
    assert not store.search.exists()


def test_a_folder_with_another_run_is_refused_before_any_trial(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    store.write_config(auto(parameterisation="tiles").on(many).to_yaml())
    with pytest.raises(UsageError, match="holds a run that no search came before"):
        settle(auto(), many, store, QUIET)
    assert not said["ran"] and not store.search.exists()


def test_what_cannot_be_made_is_refused_before_any_trial(
    many: LabelledDataset, store: RunStore, said: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="class 'a' has 120 training images, 200 needed"):
        settle(auto(ipc=200), many, store, QUIET)
    assert not said["ran"] and not store.root.exists()


def test_a_damaged_choice_is_a_line(many: LabelledDataset, store: RunStore, said: dict[str, Any]) -> None:
    settle(auto(), many, store, QUIET)
    record = store.read_json("search/chosen.json")
    for wrong in ({"keys": {"ipcs": 3}}, {"keys": 3}, {"seconds": "long"}):
        store.write_json("search/chosen.json", {**record, **wrong})
        with pytest.raises(DataError, match=r"chosen.json: damaged"):
            settle(auto(), many, store, QUIET)


def test_auto_is_no_parameterisation_elsewhere(many: LabelledDataset, store: RunStore) -> None:
    with pytest.raises(UsageError, match=r"parameterisation=auto: potstill distill and compare settle it"):
        distill_run(auto(), many, store, QUIET)


# --- the whole of it, with tiny trials


@pytest.fixture
def tiny_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of candidates the first two, a step each."""
    plain = ways
    monkeypatch.setattr(search, "STEPS", 1)
    monkeypatch.setattr(search, "CALIBRATION", (0.5,))
    monkeypatch.setattr(search, "ways", lambda *given: dict(list(plain(*given).items())[:2]))


@pytest.mark.usefixtures("tiny_trials")
def test_a_run_of_auto_is_that_of_the_recipe_it_settled_on(many: LabelledDataset, tmp_path: Path) -> None:
    run = potstill.distill(many, recipe=TINY, parameterisation="auto", out=tmp_path / "run", cache=tmp_path)
    store = RunStore(tmp_path / "run")
    assert not run.recipe.open and read_run_recipe(store).hash() == run.recipe.hash()
    facts = run.synthetic.provenance
    assert facts["recipe_hash"] == run.recipe.hash() and "of 3 trials, half_chroma6 " in facts["search"]
    plain = potstill.distill(many, recipe=run.recipe.to_dict(), cache=tmp_path)
    assert torch.equal(plain.synthetic.images, run.synthetic.images) and "search" not in plain.synthetic.provenance
    rows = make_rows(collect(store.search))
    assert len(rows) == 3 and {row.holdout for row in rows} == {72} and all(row.mean is not None for row in rows)
    cells = [cell.name for cell in read_study(store.search / "study.yaml").cells]
    assert sorted(cells) == sorted(store.read_json("search/trials.json")["accuracy"])
    again = potstill.distill(many, recipe=TINY, out=tmp_path / "run", resume=True, cache=tmp_path)
    assert again.recipe == run.recipe


@pytest.mark.usefixtures("tiny_trials")
def test_a_comparison_settles_its_cells_and_the_same_call_goes_on(many: LabelledDataset, tmp_path: Path) -> None:
    study = study_of([TINY], methods=["random_mix", "dsdm_plus"], ipcs=[2], seeds=[0])
    for _ in range(2):
        outcomes = run_study(study, lambda _: many, out=tmp_path, reporter=QUIET, cache=tmp_path / "cache")
        assert [outcome.failure for outcome in outcomes] == ["", ""]
    rows = {row.method: row for row in make_rows(collect(tmp_path))}
    assert rows["random_mix"].factor == (2, 2) and rows["dsdm_plus"].gain is not None


@pytest.mark.usefixtures("tiny_trials")
def test_the_command_line_goes_on_from_a_folder_that_holds_a_search_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))  # JSON is YAML
    given = [
        "--config",
        str(tmp_path / "tiny.yaml"),
        "--dataset",
        "digits",
        "--out",
        str(tmp_path / "run"),
        "--cache-dir",
        str(tmp_path),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(distil, "_distill", lambda *_: (_ for _ in ()).throw(Interrupted("signal")))
        assert main(["distill", *given]) == 130
    assert f"go on with: potstill distill --resume {tmp_path / 'run'}" in capsys.readouterr().err
    monkeypatch.setattr(search.Timings, "scores_of", lambda *_: pytest.fail("timed again"))
    assert main(["distill", "--resume", str(tmp_path / "run"), "--cache-dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert " % on 287 held-out training images" in found["search"]
    synthetic = SyntheticSet.load(tmp_path / "run" / "synthetic")
    assert (
        found["recipe_hash"]
        == read_run_recipe(RunStore(tmp_path / "run")).hash()
        == synthetic.provenance["recipe_hash"]
    )


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        (["--dataset", "no/such/folder"], True),
        (["--dataset", "mine.npz", "--ipc", "3", "--evaluation.nets", "1"], True),
        (["--dataset", "digits"], False),
        ([], False),
        (["--dataset", "mine.npz", "--method", "dsdm"], False),
        (["--dataset", "mine.npz", "--method.steps", "5"], False),
        (["--dataset", "mine.npz", "--factor", "1"], False),
        (["--dataset", "mine.npz", "--config", "digits_demo"], False),
    ],
)
def test_data_of_ones_own_get_the_recipe_for_data_never_tuned_on_where_nothing_else_is_said(
    words: list[str], taken: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options, keys = build_parser().parse_known_args(["distill", *words])
    options.keys = keys
    recipe = asked(options)
    assert recipe.open == taken == (recipe.method_name == "dsdm_plus")
    assert ("taking the recipe dsdm_plus/auto" in capsys.readouterr().err) == taken
    assert recipe.ipc == (3 if "3" in words else 2 if "digits_demo" in words else 10)


def test_a_dry_run_counts_the_search(many: LabelledDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.run import timing
    from potstill.run.estimate import timed
    from potstill.run.study import Cell

    def taken(recipe: Recipe) -> float:
        return timed(Cell("a", "a", recipe), many).distill_seconds

    monkeypatch.setattr(timing.Timings, "_passes", lambda *_: (timing.Timed(0, 0, 0), 5.0))
    assert taken(auto()) == 5 + 600 and taken(auto(budget__minutes=4)) == 5 + 120
    assert taken(auto(parameterisation="tiles")) == 5 == taken(auto(method={"name": "random_mix"}))


@pytest.mark.slow
def test_digits_are_searched_within_a_budget_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--config", "dsdm_plus/auto", "--dataset", "digits", "--ipc", "1", "--budget-minutes", "2"]
    words += ["--method.steps", "60", "--evaluation.epochs", "60", "--evaluation.nets", "1"]
    assert main(["distill", *words, "--out", str(run), "--cache-dir", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["search"]
    assert " % on 287 held-out training images" in told or "without a search" in told
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] > 0.3
