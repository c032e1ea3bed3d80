"""Recipes: every number of a run, resolved from layers, checked once, saved and hashed.

Layers, later over earlier: the dataclass defaults, the shipped layer that `fidelity` names, recipe files, single keys
("method.steps"). `sections` declares the keys, `names` knows their short names, `layers` reads and merges, `resolve`
checks.
"""

from __future__ import annotations

from .layers import Layer, merge, parse_assignments, parse_recipe, read_recipe, recipe_names
from .resolve import difference, of_method, resolve
from .sections import (
    FIDELITIES,
    BudgetConfig,
    DataConfig,
    EvaluationConfig,
    PoolConfig,
    Recipe,
    RuntimeConfig,
    SavingConfig,
)

__all__ = [
    "FIDELITIES",
    "BudgetConfig",
    "DataConfig",
    "EvaluationConfig",
    "Layer",
    "PoolConfig",
    "Recipe",
    "RuntimeConfig",
    "SavingConfig",
    "difference",
    "merge",
    "of_method",
    "parse_assignments",
    "parse_recipe",
    "read_recipe",
    "recipe_names",
    "resolve",
]
