"""Is this tree as fast as an older one? Steps, pre-training and evaluation of both, in pairs on the same core.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before --out results/speed/before_after.json

Each tree runs in a process of its own, through what its own `speed.py` times; a pair is one call of each, one after the
other, and a ratio above 1 says that this tree is the faster one. Random pixels of CIFAR-10's shape, IPC 10, factor 2.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from potstill.files import write_atomically
from potstill.run.environment import commit, cpu_name

#: Runs in either tree: takes the functions that its `speed.py` would time, and calls the one it is asked for.
SERVER = """
import sys
from contextlib import nullcontext
import speed, torch
speed.apart = lambda *_: nullcontext()
speed.paired = lambda sides, *_, **__: sides
runtime = speed.Runtime.resolve(threads=1, passes=10**9)
runtime.start()
torch.manual_seed(0)
data, spec = speed.random_data("cpu")
steps = speed.step_pairs(data, spec, runtime, 10, 1)
speed.training_pairs.__globals__["paired"] = lambda sides, *_, **__: {"seconds": {}, **sides}
sides = {
    "fresh step": steps["fresh"],
    "bank step": steps["bank"],
    "pre-training": speed.training_pairs(data.subset(torch.arange(1024)), spec, runtime, 256, 1)["potstill"],
    "evaluation": speed.training_pairs(data.subset(torch.arange(400)), spec, runtime, 64, 1)["potstill"],
}
out, sys.stdout = sys.stdout, sys.stderr
print(runtime.describe(), file=out, flush=True)
for line in sys.stdin:
    sides[line.strip()](0)
    print(file=out, flush=True)
"""
WARM = {"fresh step": 2, "bank step": 6, "pre-training": 1, "evaluation": 1}


class Tree:
    """The sides of one source tree, called by name."""

    def __init__(self, root: Path):
        paths = [str((root / part).resolve()) for part in ("src", "benchmarks")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.runtime = self._answer()

    def seconds(self, side: str) -> float:
        assert self._process.stdin
        started = time.perf_counter()
        print(side, file=self._process.stdin, flush=True)
        self._answer()
        return time.perf_counter() - started

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("one of the trees has failed: see above")
        return line.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="root of the older tree")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--sides", default=",".join(WARM), help="separated by commas, of: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    here = Path(__file__).parents[1]
    before, after = Tree(options.before), Tree(here)
    try:
        found = {side: pairs_of(side, before, after, options.pairs) for side in options.sides.split(",")}
    finally:
        before.end()
        after.end()
    told = subprocess.run(
        ["git", "-C", str(options.before), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    record = {
        "schema_version": 1,
        "cpu": cpu_name(),
        "commits": {"before": told.stdout.strip(), "after": commit()},
        "runtime": {"before": before.runtime, "after": after.runtime},
        "sides": found,
    }
    write_atomically(options.out, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def pairs_of(side: str, before: Tree, after: Tree, pairs: int) -> dict[str, object]:
    """Seconds of both and the ratio before / after, pair by pair."""
    for _ in range(WARM[side]):
        before.seconds(side)
        after.seconds(side)
    taken = []
    for pair in range(pairs):  # in turn the first: whoever comes second finds the caches as the other left them
        first, second = (before, after) if pair % 2 == 0 else (after, before)
        times = {first: first.seconds(side), second: second.seconds(side)}
        taken.append((times[before], times[after]))
    ratios = sorted(old / new for old, new in taken)
    return {
        "seconds": [[round(s, 4) for s in pair] for pair in taken],
        "ratio": {"median": round(median(ratios), 3), "min": round(ratios[0], 3), "max": round(ratios[-1], 3)},
    }


if __name__ == "__main__":
    main()
