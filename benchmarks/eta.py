"""Whether what `potstill reproduce` says of the time left comes true: a call of it, watched from outside.

    python benchmarks/eta.py --out results/speed/eta.json -- table1 --only dataset=mnist --engine processes

What stands behind `--` is the call. Each line on stderr that says how long all will take is kept with its time; at 10,
20, ... 90 % of the time that the call turned out to take, from its first such line on, the last line before that moment
is compared with what was still to come: its time less the seconds since it was said.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from potstill.files import write_atomically
from potstill.run.environment import commit, cpu_name

#: `=== 8 cells, about 12 min`, `=== 1 of 8 cells done after 40 s, about 10 min left`, `...; in all about 9 min left`,
#: `in all about 9 min left; at work: ...`.
SAID = re.compile(r"about ([\d.]+) (s|min|h|days)( left)?(;.*)?\s*$")
#: `networks 12/12 ...`, or a cell.
DONE = re.compile(r"networks (\d+)/\1\b|=== \d+ of \d+ cells done")
SECONDS = {"s": 1, "min": 60, "h": 3600, "days": 86400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("call", nargs="+", help="after --: what is reproduced, and its options")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        said, done, end = watch([*options.call, "--out", f"{folder}/out", "--cache-dir", f"{folder}/cache"])
    found = {
        "call": shlex.join(["potstill", "reproduce", *options.call]),
        "cpu": cpu_name(),
        "commit": commit(),
        "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "seconds_of_timing": round(said[0][0], 1),
        "seconds": round(end - said[0][0], 1),
        "of_these_after_the_last_task": round(end - done, 1),
        "at": shares(said, end),
    }
    found["worst_ratio"] = max(max(at["ratio"], 1 / max(at["ratio"], 0.01)) for at in found["at"])
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    runs = [run for run in runs if run["call"] != found["call"]]
    write_atomically(options.out, json.dumps({"schema_version": 1, "runs": [*runs, found]}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def watch(words: list[str]) -> tuple[list[tuple[float, float]], float, float]:
    """Seconds since the call began at which a time left was said, with that time; when tasks and call had ended."""
    began, said, done = time.perf_counter(), list[tuple[float, float]](), 0.0
    command = [sys.executable, "-m", "potstill", "reproduce", *words]
    call = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert call.stderr
    for line in call.stderr:
        now = time.perf_counter() - began
        print(f"{now:7.1f}  {line}", end="", flush=True)
        if DONE.match(line):
            done = now
        if found := SAID.search(line):
            said.append((now, float(found[1]) * SECONDS[found[2]]))
    if call.wait():
        raise SystemExit(f"the call failed with exit code {call.returncode}")
    return said, done, time.perf_counter() - began


def shares(said: list[tuple[float, float]], end: float) -> list[dict[str, Any]]:
    """At each tenth: what was said to be left, what it was, and the one over the other."""
    first, found = said[0][0], []
    for tenth in range(1, 10):
        now = first + tenth / 10 * (end - first)
        when, left = [entry for entry in said if entry[0] <= now][-1]
        told, was = max(0.0, left - (now - when)), end - now
        found.append(
            {"percent": 10 * tenth, "said": round(told, 1), "was": round(was, 1), "ratio": round(told / was, 2)}
        )
    return found


if __name__ == "__main__":
    main()
