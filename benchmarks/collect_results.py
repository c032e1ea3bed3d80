"""Turn a `potstill compare` folder into committed results: one JSON of rows and facts, and the sets in half precision.

    python benchmarks/collect_results.py runs/c10_ipc10 results/cifar10_ipc10 --command "potstill compare ..."

Paper values stand beside ours and are marked as what they are: the best of several test checks, not the last epoch.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import yaml

from potstill.files import write_atomically
from potstill.report import collect
from potstill.report.cost import curves_to_json
from potstill.report.tables import rows_to_json
from potstill.run.store import FULL_DATA
from potstill.sets.synthetic import SyntheticSet

#: Table 1 of the paper (ConvNet-3, percent, n = 5 experiments); all but DSDM at factor 1.
PAPER = {
    ("cifar10", 1): {"random": 14.4, "herding": 21.5, "kcenter": 21.5, "dm": 26.0, "dsdm": 45.0},
    ("cifar10", 10): {"random": 26.0, "herding": 31.6, "kcenter": 14.7, "dm": 48.9, "dsdm": 66.5},
    ("fashion_mnist", 10): {"random": 73.8, "herding": 71.1, "kcenter": 54.7, "dm": 83.5, "dsdm": 87.3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True, help="the command that made the folder")
    parser.add_argument("--note", action="append", default=[], help="anything a reader must know")
    options = parser.parse_args()
    records = collect(options.folder)
    rows = rows_to_json(records)
    for row in rows:
        published = PAPER.get((row["dataset"], row["ipc"]), {}).get(row["method"])
        row["paper_percent"] = published if row["method"] == "dsdm" or row["factor"] == (1, 1) else None
    record = {
        "schema_version": 1,
        "command": options.command,
        "notes": options.note,
        "rows": rows,
        "curves": curves_to_json(records),
        "full_data_scores": read_scores(options.folder / FULL_DATA),
        "runs": {folder.name: read_run_facts(folder) for folder in run_folders(options.folder)},
    }
    write_atomically(options.out / "results.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    for folder in run_folders(options.folder):
        if (folder / "metrics.jsonl").stat().st_size:
            synthetic = SyntheticSet.load(folder / "synthetic")
            half = replace(synthetic, images=synthetic.images.half())
            write_atomically(options.out / f"{folder.name}.fp16.safetensors", half.to_bytes())


def run_folders(folder: Path) -> list[Path]:
    return sorted(path.parent.parent for path in folder.glob("*/synthetic/distilled.safetensors"))


def read_run_facts(folder: Path) -> dict:
    """Recipe, environment, times, scores and a thinned loss curve."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "recipe": yaml.safe_load((folder / "config.yaml").read_text()),
        "environment": json.loads((folder / "env.json").read_text()),
        "times": json.loads((folder / "times.json").read_text()),
        "scores": read_scores(folder),
        "metrics_every_100": lines[99::100],
    }


def read_scores(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "scores").glob("*.json"))]


if __name__ == "__main__":
    main()
