"""What `fidelity` selects: exactly the documented keys, each of them free to be set alone, each with an effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import potstill
from potstill.learning.pool import FAST, PAPER, untrained
from potstill.machine.runtime import Runtime
from potstill.methods import METHODS, Init, Problem
from potstill.recipe import FIDELITIES, Recipe, read_recipe, resolve
from potstill.recipe.resolve import preset
from potstill.spec import LabelledDataset

#: Every key by which the paper's text differs from the default, as documented.
FROM_THE_PAPER: dict[str, Any] = {
    "method.descent.learning_rate": 0.1,  # section 5.1, whatever the IPC
    "method.descent.momentum": 0.5,  # 5.1, "We follow the configuration of DM"
    "method.scale_rate": False,
    "method.covariance_ddof": 0,  # Eq. (5) divides by |B|
    "method.history.scope": "shared",
    "method.history.first": "zero",  # Eq. (8) at t = 1
    "method.history.divide": False,  # Eq. (6)
    "method.history.features": "plain",  # Eq. (7)
    "method.augment": "color_crop_cutout_flip_scale_rotate",  # DM's as well: one of six
    "method.augment_single": True,
    "method.clamp": "never",
    "pool.schedule": "paper",
}
#: And the authors' code: DSDM.py 500 (clamp), 512 (start), 523-537 (features), data.py 411-413 (init), 19 (constants).
FROM_THE_CODE: dict[str, Any] = {
    "method.history.scope": "shared",
    "method.history.start": 2001,
    "method.history.features": "augmented",
    "method.clamp": "before",
    "init.pick": "first",
    "init.resize": "nearest",
    "data.normalisation": "common",
    "pool.schedule": "paper",
}
DOCUMENTED = {"paper": FROM_THE_PAPER, "code": FROM_THE_CODE, "potstill": {}}

every_key = pytest.mark.parametrize(
    ("fidelity", "key"), [(name, key) for name, keys in DOCUMENTED.items() for key in keys]
)


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted keys of a resolved recipe, without the name of its fidelity."""

    def walk(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in record.items():
            found |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return {k: v for k, v in walk(recipe.to_dict(), "").items() if k != "fidelity"}


def difference(new: Recipe, old: Recipe) -> dict[str, Any]:
    before = flat(old)
    return {k: v for k, v in flat(new).items() if v != before[k]}


def test_the_fidelities_are_the_documented_three() -> None:
    assert set(FIDELITIES) == set(DOCUMENTED)


@pytest.mark.parametrize("fidelity", DOCUMENTED)
def test_a_fidelity_sets_exactly_its_documented_keys(fidelity: str) -> None:
    assert difference(resolve({"fidelity": fidelity}), resolve({})) == DOCUMENTED[fidelity]


def test_the_default_is_potstill() -> None:
    assert resolve({}) == resolve({"fidelity": "potstill"})


@every_key
def test_any_key_of_a_fidelity_can_be_set_back_alone(fidelity: str, key: str) -> None:
    default = flat(resolve({}))[key]
    chosen = resolve({"fidelity": fidelity})
    assert difference(resolve({"fidelity": fidelity, key: default}), chosen) == {key: default}


@every_key
def test_any_key_of_a_fidelity_can_be_taken_alone(fidelity: str, key: str) -> None:
    value = DOCUMENTED[fidelity][key]
    assert difference(resolve({key: value}), resolve({})) == {key: value}


# --- effects


def three_steps(recipe: Recipe, data: LabelledDataset) -> Tensor:
    problem = Problem(
        spec=data.spec,
        train=data.train,
        ipc=2,
        parameterisation=(2, 2),
        seed=1,  # steps 0, 1, 2 draw networks 0, 1, 0: the scope of the history matters
        pool=untrained(data.spec, members=2),
        runtime=Runtime(),
        init=recipe.init,
    )
    assert problem.pool is not None
    assert [problem.pool.draw(1, step) for step in range(3)] == [0, 1, 0]
    method = recipe.build_method()
    state = method.init(problem)
    for _ in range(3):
        state, _ = method.step(problem, state)
    return state.images


#: Small, and with enough weight on the history that its keys show within three steps.
QUICK = {"method.steps": 3, "method.real_batch": 16, "method.history.weight": 100.0}


@pytest.mark.parametrize("fidelity", ["paper", "code"])
def test_a_fidelity_gives_other_images_than_the_default(fidelity: str, toy_dataset: LabelledDataset) -> None:
    ours, theirs = (three_steps(resolve({"fidelity": name}, QUICK), toy_dataset) for name in ("potstill", fidelity))
    assert not torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("fidelity", "key"),
    [(f, k) for f, keys in DOCUMENTED.items() for k in keys if k.startswith(("method.", "init."))],
)
def test_every_key_of_a_fidelity_changes_the_images(fidelity: str, key: str, toy_dataset: LabelledDataset) -> None:
    data = replace(toy_dataset, spec=replace(toy_dataset.spec, mirror=True))  # so that every operation is in force
    default, changed = resolve(QUICK), resolve(QUICK, {key: DOCUMENTED[fidelity][key]})
    assert not torch.equal(three_steps(default, data), three_steps(changed, data))


def test_the_pool_schedule_of_both_is_the_papers() -> None:
    schedules = {name: resolve({"fidelity": name}).pool.training() for name in DOCUMENTED}
    assert schedules == {"paper": PAPER, "code": PAPER, "potstill": FAST}
    assert (PAPER.epochs, PAPER.batch, PAPER.learning_rate, PAPER.cutmix) == (20, 256, 0.01, 0.5)


def test_fidelity_code_takes_the_first_images_of_each_class(toy_dataset: LabelledDataset) -> None:
    """Of one class and one tile per image: the very first training image of that class."""
    first = Problem(spec=toy_dataset.spec, train=toy_dataset.train, ipc=1, init=resolve({"fidelity": "code"}).init)
    for c, image in enumerate(first.initial_images()):
        index = int((toy_dataset.train.labels == c).nonzero()[0])
        assert torch.equal(image[0], toy_dataset.train.images[index] / 255)
    assert Init() == resolve({}).init


def test_fidelity_code_measures_where_there_are_no_constants_in_use(caplog: pytest.LogCaptureFixture) -> None:
    normalisation = resolve({"fidelity": "code"}).data.normalisation
    assert normalisation == "common"
    common = potstill.load_dataset("digits", normalisation=normalisation).spec
    assert common == potstill.load_dataset("digits", normalisation="measured").spec
    assert "digits: no constants are in wide use" in caplog.text


@pytest.mark.parametrize("fidelity", DOCUMENTED)
def test_the_recipe_of_a_fidelity_is_that_fidelity_as_a_layer(fidelity: str) -> None:
    """`--config dsdm/as_paper` is `--fidelity paper`, but for the word that the recipe remembers."""
    layer = read_recipe(f"dsdm/as_{fidelity}") if fidelity != "potstill" else {}
    assert replace(resolve(layer), fidelity=fidelity) == resolve({"fidelity": fidelity})


@pytest.mark.parametrize("fidelity", DOCUMENTED)
@pytest.mark.parametrize("method", [name for name in METHODS if not preset(name, "code")])
def test_a_method_without_presets_takes_every_fidelity(method: str, fidelity: str) -> None:
    assert difference(resolve({"method": method, "fidelity": fidelity}), resolve({"method": method})) == {}
