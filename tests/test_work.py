"""The work of cores is what they do, not how long it takes."""

from __future__ import annotations

import subprocess
import sys
import time

from potstill.machine.work import core_seconds

#: For .2 seconds, as those of a process that was called come in whole ticks of its user and its system.
BUSY = "import time\nwhile time.process_time() < .2: pass"


def test_a_cpu_that_waits_does_no_work_and_another_device_is_taken_to_be_busy() -> None:
    before = core_seconds("cpu"), core_seconds("cuda")
    time.sleep(0.2)
    assert core_seconds("cpu") - before[0] < 0.1 < 0.2 <= core_seconds("cuda") - before[1]


def test_what_a_cpu_computes_and_calls_is_work() -> None:
    before, own = core_seconds("cpu"), time.process_time()
    while time.process_time() < own + 0.1:
        pass
    assert core_seconds("cpu") - before >= 0.1
    before = core_seconds("cpu")
    subprocess.run([sys.executable, "-c", BUSY], check=True)
    assert core_seconds("cpu") - before >= 0.1
