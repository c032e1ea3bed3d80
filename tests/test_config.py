"""Recipes: layers and their precedence, round trips, addresses, and one clear line for every bad input."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from potstill.checks import at_least
from potstill.errors import UsageError
from potstill.methods import METHODS
from potstill.recipe import merge, of_method, parse_assignments, read_recipe, recipe_names, resolve
from potstill.recipe.layers import flat
from potstill.recipe.names import short_names
from potstill.recipe.text import from_yaml, to_yaml
from potstill.spec import LabelledDataset

NAMES = recipe_names()


def method_of(name: str) -> str:
    """The method that a shipped recipe is meant for."""
    return read_recipe(name).get("method", {}).get("name", "dsdm")


# --- shipped recipes


def test_recipes_are_shipped() -> None:
    assert "digits_demo" in NAMES and "dsdm/paper_schedule" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_resolves_for_its_method_and_for_random(name: str) -> None:
    for method in {method_of(name), "random", "random_mix"}:
        recipe = resolve(read_recipe(name), {"method.name": method})
        assert recipe.method_name == method
        recipe.build_method()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_keys_all_arrive(name: str) -> None:
    """What the file says is what the resolved recipe says, key by key."""
    resolved = resolve(read_recipe(name)).to_dict()
    found = dict(flat(resolved))
    said = dict(flat(read_recipe(name)))
    assert {key: found[key] for key in said} == said


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", list(METHODS))
def test_a_resolved_recipe_reads_back_to_itself(name: str, method: str) -> None:
    recipe = resolve(read_recipe(name), {"method.name": method})
    assert resolve(recipe.to_dict()) == recipe
    assert resolve(yaml.safe_load(recipe.to_yaml())) == recipe
    assert resolve(yaml.safe_load(recipe.to_yaml())).hash() == recipe.hash()


@pytest.mark.parametrize("fidelity", ["paper", "code", "potstill"])
def test_a_saved_recipe_keeps_its_own_numbers_over_its_fidelitys(fidelity: str) -> None:
    recipe = resolve({"fidelity": fidelity, "method.clamp": "after", "method.learning_rate": 0.7})
    assert resolve(recipe.to_dict()) == recipe
    assert recipe.method.descent.learning_rate == 0.7 and recipe.fidelity == fidelity


# --- layers


def test_precedence_is_defaults_then_fidelity_then_file_then_keys() -> None:
    file = {"fidelity": "paper", "method": {"learning_rate": 0.5, "clamp": "before"}}
    recipe = resolve(file, {"method.clamp": "after"})
    assert recipe.method.steps == 3000  # the default
    assert recipe.method.descent.momentum == 0.5  # the fidelity
    assert recipe.method.descent.learning_rate == 0.5  # the file, over the fidelity's 0.1
    assert recipe.method.clamp == "after"  # the key, over file and fidelity


def test_a_fidelity_given_as_a_key_does_not_override_the_file() -> None:
    recipe = resolve({"method": {"learning_rate": 0.5}, "pool": {"schedule": "fast"}}, {"fidelity": "paper"})
    assert (recipe.method.descent.learning_rate, recipe.pool.schedule, recipe.method.clamp) == (0.5, "fast", "never")


def test_a_part_of_methods_serves_its_method_alone_and_goes_over_what_all_share() -> None:
    layers = [{"method.steps": 5, "methods": {"dsdm": {"steps": 7}, "dm": {}}}, {"methods.dsdm.clamp": "never"}]
    dsdm, dm = (resolve(of_method(layers, name)) for name in ("dsdm", "dm"))
    assert (dsdm.method.steps, dsdm.method.clamp, dm.method_name, dm.method.steps) == (7, "never", "dm", 5)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"dm2": {}}, "unknown method 'dm2': known are "),
        ({"dsdm": 3}, "recipe key 'methods.dsdm': expected a section of keys, found 3"),
        (3, "recipe key 'methods': expected a section of keys, found 3"),
    ],
)
def test_a_wrong_part_of_methods_is_refused(parts: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        of_method([{"methods": parts}], "dsdm")


def test_a_recipe_of_another_method_lends_all_but_its_methods_keys() -> None:
    file = {"method": {"name": "dsdm", "steps": 7}, "ipc": 3}
    assert resolve(file, {"method.name": "dsdm"}).method.steps == 7
    other = resolve(file, {"method.name": "dsdm_plus"})
    assert (other.method_name, other.method.steps, other.ipc) == ("dsdm_plus", 1500, 3)
    assert resolve({"method.name": "dm"}, file, {"method.clamp": "never"}).method.steps == 7


def test_a_methods_name_alone_is_short_for_its_section() -> None:
    assert resolve({"method": "dm"}, {"method.steps": 4}) == resolve({"method": {"name": "dm", "steps": 4}})
    assert resolve({"method": "dm", "method.steps": 4}) == resolve({"method": {"name": "dm", "steps": 4}})


def test_layers_are_merged_key_by_key_and_left_as_they_were() -> None:
    file = {"pool": {"members": 5, "schedule": "paper"}, "factor": [1, 2]}
    merged = merge(file, {"pool.members": 2}, {"pool": {"epochs": 3}})
    pool = {"members": 2, "schedule": "paper", "epochs": 3}
    assert merged == {"pool": pool, "parameterisation": "tiles", "factor": [1, 2]}
    assert file == {"pool": {"members": 5, "schedule": "paper"}, "factor": [1, 2]}
    before = merge(merged)
    resolve(merged)
    assert merged == before


def test_lists_become_tuples() -> None:
    recipe = resolve({"factor": [1, 3], "saving.keep": [5, 10], "pool.snapshots": [1]})
    assert (recipe.factor, recipe.saving.keep, recipe.pool.snapshots) == ((1, 3), (5, 10), (1,))


def test_one_number_is_a_factor_of_as_many_rows_as_columns() -> None:
    one, both = resolve({"method": "dm", "factor": 4}), resolve({"method": "dm", "factor": [4, 4]})
    assert (one, one.hash(), one.to_dict()["factor"]) == (both, both.hash(), [4, 4])


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        (["--method.steps", "2000"], {"method.steps": 2000}),
        (["--method.steps=2000"], {"method.steps": 2000}),
        (["--factor=[1,2]"], {"factor": [1, 2]}),
        (["--pool.pretrained", "false"], {"pool.pretrained": False}),
        (["--method.history-scope", "shared"], {"method.history_scope": "shared"}),
        (["--data.name", "a: b: c"], {"data.name": "a: b: c"}),  # no YAML: taken as it is
        (["--seed", "-1"], {"seed": -1}),
        ([], {}),
    ],
)
def test_command_line_words_become_a_layer(words: list[str], layer: dict[str, Any]) -> None:
    assert parse_assignments(words) == layer


@pytest.mark.parametrize("written", ["1e-3", "0.001", "1.0e-3"])
def test_small_rates_can_be_written_with_an_exponent(written: str) -> None:
    """YAML 1.1 takes `1e-3` for a word."""
    assert resolve(parse_assignments(["--method.learning_rate", written])).method.descent.learning_rate == 0.001


def test_the_seed_given_by_assignment_may_be_negative() -> None:
    assert resolve(parse_assignments(["--seed=-1"])).seed == -1


# --- addresses


@pytest.mark.parametrize(
    "key",
    [
        {"method.steps": 5},
        {"seed": 1},
        {"ipc": 3},
        {"pool.members": 5},
        {"init.pick": "first"},
        {"factor": [1, 1]},
        {"data.name": "mnist"},
        {"method.name": "random"},
        {"fidelity": "paper"},
    ],
)
def test_the_hash_changes_with_what_makes_the_set(key: dict[str, Any]) -> None:
    assert resolve(key).hash() != resolve({}).hash()


def test_keys_that_a_method_got_later_leave_hashes_as_they_were_until_they_are_set() -> None:
    """The first is that of runs and folders from before there were such keys."""
    given = {"method": {"name": "dsdm_plus", "steps": 10_000}}
    assert resolve(given).hash() == resolve(given, {"method.mirrored": False}).hash() == "f83c238eb99a"
    changed = [{"method.mirrored": True}, {"method.influence": 0.2}, {"method.calibrate_later": True}]
    assert len({"f83c238eb99a", *(resolve(given, key).hash() for key in changed)}) == 4


@pytest.mark.parametrize(
    "key",
    [
        {"evaluation.nets": 9},
        {"evaluation.protocol": "dc"},
        {"saving.every": 7},
        {"budget.minutes": 3},
        {"runtime": {"threads": 2, "chunk": 8, "device": "cuda", "precision": "fp32", "compile": False}},
        {"method.name": "random", "pool.members": 9},
        {"method.name": "dm", "pool.schedule": "paper"},
    ],
)
def test_the_hash_does_not_change_with_scoring_snapshots_budget_machine_and_a_pool_not_used(
    key: dict[str, Any],
) -> None:
    assert resolve(key).hash() == resolve({"method.name": key.get("method.name", "dsdm")}).hash()


def test_a_budget_that_is_still_to_be_planned_for_stands_for_the_steps_in_the_hash() -> None:
    def hash_of(**budget: Any) -> str:
        return resolve({"method": {"name": "dm", "steps": 7}, "budget": budget}).hash()

    assert len({hash_of(), hash_of(minutes=1, plan=True), hash_of(minutes=2, plan=True)}) == 3
    assert hash_of(minutes=1, plan=True, planned=7) == hash_of()
    random = {"method": "random", "budget": {"minutes": 1, "plan": True}}
    assert not resolve(random).open and resolve(random).hash() == resolve({"method": "random"}).hash()


def test_the_hash_of_a_method_without_a_pool_still_holds_the_network_it_uses() -> None:
    assert resolve({"method": "dm", "pool.network": "resnet10"}).hash() != resolve({"method": "dm"}).hash()


def test_once_data_are_read_their_fingerprint_stands_for_their_name_and_place(toy_dataset: LabelledDataset) -> None:
    here, there = (resolve({"data.name": name}).on(toy_dataset) for name in ("here", "there"))
    assert here.hash() == there.hash() and here.data.fingerprint == there.data.fingerprint
    assert here.data.mirror == toy_dataset.spec.mirror
    changed = replace(toy_dataset, train=replace(toy_dataset.train, labels=toy_dataset.train.labels.flip(0)))
    other = resolve({"data.name": "here"}).on(replace(changed, spec=replace(changed.spec, train_fingerprint="")))
    assert other.hash() != here.hash()
    tested = replace(toy_dataset, test=toy_dataset.train)
    assert resolve({}).on(tested).hash() == here.hash()  # which no method sees


def test_a_path_is_recorded_as_it_is_from_everywhere(
    toy_dataset: LabelledDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    names = [resolve({"data.name": name}).on(toy_dataset).data.name for name in ("pets", "digits", "toy")]
    assert names == [str(tmp_path / "pets"), "digits", "toy"]


# --- bad input

BAD: list[tuple[dict[str, Any], str, str]] = [
    # layer, the key that must be named, a valid value or the kind expected
    ({"ipcs": 10}, "'ipcs'", "known are budget, data, evaluation"),
    ({"method.step": 10}, "'method.step'", "steps"),
    ({"method.name": "random", "method.steps": 3}, "'method.steps' of method 'random'", "known are none"),
    ({"pool": {"member": 3}}, "'pool.member'", "members"),
    ({"method.name": "dsmd"}, "'dsmd'", "random, random_mix"),
    ({"method.name": ["dsdm"]}, "'method.name'", "expected a name"),
    ({"methods": {"dsdm": {}}}, "'methods'", "use method.KEY here"),
    ({"method": 3}, "'method'", "a section of keys"),
    ({"method": "dsmd"}, "'dsmd'", "random, random_mix"),
    ({"pool": None}, "'pool'", "a section of keys"),
    ({"fidelity": "exact"}, "fidelity='exact'", "paper, code, potstill"),
    ({"fidelity": ["paper"]}, "'fidelity'", "expected a name"),
    ({"ipc": 0}, "ipc=0", "at least 1"),
    ({"ipc": None}, "ipc=null", "need a whole number"),
    ({"ipc": 2.5}, "ipc=2.5", "need a whole number"),
    ({"ipc": "ten"}, "ipc='ten'", "need a whole number"),
    ({"factor": 2.5}, "factor=2.5", "a whole number or a list of 2 whole numbers"),
    ({"factor": True}, "factor=true", "a whole number or a list of 2 whole numbers"),
    ({"factor": [2]}, "factor=[2]", "a whole number or a list of 2 whole numbers"),
    ({"factor": 0}, "factor=0,0", "at least 1"),
    ({"factor": [0, 1]}, "factor=0,1", "at least 1"),
    ({"parameterisation": "wavelets"}, "'wavelets'", "dct, half_chroma, tiles"),
    ({"parameterisation": "dct:chrome=5"}, "'chrome'", "luma, chroma, scale"),
    ({"parameterisation": "dct:luma=0"}, "luma=0", "at least 1"),
    ({"parameterisation": "half_chroma:luma=ten"}, "luma='ten'", "a whole number"),
    ({"method.steps": "many"}, "method.steps='many'", "a whole number"),
    ({"method.steps": -1}, "method.steps=-1", "at least 1"),
    ({"method.augment": None}, "method.augment=null", "a text"),
    ({"method.clamp": "maybe"}, "method.clamp='maybe'", "after, before, never"),
    ({"pool.schedule": "slow"}, "pool.schedule='slow'", "fast, paper"),
    ({"pool.epochs": 0}, "pool.epochs=0", "at least 1"),
    ({"pool.members": 0}, "pool.members=0", "at least 1"),
    ({"pool.network": "resnet99"}, "'resnet99'", "convnet, convnet3"),
    ({"evaluation.network": "resnet99"}, "'resnet99'", "convnet, convnet3"),
    ({"evaluation.protocol": "fast"}, "'fast'", "dc, dd"),
    ({"evaluation.nets": 0}, "nets=0", "at least 1"),
    ({"method.name": "dm", "fidelity": "exact"}, "fidelity='exact'", "paper, code, potstill"),
    ({"method.name": "dm", "method.augment": "paint"}, "'paint'", "color"),
    ({"method.name": "dm", "method.momentum": -0.5}, "method.descent.momentum=-0.5", "from 0"),
    ({"init.kind": "zeros"}, "init.kind='zeros'", "mix, real, noise"),
    ({"init.pick": "last"}, "init.pick='last'", "seeded, centres, first"),
    ({"init.resize": "cubic"}, "init.resize='cubic'", "area, nearest"),
    ({"saving.keep": [3, -5]}, "saving.keep=-5", "at least 0"),
    ({"saving.every": 0}, "saving.every=0", "at least 1"),
    ({"saving.minutes": 0}, "saving.minutes=0", "above 0"),
    ({"budget.minutes": 0}, "budget.minutes=0", "above 0"),
    ({"budget.minutes": float("nan")}, "budget.minutes=nan", "above 0"),
    ({"budget.minutes": float("inf")}, "budget.minutes=inf", "above 0"),
    ({"budget.minutes": "long"}, "budget.minutes='long'", "a number or null"),
    ({"budget.plan": True}, "budget.plan=true", "give budget.minutes"),
    ({"budget": {"minutes": 1, "planned": 0}}, "budget.planned=0", "at least 1"),
    ({"saving.keep": 3}, "saving.keep=3", "a list of whole numbers"),
    ({"runtime.threads": "all"}, "runtime.threads='all'", "a whole number or auto"),
    ({"runtime.chunk": "big"}, "runtime.chunk='big'", "a whole number or auto"),
    ({"data.size": [8, 8, 8]}, "data.size=[8, 8, 8]", "a whole number or null"),
    ({"ipc.per_class": 3}, "ipc={'per_class': 3}", "a whole number"),
    ({"evaluation.epochs": True}, "evaluation.epochs=true", "a whole number or null"),
    ({"data.name": False}, "data.name=false", "a text (put it in quotes)"),
    ({"data.name": 2020}, "data.name=2020", "a text (put it in quotes)"),
    ({"data.name": " "}, "data.name=''", "a known name"),
    ({"data.normalisation": "mean"}, "data.normalisation='mean'", "measured, common"),
    ({"data.holdout": -5}, "data.holdout=-5", "above 0 and below 1"),
    ({"data.size": 0}, "data.size=0", "at least 1"),
    ({"pool.snapshots": [2, 9]}, "pool.snapshots=[2, 9]", "0..6"),
    ({"pool.snapshots": [True]}, "pool.snapshots=[True]", "a list of numbers"),
    ({"runtime.device": "cup"}, "runtime.device='cup'", "cpu, cuda, cuda:N"),
    ({"runtime.precision": "fp8"}, "runtime.precision='fp8'", "auto, fp32, bf16"),
    ({"runtime.compile": "maybe"}, "runtime.compile='maybe'", "true or false or auto"),
    ({"runtime.threads": 0}, "runtime.threads=0", "at least 1"),
    ({"evaluation.at_once": 0}, "evaluation.at_once=0", "at least 1"),
    ({"a." * 5000: 3}, "unknown recipe key 'a.a.", "no key lies so deep"),
    ({"method.optimizer": "9" * 5000}, "method.descent.optimizer='99", "sgd, adam"),
]


@pytest.mark.parametrize(("layer", "key", "valid"), BAD, ids=[str(layer) for layer, _, _ in BAD])
def test_a_bad_value_gives_one_line_with_its_key_and_what_would_do(layer: dict[str, Any], key: str, valid: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(layer)
    message = str(caught.value)
    assert key in message and valid in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("ipc", 10**9, "1,000,000"),
        ("pool.members", 10**9, "1,000"),
        ("pool.epochs", 10**9, "1,000,000"),
        ("runtime.threads", 10**9, "1,024"),
        ("runtime.chunk", 10**9, "1,000,000"),
        ("evaluation.nets", 10**9, "10,000"),
        ("evaluation.epochs", 10**9, "1,000,000"),
        ("evaluation.at_once", 10**9, "10,000"),
        ("data.size", 10**9, "4,096"),
        ("saving.every", 10**10, "1,000,000,000"),
        ("seed", 2**63, f"{2**63 - 1:,}"),
        ("pool.seed", 10**30, f"{2**63 - 1:,}"),
    ],
)
def test_a_number_that_would_fill_the_memory_is_refused_by_its_bound(key: str, value: int, bound: str) -> None:
    with pytest.raises(UsageError, match=rf"{key}=.*{value}.*at most {bound}\b"):
        resolve({key: value})


@pytest.mark.parametrize(
    ("layer", "meant"),
    [
        ({"method.step": 3}, "method.steps"),
        ({"method.history_weigth": 3}, "method.history.weight"),
        ({"method.history.wieght": 3}, "method.history.weight"),
        ({"pool": {"member": 3}}, "pool.members"),
        ({"evalution.nets": 3}, "evaluation"),
        ({"icp": 3}, "ipc"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest_one(layer: dict[str, Any], meant: str) -> None:
    with pytest.raises(UsageError, match=rf"did you mean {meant}\? known are "):
        resolve(layer)


@dataclass(frozen=True)
class Bank:
    draws: int = 4
    gigabytes: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "draws")


@dataclass(frozen=True)
class Sectioned:
    """A method's keys in sections."""

    bank: Bank = field(default_factory=Bank)
    rates: tuple[float, ...] = (0.1,)


@pytest.fixture
def sectioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS["random"], "Config", Sectioned)


def test_a_methods_keys_may_lie_in_sections(sectioned: None) -> None:
    recipe = resolve({"method.name": "random", "method.bank.draws": 7}, {"method": {"bank": {"gigabytes": 2}}})
    assert recipe.method == Sectioned(Bank(7, 2.0))
    assert resolve(from_yaml(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        ({"method.bank.draws": 0}, "method.bank.draws=0: need at least 1"),
        ({"method.bank.draws": "few"}, "method.bank.draws='few': need a whole number"),
        ({"method.bank.draw": 1}, "unknown recipe key 'method.bank.draw': did you mean method.bank.draws?"),
        ({"method.bank": 3}, "recipe key 'method.bank': expected a section of keys, found 3"),
        ({"method.rates": [0.1, "x"]}, "method.rates=[0.1, 'x']: need a list of numbers"),
    ],
)
def test_a_wrong_key_in_a_methods_section_is_named_in_full(
    sectioned: None, layer: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"method.name": "random"}, layer)
    assert str(caught.value).startswith(complaint)


# --- short names


@pytest.mark.parametrize("key", ["method.history.smoothing", "method.history_smoothing", "method.smoothing"])
def test_a_key_in_a_section_has_a_short_name_with_the_section_and_one_without(key: str) -> None:
    layers = [{key: 0.5}, merge({key: 0.5}), parse_assignments([f"--{key}", "0.5"])]
    for layer in layers:
        assert resolve(layer) == resolve({"method.history.smoothing": 0.5}) != resolve({})
    assert resolve(of_method([{key.replace("method", "methods.dsdm", 1): 0.5}], "dsdm")) == resolve(layers[0])


def test_every_short_name_is_that_of_one_key_of_the_method(sectioned: None) -> None:
    assert short_names(Sectioned) == {
        "draws": "bank.draws",
        "bank_draws": "bank.draws",
        "gigabytes": "bank.gigabytes",
        "bank_gigabytes": "bank.gigabytes",
    }
    names = short_names(METHODS["dsdm"].Config)
    assert names["learning_rate"] == names["descent_learning_rate"] == "descent.learning_rate"
    assert "steps" not in names and "scale_rate" not in names  # keys as they are


def test_a_name_that_two_sections_have_is_the_short_name_of_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Twice:
        bank: Bank = field(default_factory=Bank)
        other: Bank = field(default_factory=Bank)

    monkeypatch.setattr(METHODS["random"], "Config", Twice)
    monkeypatch.setitem(Twice.__init__.__globals__, "Twice", Twice)
    assert set(short_names(Twice)) == {"bank_draws", "bank_gigabytes", "other_draws", "other_gigabytes"}
    assert resolve({"method": {"name": "random", "other_draws": 2}}).method == Twice(other=Bank(2))
    with pytest.raises(UsageError, match=r"unknown recipe key 'method\.draws' of method 'random': .*bank\.draws, "):
        resolve({"method": {"name": "random", "draws": 2}})


def test_a_later_layer_wins_under_whichever_name() -> None:
    long, short = {"method.descent.momentum": 0.1}, {"method.momentum": 0.2}
    assert resolve(long, short).method.descent.momentum == 0.2
    assert resolve(short, long).method.descent.momentum == 0.1
    assert resolve({"fidelity": "paper"}, short).method.descent.momentum == 0.2  # over the preset's section
    parts = [{"methods.dm.momentum": 0.2}, {"methods.dm.descent.momentum": 0.1}]
    assert resolve(of_method(parts, "dm")).method.descent.momentum == 0.1


def test_a_section_keeps_what_the_method_has_where_one_key_of_it_is_given() -> None:
    """Adam with linear decay is dsdm_plus' own default, not the section's."""
    descent = resolve({"method": {"name": "dsdm_plus", "learning_rate": 0.5}}).method.descent
    assert (descent.learning_rate, descent.optimizer, descent.decay) == (0.5, "adam", "linear")


def test_one_key_under_two_names_is_refused_where_they_disagree() -> None:
    assert resolve({"method": {"momentum": 0.5, "descent": {"momentum": 0.5}}}).method.descent.momentum == 0.5
    with pytest.raises(UsageError) as caught:
        resolve({"method.momentum": 0.5, "method.descent.momentum": 0.9})
    assert str(caught.value) == ("method.momentum=0.5 and method.descent.momentum=0.9: these are one key, give it once")


def test_a_recipe_is_resolved_in_milliseconds() -> None:
    resolve({})
    started = time.perf_counter()
    for _ in range(20):
        resolve({"method.steps": 7, "pool": {"members": 2}})
    assert (time.perf_counter() - started) / 20 < 0.02  # half a millisecond, on a machine that is not busy


def test_a_key_below_a_single_value_is_refused() -> None:
    with pytest.raises(UsageError, match="'ipc' has a single value, not a section"):
        resolve({"ipc": 3, "ipc.per_class": 3})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["steps"], "unexpected argument 'steps': recipe keys look like --method.steps 2000"),
        (["-x", "1"], "unexpected argument '-x'"),
        (["--"], "unexpected argument '--'"),
        (["--method.steps"], "--method.steps: no value given"),
        (["--method.steps", "--ipc", "1"], "--method.steps: no value given"),
    ],
)
def test_words_that_are_no_keys_are_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_assignments(words)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("a: [1,", "not valid YAML"), ("- 1", "a recipe is a mapping of keys, found a list"), ("", "found nothing")],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


BOMB = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{{', '.join(f'k{i}: *{last}' for i in range(9))}}}\n" for last, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("pool: {members: 1}\nipc: 2\npool: {epochs: 1}\n", "line 3: key 'pool' is given twice"),
        ("pool: {epochs: 1, epochs: 2}\n", "line 1: key 'epochs' is given twice"),
        (BOMB, r"aliases such as \*a are not read"),
        ("ipc: &a [*a]", r"aliases such as \*a"),
        ("[" * 3000, "nested too deeply"),
        ("ipc: " + "9" * 5000, "not valid YAML"),
        ("ipc: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("ipc: !!int 0x_", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("ipc: \x00", "not valid YAML"),
        ("a" * 1_000_001, "too large for a recipe"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_does_harm_is_refused_in_one_line(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"ipc: 3\n\xff\xfe")
    with pytest.raises(UsageError, match=r"recipe.yaml: not a text in UTF-8 \(invalid start byte at byte 7\)"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("2020-11-12", "2020-11-12"),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        ("010", 10),
        ("1e3", 1000.0),
        ("-2.5E-1", -0.25),
        (".inf", float("inf")),
        ("true", True),
        ("null", None),
        ("", None),
        ("'12'", "12"),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_has_them(text: str, value: Any) -> None:
    found = from_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", ["no", "1e3", "12", "2020-11-12", "null", "", "true", "*a", 1e-05, 3, None, True, []])
def test_what_is_written_reads_back_to_the_same(value: Any) -> None:
    found = from_yaml(to_yaml({"key": [value, value]}))["key"]
    assert found == [value, value] and type(found[0]) is type(value)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(
        UsageError, match=r"no recipe 'nope'.*digits_demo, dsdm/as_code, dsdm/as_paper, dsdm/cifar10_ipc10"
    ):
        read_recipe("nope")


def test_a_recipe_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("ipc: 4\nmethod: {steps: 12}\n")
    recipe = resolve(read_recipe(path))
    assert (recipe.ipc, recipe.method.steps) == (4, 12)


def test_numbers_of_an_array_are_numbers() -> None:
    recipe = resolve({"ipc": np.int64(3), "saving": {"minutes": np.float32(0.5)}})
    assert (type(recipe.ipc), recipe.ipc) == (int, 3)
    assert (type(recipe.saving.minutes), recipe.saving.minutes) == (float, 0.5)


def test_a_key_of_another_method_names_those_that_have_it_and_how_a_comparison_gives_it() -> None:
    told = r"'method\.steps' of method 'random': .* dsdm, .*in a comparison or study: methods\.NAME\.steps"
    with pytest.raises(UsageError, match=told):
        resolve({"method": {"name": "random", "steps": 3}})
