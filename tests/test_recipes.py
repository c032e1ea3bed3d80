"""Shipped recipes, and that the commands of results/README.md still give the recipes of the committed rows."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.cli.compare import _study
from potstill.cli.distill import asked
from potstill.cli.main import build_parser
from potstill.recipe import Recipe, read_recipe, recipe_names, resolve

RESULTS = Path(__file__).parents[1] / "results"
COMMANDS = re.findall(r"^potstill .*--out runs/.*$", (RESULTS / "README.md").read_text(), re.MULTILINE)
CELLS = [(d, ipc) for d in ("cifar10", "fashion_mnist", "mnist") for ipc in (1, 10)] + [("cifar10", 50)]


def recipes_of(command: str) -> tuple[str, list[Recipe]]:
    """What a command would run, and the folder of its results."""
    verb, *words = shlex.split(command)[1:]
    options, keys = build_parser().parse_known_args([verb, *words])
    options.keys = keys
    recipes = [asked(options)] if verb == "distill" else [cell.recipe for cell in _study(options).cells]
    return options.out.name, recipes


def stored(folder: str, *methods: str) -> list[Recipe]:
    runs: dict[str, Any] = json.loads((RESULTS / folder / "results.json").read_text())["runs"]
    recipes = [run["recipe"] for run in runs.values()]
    return [resolve(recipe) for recipe in recipes if not methods or recipe["method"]["name"] in methods]


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_resolves(name: str) -> None:
    assert resolve(read_recipe(name)).method_name


@pytest.mark.parametrize(("data", "ipc"), CELLS)
def test_each_cell_of_the_table_has_a_recipe_of_dsdm_plus(data: str, ipc: int) -> None:
    recipe = resolve(read_recipe(f"dsdm_plus/{data}_ipc{ipc}"))
    assert (recipe.data.name, recipe.ipc, recipe.method_name) == (data, ipc, "dsdm_plus")
    assert recipe.parameterisation not in ("suited", "auto")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_gives_the_recipes_of_its_rows(command: str) -> None:
    """By the hash under today's keys, on the data of the row."""
    folder, recipes = recipes_of(command)
    rows = {(row.method_name, row.seed): row for row in stored(folder)}
    for recipe in recipes:
        row = rows[recipe.method_name, recipe.seed]
        assert row.data.normalisation == recipe.data.normalisation
        assert replace(recipe, data=row.data).hash() == row.hash()


def test_each_row_of_dsdm_plus_has_a_command() -> None:
    made = {(folder, r.method_name, r.seed) for folder, recipes in map(recipes_of, COMMANDS) for r in recipes}
    # Their files say what they ran.
    studies = {"ablation_cifar10_ipc10", *(path.name for path in RESULTS.glob("*_field"))}
    others = studies | {"three_networks"}  # of before snapshots
    settled = {path.name for path in RESULTS.glob("auto_*")}  # by searches on a machine, which their records tell
    folders = {path.parent.name for path in RESULTS.glob("*/results.json")} - others - settled
    rows = {(folder, row.method_name, row.seed) for folder in folders for row in stored(folder, "dsdm_plus")}
    assert rows <= made
