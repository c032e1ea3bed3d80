"""CIFAR-10 at IPC 10 from nothing to one scored set: seconds summed from the pieces that `speed.py` measured.

    python benchmarks/pipeline.py results/speed/cpu_1thread.json

No piece is run here; what a step, an image of pre-training and one of evaluation took on either side is multiplied by
how often each pipeline needs it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

TRAIN_IMAGES, SAMPLES, EVALUATION_EPOCHS = 50_000, 400, 1500


@dataclass(frozen=True)
class Pipeline:
    """Training runs x epochs of the pool, steps on fresh real batches and on a filled bank, final evaluations."""

    name: str
    side: str
    runs: int
    epochs: int
    fresh: int
    banked: int
    evaluations: int = 1

    def seconds(self, speed: dict) -> dict[str, float]:
        step = speed["step"]["ipc10"]["seconds"]
        pretrained, evaluated = (
            speed[kind]["images_per_second"][self.side] for kind in ("pretraining_epoch", "evaluation_epoch")
        )
        fresh = step["plain" if self.side == "plain" else "fresh"][0]
        parts = {
            "pool": self.runs * self.epochs * TRAIN_IMAGES / pretrained,
            "distilling": self.fresh * fresh + (self.banked * step["bank"][0] if self.banked else 0),
            "evaluation": self.evaluations * EVALUATION_EPOCHS * SAMPLES / evaluated,
        }
        return {**parts, "sum": sum(parts.values())}


#: A bank of 16 draws a network is filled by as many fresh steps; with snapshots a training run gives 3 networks.
PIPELINES = (
    Pipeline("plain, the authors' schedule", "plain", 10, 20, 10_000, 0),
    Pipeline("plain, with their hundred evaluations", "plain", 10, 20, 10_000, 0, evaluations=100),
    Pipeline("potstill, the same schedule, fresh", "potstill", 10, 20, 10_000, 0),
    Pipeline("potstill, the same schedule, bank", "potstill", 10, 20, 160, 9840),
    Pipeline("potstill, dsdm/cifar10_ipc10", "potstill", 3, 6, 2000, 0),
    Pipeline("potstill, dsdm_plus in tiles 2 x 2", "potstill", 3, 6, 144, 1356),
    Pipeline("potstill, dsdm_plus in tiles 2 x 2 with pool.members 1", "potstill", 1, 6, 48, 1452),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speed", type=Path, help="JSON of speed.py")
    options = parser.parse_args()
    speed = json.loads(options.speed.read_text())
    sums = {pipeline.name: pipeline.seconds(speed) for pipeline in PIPELINES}
    one, hundred = (sums[pipeline.name]["sum"] for pipeline in PIPELINES[:2])
    print("| pipeline | pool, s | distilling, s | evaluation, s | sum, s | times faster, one / hundred evaluations |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, parts in sums.items():
        cells = " | ".join(f"{seconds:,.0f}" for seconds in parts.values())
        print(f"| {name} | {cells} | {one / parts['sum']:.3g} / {hundred / parts['sum']:.3g} |")


if __name__ == "__main__":
    main()
