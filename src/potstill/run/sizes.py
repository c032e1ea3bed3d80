"""How large a set is before it is made: samples, and bytes of memory and of files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..evaluation import TrainingSet
from ..learning.extractor import EAGER_MAPS, KEEP_MAPS_OF
from ..machine.runtime import Runtime
from ..methods import Problem
from ..recipe import Recipe
from ..spec import LabelledDataset
from .pace import untrained_problem

#: Bytes of the maps of a sample that wait for its gradient, at 32 x 32 in bf16.
MAPS = 2**19


@dataclass(frozen=True)
class Sized:
    """Bytes: of memory that making a set takes, of a state and of the set in their files."""

    memory: int
    state: int
    stored: int


def samples_of_set(recipe: Recipe, data: LabelledDataset) -> int:
    """Decoded samples of all classes."""
    whole = not recipe.build_method().uses_factor
    return data.spec.num_classes * (recipe.ipc if whole else recipe.way().samples(recipe.ipc, data.spec))


def begun_set(recipe: Recipe, data: LabelledDataset) -> TrainingSet:
    """The set before the first step."""
    method, problem = recipe.build_method(), untrained_problem(recipe, data, Runtime())
    return method.result(problem, method.init(problem))


def sizes_of(recipe: Recipe, data: LabelledDataset, runtime: Runtime) -> Sized:
    """Of a set and what is held beside the networks.

    Raises:
        PotstillError: it cannot be made of these data.
    """
    method, problem = recipe.build_method(), untrained_problem(recipe, data, Runtime())
    if not method.steps:
        method.check(problem)
        numbers = 4 * data.spec.num_classes * recipe.ipc * math.prod(data.spec.shape)
        return Sized(numbers, numbers, numbers)
    state = method.init(problem)
    size = sum(tensor.nbytes for tensor in state.to_tensors().values())
    return Sized(size + _maps(problem, runtime), size, len(method.result(problem, state).to_bytes()))


def _maps(problem: Problem, runtime: Runtime) -> int:
    """Bytes of the maps that wait for the gradient of all samples of a step."""
    eager = 1 if runtime.compile else EAGER_MAPS
    kept = min(problem.samples * len(problem.classes), KEEP_MAPS_OF // eager)
    height, width = problem.spec.shape[1:]
    return kept * eager * (2 if runtime.precision == "fp32" else 1) * MAPS * height * width // 32**2
