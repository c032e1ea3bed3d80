"""The one-page example is the algorithm as people read it first: it must run and work."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import potstill

EXAMPLE = Path(__file__).parents[1] / "examples" / "dsdm_one_page.py"


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
