"""Code that people read first must run and work: the algorithm on one page, and the method to begin one's own from."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import potstill
from potstill.learning.pool import untrained
from potstill.methods import METHODS, Problem, run_method
from potstill.networks import build_network
from potstill.spec import LabelledDataset, normalise, to_pixels

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "dsdm_one_page.py"


def test_the_one_page_loop_lowers_its_loss_and_stays_in_range(capsys: pytest.CaptureFixture[str]) -> None:
    small = runpy.run_path(str(EXAMPLE))["dsdm"](potstill.load_dataset("digits"), epochs=3, steps=41)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < 0.8 * losses[0]
    assert small.images.shape == (10, 2, 1, 8, 8)
    assert small.images.min() >= 0 and small.images.max() <= 1


@pytest.mark.slow
def test_the_example_runs_as_a_script_and_prints_both_scores() -> None:
    command = [sys.executable, str(EXAMPLE), "--steps", "5", "--epochs", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-2:]] == ["random", "DSDM"]


def test_the_method_in_contributing_is_complete_and_picks_the_images_it_says(
    toy_dataset: LabelledDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as a file of `methods/` would be; the registry forgets it afterwards."""
    blocks = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1::2]
    (code,) = [block.removeprefix("python\n") for block in blocks if "@METHODS.register" in block]
    spec, train, pool = toy_dataset.spec, toy_dataset.train, untrained(toy_dataset.spec, members=1)
    with monkeypatch.context() as patch:
        patch.setattr(METHODS, "_entries", dict(METHODS._entries))
        exec(compile(code, "strongest.py", "exec"), {"__package__": "potstill.methods", "__name__": "strongest"})
        found = run_method(METHODS["strongest"](), Problem(spec=spec, train=train, ipc=3, pool=pool))
    assert "strongest" not in METHODS
    network = build_network("convnet", spec, 0)
    network.load_state_dict(pool.members[0])
    for c in range(spec.num_classes):
        own = to_pixels(train.images[train.labels == c])
        with torch.no_grad():
            sums = network.embed(normalise(own, torch.tensor(spec.mean), torch.tensor(spec.std))).sum(dim=1)
        assert torch.equal(found.images[c], own[sums.argsort(descending=True)[:3]])
