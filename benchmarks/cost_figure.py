"""Draw accuracy against core-minutes from the curves of committed results.

    python benchmarks/cost_figure.py results/ablation_cifar10_ipc10 --pool-minutes 25.5 \
        --out docs/accuracy_against_cost.svg

Runs whose pool came from another machine's cache say what it took there: `--pool-minutes` puts in its place what it
takes where they ran.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from potstill.files import write_atomically
from potstill.report.cost import CostCurve, CostPoint
from potstill.report.curves import cost_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders with a results.json that has curves")
    parser.add_argument("--pool-minutes", type=float, help="core-minutes of the pool, for all curves")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    curves = [curve for folder in options.folders for curve in read_curves(folder, options.pool_minutes)]
    write_atomically(options.out, cost_figure(curves, [curve.method for curve in curves]))


def read_curves(folder: Path, pool_minutes: float | None) -> list[CostCurve]:
    found = []
    for record in json.loads((folder / "results.json").read_text())["curves"]:
        points = [CostPoint(**point) for point in record.pop("points")]
        shift = 0.0 if pool_minutes is None else pool_minutes - points[0].core_minutes  # before the first step
        shifted = tuple(replace(point, core_minutes=point.core_minutes + shift) for point in points)
        found.append(CostCurve(**{**record, "runs": tuple(record["runs"])}, points=shifted))
    return found


if __name__ == "__main__":
    main()
