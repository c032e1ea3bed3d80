"""Recipes: layers and their precedence, round trips, addresses, and one clear line for every bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import UsageError
from potstill.methods import METHODS
from potstill.recipe import merge, parse_assignments, read_recipe, recipe_names, resolve

NAMES = recipe_names()


def methods_of(name: str) -> list[str]:
    """The methods a shipped recipe is meant for: those it has keys for, else all."""
    recipe = read_recipe(name)
    return list(recipe.get("methods", {})) or [recipe.get("method", {}).get("name", "dsdm")]


# --- shipped recipes


def test_recipes_are_shipped() -> None:
    assert "digits_demo" in NAMES and "dsdm/paper_schedule" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_resolves_for_its_methods_and_for_random(name: str) -> None:
    for method in {*methods_of(name), "random", "random_mix"}:
        recipe = resolve(read_recipe(name), {"method.name": method})
        assert recipe.method_name == method
        recipe.build_method()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_keys_all_arrive(name: str) -> None:
    """What the file says is what the resolved recipe says, key by key."""
    layer = read_recipe(name)
    for method, keys in layer.pop("methods", {}).items():
        resolved = resolve(read_recipe(name), {"method.name": method}).to_dict()
        assert {k: resolved["method"][k] for k in keys} == keys
        for section, value in layer.items():
            found = resolved[section]
            assert ({k: found[k] for k in value} if isinstance(value, dict) else found) == value


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
    assert recipe.method.learning_rate == 0.7 and recipe.fidelity == fidelity


# --- layers


def test_precedence_is_defaults_then_fidelity_then_file_then_keys() -> None:
    file = {"fidelity": "paper", "method": {"learning_rate": 0.5, "clamp": "before"}}
    recipe = resolve(file, {"method.clamp": "after"})
    assert recipe.method.steps == 3000  # the default
    assert recipe.method.augment == "none"  # the fidelity
    assert recipe.method.learning_rate == 0.5  # the file, over the fidelity's 0.1
    assert recipe.method.clamp == "after"  # the key, over file and fidelity


def test_a_fidelity_given_as_a_key_does_not_override_the_file() -> None:
    recipe = resolve({"method": {"learning_rate": 0.5}, "pool": {"schedule": "fast"}}, {"fidelity": "paper"})
    assert (recipe.method.learning_rate, recipe.pool.schedule, recipe.method.clamp) == (0.5, "fast", "never")


def test_the_methods_section_serves_the_method_in_use_alone() -> None:
    layer = {"methods": {"dsdm": {"steps": 7}, "random": {}}}
    assert resolve(layer).method.steps == 7
    assert resolve(layer, {"method.name": "random"}).method_name == "random"
    assert "methods" not in resolve(layer).to_dict()


def test_a_key_of_the_method_goes_over_the_methods_section() -> None:
    assert resolve({"methods": {"dsdm": {"steps": 7, "clamp": "never"}}}, {"method.steps": 9}).method.steps == 9
    assert resolve({"methods.dsdm.steps": 7}, {"methods.dsdm.steps": 8}).method.steps == 8


def test_layers_are_merged_key_by_key_and_left_as_they_were() -> None:
    file = {"pool": {"members": 5, "schedule": "paper"}, "factor": [1, 2]}
    merged = merge(file, {"pool.members": 2}, {"pool": {"epochs": 3}})
    assert merged == {"pool": {"members": 2, "schedule": "paper", "epochs": 3}, "factor": [1, 2]}
    assert file == {"pool": {"members": 5, "schedule": "paper"}, "factor": [1, 2]}
    before = merge(merged)
    resolve(merged)
    assert merged == before


def test_lists_become_tuples() -> None:
    recipe = resolve({"factor": [1, 3], "saving.keep": [5, 10], "pool.snapshots": [1]})
    assert (recipe.factor, recipe.saving.keep, recipe.pool.snapshots) == ((1, 3), (5, 10), (1,))


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
    assert resolve(parse_assignments(["--method.learning_rate", written])).method.learning_rate == 0.001


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


@pytest.mark.parametrize(
    "key", [{"evaluation.nets": 9}, {"evaluation.protocol": "dc"}, {"saving.every": 7}, {"budget.minutes": 3}]
)
def test_the_hash_does_not_change_with_scoring_snapshots_and_budget(key: dict[str, Any]) -> None:
    assert resolve(key).hash() == resolve({}).hash()


# --- bad input

BAD: list[tuple[dict[str, Any], str, str]] = [
    # layer, the key that must be named, a valid value or the kind expected
    ({"ipcs": 10}, "'ipcs'", "known are budget, data, evaluation"),
    ({"method.step": 10}, "'method.step'", "steps"),
    ({"method.name": "random", "method.steps": 3}, "'method.steps' of method 'random'", "known are none"),
    ({"pool": {"member": 3}}, "'pool.member'", "members"),
    ({"method.name": "dsmd"}, "'dsmd'", "herding, kcenter"),
    ({"method.name": ["dsdm"]}, "'method.name'", "expected a name"),
    ({"methods": {"dm2": {}}}, "'dm2'", "herding, kcenter"),
    ({"methods": {"dsdm": 3}}, "'methods.dsdm'", "a section of keys"),
    ({"method": "dsdm"}, "'method'", "a section of keys"),
    ({"pool": None}, "'pool'", "a section of keys"),
    ({"fidelity": "exact"}, "fidelity='exact'", "paper, code, potstill"),
    ({"fidelity": ["paper"]}, "'fidelity'", "expected a name"),
    ({"ipc": 0}, "ipc=0", "at least 1"),
    ({"ipc": None}, "'ipc'", "int"),
    ({"ipc": 2.5}, '"ipc"', "int"),
    ({"ipc": "ten"}, '"ipc"', "int"),
    ({"factor": 2}, '"factor"', "tuple"),
    ({"factor": [2]}, '"factor"', "2 elements"),
    ({"factor": [4, 1]}, "factor=4,1", "1, 2 or 3"),
    ({"method.steps": "many"}, '"method.steps"', "int"),
    ({"method.steps": -1}, "method.steps=-1", "at least 1"),
    ({"method.augment": None}, "'method.augment'", "str"),
    ({"method.clamp": "maybe"}, "method.clamp='maybe'", "after, before, never"),
    ({"pool.schedule": "slow"}, "pool.schedule='slow'", "fast, paper"),
    ({"pool.epochs": 0}, "pool.epochs=0", "at least 1"),
    ({"pool.members": 0}, "pool.members=0", "at least 1"),
    ({"pool.network": "resnet99"}, "'resnet99'", "convnet, convnet3"),
    ({"evaluation.network": "resnet99"}, "'resnet99'", "convnet, convnet3"),
    ({"evaluation.protocol": "fast"}, "'fast'", "dc, dsdm"),
    ({"evaluation.nets": 0}, "nets=0", "at least 1"),
    ({"method.name": "dm", "fidelity": "exact"}, "fidelity='exact'", "paper, code, potstill"),
    ({"method.name": "dm", "method.augment": "paint"}, "'paint'", "color"),
    ({"method.name": "dm", "method.momentum": -0.5}, "method.momentum=-0.5", "from 0"),
    ({"init.kind": "zeros"}, "init.kind='zeros'", "mix, real, noise"),
    ({"init.pick": "last"}, "init.pick='last'", "seeded, first"),
    ({"init.resize": "cubic"}, "init.resize='cubic'", "area, nearest"),
    ({"saving.keep": [3, -5]}, "saving.keep=-5", "from 0"),
    ({"saving.every": 0}, "saving.every=0", "at least 1"),
    ({"budget.minutes": 0}, "budget.minutes=0", "above 0"),
    ({"budget.minutes": float("nan")}, "budget.minutes=nan", "above 0"),
    ({"budget.minutes": float("inf")}, "budget.minutes=inf", "above 0"),
    ({"budget.minutes": "long"}, '"budget.minutes"', "float"),
    ({"saving.keep": 3}, '"saving.keep"', "tuple"),
    ({"runtime.threads": "all"}, "runtime.threads='all'", "auto or a whole number"),
    ({"runtime.chunk": "big"}, "runtime.chunk='big'", "auto or a whole number"),
    ({"data.size": [8, 8, 8]}, '"data.size"', "int"),
    ({"ipc.per_class": 3}, '"ipc"', "int"),
]


@pytest.mark.parametrize(("layer", "key", "valid"), BAD, ids=[str(layer) for layer, _, _ in BAD])
def test_a_bad_value_gives_one_line_with_its_key_and_what_would_do(layer: dict[str, Any], key: str, valid: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(layer)
    message = str(caught.value)
    assert key in message and valid in message
    assert "\n" not in message


def test_a_key_below_a_single_value_is_refused() -> None:
    with pytest.raises(UsageError, match="'ipc' has a single value, not a section"):
        resolve({"ipc": 3}, {"ipc.per_class": 3})


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
    [("a: [1,", "not valid YAML"), ("- 1", "a recipe is a mapping of keys, found list"), ("", "found NoneType")],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'nope'.*digits_demo, dsdm/cifar10_ipc10"):
        read_recipe("nope")


def test_a_recipe_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("ipc: 4\nmethod: {steps: 12}\n")
    recipe = resolve(read_recipe(path))
    assert (recipe.ipc, recipe.method.steps) == (4, 12)
