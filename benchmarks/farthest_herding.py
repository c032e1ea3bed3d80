"""The command line with one more method: herding with a slip that is in wide use, to see what it does to accuracy.

    python benchmarks/farthest_herding.py compare --config dsdm/fashion_mnist_ipc10 --methods farthest --out runs/x

Greedy herding takes the image that brings the running mean nearest to the class mean; `farthest` the one that brings
it farthest (argmax for argmin).
"""

import sys

import torch
from torch import Tensor

from potstill.cli import main
from potstill.methods.base import METHODS
from potstill.methods.coreset import Coreset


@METHODS.register("farthest")
class Farthest(Coreset):
    """As `potstill.methods.herding`, each choice turned around."""

    def select(self, features: Tensor, count: int) -> Tensor:
        mean, total = features.mean(dim=0), torch.zeros_like(features[0])
        chosen: list[int] = []
        for k in range(1, count + 1):
            distance = (features - (k * mean - total)).square().sum(dim=1)
            distance[chosen] = -1
            chosen.append(int(distance.argmax()))
            total = total + features[chosen[-1]]
        return torch.tensor(chosen, device=features.device)


if __name__ == "__main__":
    sys.exit(main())
