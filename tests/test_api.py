"""The Python entry points, as the package's docstring has them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import potstill
from potstill._moved import MOVED
from potstill.run.store import RunStore
from potstill.spec import LabelledDataset

#: Recipe keys and method keys that make a run take a second.
RECIPE: dict[str, Any] = {
    "pool": {"members": 2, "pretrained": False},
    "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False},
}
KEYS = {"steps": 3, "real_batch": 16}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where temporary files go, the user's cache and the current folder, to be watched."""
    watched = tmp_path / "watched"
    for name in ("tmp", "cache", "here"):
        (watched / name).mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(watched / "tmp"))
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(watched / "cache"))
    monkeypatch.chdir(watched / "here")
    return watched


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_docstrings_example_runs(temporary: Path) -> None:
    data = potstill.load_dataset("digits")
    run = potstill.distill(data, method="dsdm", ipc=1, recipe=RECIPE, **KEYS)
    assert run.synthetic.images.shape == (10, 1, 1, 8, 8)
    scores = potstill.evaluate(run.synthetic, data.test, nets=2, epochs=1)
    assert scores.n_nets == 2 and 0 <= scores.mean <= 1
    assert str(scores).startswith(f"{100 * scores.mean:.2f} +- ")
    assert "last epoch, n = 1 set x 2 nets, convnet, protocol dsdm, 1 epoch" in str(scores)


def test_a_run_without_out_leaves_no_files(toy_dataset: LabelledDataset, temporary: Path) -> None:
    run = potstill.distill(toy_dataset, ipc=1, recipe=RECIPE, **KEYS)
    assert run.folder is None
    assert files_in(temporary) == []
    assert list((temporary / "tmp").iterdir()) == []


def test_a_failing_run_without_out_leaves_no_files_either(toy_dataset: LabelledDataset, temporary: Path) -> None:
    with pytest.raises(potstill.UsageError, match="1 sample per class"):
        potstill.distill(toy_dataset, ipc=1, factor=(1, 1), recipe=RECIPE, **KEYS)
    assert list((temporary / "tmp").iterdir()) == []


def test_a_run_with_out_is_a_run_folder(toy_dataset: LabelledDataset, temporary: Path, tmp_path: Path) -> None:
    run = potstill.distill(toy_dataset, ipc=1, out=tmp_path / "run", recipe=RECIPE, **KEYS)
    assert run.folder == tmp_path / "run"
    assert torch.equal(RunStore(run.folder).require_set().images, run.synthetic.images)
    assert torch.equal(potstill.read_set(run.folder).images, run.synthetic.images)
    assert files_in(temporary) == []


def test_both_ways_give_the_same_set(toy_dataset: LabelledDataset, temporary: Path, tmp_path: Path) -> None:
    with_files = potstill.distill(toy_dataset, ipc=1, out=tmp_path / "run", recipe=RECIPE, **KEYS)
    without = potstill.distill(toy_dataset, ipc=1, recipe=RECIPE, **KEYS)
    assert with_files.synthetic.to_bytes() == without.synthetic.to_bytes()


def test_an_existing_folder_needs_resume_or_overwrite(toy_dataset: LabelledDataset, tmp_path: Path) -> None:
    def again(**keys: Any) -> potstill.Run:
        return potstill.distill(toy_dataset, method="random", ipc=1, out=tmp_path / "run", recipe=RECIPE, **keys)

    first = again()
    with pytest.raises(potstill.UsageError, match="holds a run already"):
        again()
    assert torch.equal(again(resume=True).synthetic.images, first.synthetic.images)
    assert not torch.equal(again(overwrite=True, seed=1).synthetic.images, first.synthetic.images)


def test_keys_reach_the_recipe_and_method_keys_win(toy_dataset: LabelledDataset) -> None:
    layer = {**RECIPE, "method.steps": 99, "method.clamp": "before", "ipc": 9, "init.pick": "first"}
    run = potstill.distill(toy_dataset, ipc=2, factor=(1, 2), seed=5, recipe=layer, **KEYS)
    assert (run.recipe.ipc, run.recipe.factor, run.recipe.seed) == (2, (1, 2), 5)
    assert (run.recipe.method.steps, run.recipe.method.clamp, run.recipe.init.pick) == (3, "before", "first")
    assert run.recipe.data.name == "toy"
    assert run.synthetic.factor == (1, 2)


def test_a_misspelt_method_key_is_refused_by_name(toy_dataset: LabelledDataset) -> None:
    with pytest.raises(potstill.UsageError, match=r"'method\.step' of method 'dsdm': did you mean method\.steps\?"):
        potstill.distill(toy_dataset, step=3)


def test_one_number_is_a_square_factor(toy_dataset: LabelledDataset) -> None:
    assert potstill.distill(toy_dataset, method="random_mix", ipc=1, factor=2, recipe=RECIPE).synthetic.factor == (2, 2)


@pytest.mark.parametrize("data", ["path/to/images", Path("images"), torch.utils.data.TensorDataset(torch.zeros(2))])
def test_data_that_were_not_loaded_are_refused_with_what_to_do(data: Any) -> None:
    with pytest.raises(potstill.UsageError, match=r"cannot distil .* potstill\.load_dataset"):
        potstill.distill(data, method="random", ipc=1)


def test_the_set_drops_into_an_ordinary_training_loop(toy_dataset: LabelledDataset) -> None:
    small = potstill.distill(toy_dataset, method="random_mix", ipc=2, recipe=RECIPE).synthetic
    assert isinstance(small, Dataset)
    images, labels = next(iter(DataLoader(small, batch_size=len(small))))
    assert images.shape == (3 * 2 * 4, 1, 8, 8)
    assert labels.bincount().tolist() == [8, 8, 8]
    split = small.decoded()
    expected = (split.images - toy_dataset.spec.mean[0]) / toy_dataset.spec.std[0]
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=1e-6)


def test_a_quiet_run_says_nothing(toy_dataset: LabelledDataset, capfd: pytest.CaptureFixture[str]) -> None:
    potstill.distill(toy_dataset, ipc=1, recipe=RECIPE, **KEYS)
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""


def test_the_pool_is_cached_where_asked(toy_dataset: LabelledDataset, temporary: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, "pool": {"members": 1, "epochs": 1}}
    potstill.distill(toy_dataset, ipc=1, recipe=recipe, cache=tmp_path / "mine", **KEYS)
    assert len(list((tmp_path / "mine" / "pool").glob("*.safetensors"))) == 1
    assert files_in(temporary) == []


def test_every_public_name_is_there_and_unknown_ones_are_not() -> None:
    assert set(potstill.__all__) <= set(dir(potstill))
    for name in potstill.__all__:
        assert getattr(potstill, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = potstill.nothing  # type: ignore[attr-defined]


def test_importing_the_package_does_not_wait_for_torch() -> None:
    code = "import sys, potstill; dir(potstill); print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("old", MOVED)
def test_a_module_is_found_by_the_name_that_it_had_before_and_says_its_new_one(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"potstill.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"potstill.{old} is now potstill.{MOVED[old]}"):
        found = import_module(f"potstill.{old}")
    assert found is import_module(f"potstill.{MOVED[old]}")
    assert found.__spec__ and found.__spec__.name == f"potstill.{MOVED[old]}"


def test_an_old_module_is_an_attribute_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert potstill.synthetic.SyntheticSet is potstill.SyntheticSet


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda data, made: potstill.load_dataset("digits", holdout="x"), "holdout='x': need a fraction"),
        (lambda data, made: potstill.load_dataset("digits", seed="x"), "seed='x': need a whole number"),
        (lambda data, made: potstill.load_dataset("mnist", data_dir=5), "5: is no path"),
        (lambda data, made: potstill.distill(data, recipe=[1]), "a recipe of type list: give keys, or the name of"),
        (lambda data, made: potstill.distill(data, method="random", out=5), "5: is no path"),
        (lambda data, made: potstill.evaluate(made, data), r"cannot evaluate Run: .*run\.synthetic"),
        (lambda data, made: potstill.evaluate(made.synthetic, data, protocol=5), "protocol of type int"),
        (lambda data, made: potstill.evaluate(made.synthetic, data, at_once=0), "at_once=0: need auto, or at least 1"),
        (lambda data, made: potstill.export(made, "x", "pt"), r"cannot export Run: .*run\.synthetic"),
        (lambda data, made: potstill.read_set(None), "None: is no path"),
        (lambda data, made: made.synthetic.quantised("x"), "stored bits x: need a whole number"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(act: Any, told: str, toy_dataset: LabelledDataset) -> None:
    made = potstill.distill(toy_dataset, method="random", ipc=1, recipe=RECIPE)
    with pytest.raises(potstill.UsageError, match=told):
        act(toy_dataset, made)


def test_a_recipe_may_be_a_file_or_a_shipped_one_whose_data_are_those_that_are_given(
    toy_dataset: LabelledDataset, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("ipc: 2\nmethod: random\ndata: {name: cifar10}\n")
    found = potstill.distill(toy_dataset, recipe=tmp_path / "mine.yaml", seed=3).recipe
    assert (found.ipc, found.method_name, found.seed, found.data.name) == (2, "random", 3, "toy")
    shipped = potstill.distill(toy_dataset, recipe="digits_demo", method="random").recipe
    assert shipped.data.name == "toy"
