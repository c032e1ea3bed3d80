"""What work costs, in seconds of one core: unlike those of the clock whatever else keeps the machine busy."""

from __future__ import annotations

import os
import time


def core_seconds(device: str) -> float:
    """A reading; the difference of two is the work between them.

    On a CPU it is the time that all threads of the process have kept cores busy, with what it called and waited for (a
    compiler); any other device is taken to be busy all the time, so that its seconds are the clock's.
    """
    if device != "cpu":
        return time.perf_counter()
    called = os.times()
    return time.process_time() + called.children_user + called.children_system
