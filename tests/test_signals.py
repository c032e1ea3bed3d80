"""Signals within a run: whose alarm it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import potstill
from potstill.errors import Interrupted
from potstill.run.signals import giving_up, interruptible, stop_requests

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms here")


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What an alarm handler of the caller's own was called with."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: numbers.append(number))
    yield numbers
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_an_alarm_of_the_callers_own_stays_theirs(heard: list[int]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 60)
    with stop_requests(print) as stopping, giving_up():
        signal.raise_signal(signal.SIGALRM)
        assert not stopping()
    assert heard == [signal.SIGALRM]
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


def test_after_a_signal_an_alarm_gives_the_step_up_and_is_the_callers_again_at_the_end(heard: list[int]) -> None:
    reached = []
    with stop_requests(reached.append) as stopping:
        with giving_up():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGALRM)
            reached.append("the end of the step")
        assert stopping() and len(reached) == 1
    signal.raise_signal(signal.SIGALRM)
    assert heard == [signal.SIGALRM]


def test_a_signal_is_no_failure_of_what_runs_when_it_comes() -> None:
    def decode() -> None:  # as the libraries that we call, and our own readers
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise ValueError("cannot be decoded") from error

    with pytest.raises(Interrupted, match="what is finished of the work is kept"), interruptible("the work"):
        decode()
    with pytest.raises(Interrupted, match="interrupted twice"), stop_requests(lambda _: None):
        signal.raise_signal(signal.SIGINT)
        decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_imported_waits_for_its_end(number: signal.Signals, tmp_path: Path) -> None:
    """Torch's C++ part would end the process with a hundred lines; a stand-in says when it is there."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('begun', flush=True)\ntime.sleep(.3)\nprint('whole', flush=True)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(potstill.__file__).parents[1])])
    words = [sys.executable, "-m", "potstill", "list", "keys"]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stderr and child.stdout.readline() == "begun\n"
        child.send_signal(number)
        assert child.stdout.read() == "whole\n"
        assert child.stderr.read().startswith("potstill: interrupted")
        assert child.wait() == 130
