"""The one classifier loop: it pre-trains pool members on real data and trains evaluation networks on synthetic data.

Data stay on the device as they are stored; batches are gathered, normalised, augmented, mixed and trained on in
chunks. No data loader, no worker, no copy per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RunError, UsageError
from ..machine.runtime import Runtime
from ..networks import Backbone
from ..seeding import generator
from ..spec import DatasetSpec, Split, normalise, to_pixels
from . import augment
from .augment import Strategy


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained.

    Attributes:
        epochs: passes over the data.
        batch: images per step; the last batch of an epoch may be smaller.
        optimizer: "sgd" or "adamw".
        learning_rate: the peak.
        momentum, nesterov, weight_decay: of SGD (AdamW takes the weight decay).
        decay: "none", "steps" (times `decay_factor` at each of `decay_at`), or "one_cycle" (up over the first
            fifth, then down to zero).
        decay_at: shares of the epochs, for "steps".
        augment: a DSA string, see `augment.Strategy`; `augment_single` as there.
        cutmix: probability that a batch is mixed by CutMix.
    """

    epochs: int
    batch: int
    learning_rate: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay: str = "none"
    decay_at: tuple[float, ...] = ()
    decay_factor: float = 0.2
    augment: str = "none"
    augment_single: bool = False
    cutmix: float = 0.0

    def rate(self, epoch: int, progress: float) -> float:
        """Learning rate in `epoch` (from 0), `progress` (0..1) of the whole training done."""
        if self.decay == "none":
            return self.learning_rate
        if self.decay == "steps":
            passed = sum(epoch >= round(share * self.epochs) for share in self.decay_at)
            return self.learning_rate * self.decay_factor**passed
        if self.decay == "one_cycle":
            return self.learning_rate * min(progress / 0.2, (1 - progress) / 0.8)
        raise UsageError(f"decay={self.decay!r}: use none, steps or one_cycle")


def fit(
    network: Backbone,
    data: Split,
    spec: DatasetSpec,
    schedule: Schedule,
    runtime: Runtime,
    *,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Backbone:
    """Train `network` in place on `data` and return it after the LAST epoch.

    Args:
        data: images `(N, C, H, W)` uint8 or pixels, labels `(N,)`.
        seed: addresses the order, the augmentation and CutMix of every step.
        on_epoch: called after each epoch with (epochs done, mean loss of the epoch).
    Raises:
        RunError: the loss is no longer finite.
    """
    network.to(runtime.device).train().requires_grad_(True)
    images, labels = data.images.to(runtime.device), data.labels.to(runtime.device)
    step = _Step(network, spec, schedule, runtime)
    steps_per_epoch = math.ceil(len(data) / schedule.batch)
    total_steps = steps_per_epoch * schedule.epochs
    done = 0
    for epoch in range(schedule.epochs):
        order = torch.randperm(len(data), generator=generator(seed, "order", epoch)).to(runtime.device)
        total = torch.zeros((), device=runtime.device)
        for i, index in enumerate(order.split(schedule.batch)):
            rate = schedule.rate(epoch, (done + 0.5) / total_steps)
            stream = generator(seed, "batch", epoch, i)
            total += step(images[index], labels[index], rate, stream) * len(index)
            done += 1
        loss = float(total) / len(data)
        if not math.isfinite(loss):
            raise RunError(f"training loss is {loss} in epoch {epoch + 1}: lower the learning rate or use fp32")
        if on_epoch:
            on_epoch(epoch + 1, loss)
    return network.eval()


class _Step:
    """One optimiser step, its graphs compiled once: prepare the batch, then loss and gradient chunk by chunk."""

    def __init__(self, network: Backbone, spec: DatasetSpec, schedule: Schedule, runtime: Runtime):
        self.network, self.runtime, self.schedule = network, runtime, schedule
        self.strategy = Strategy.parse(schedule.augment, mirror=spec.mirror, single=schedule.augment_single)
        self.optimizer = _make_optimizer(network, schedule)
        mean, std = torch.tensor(spec.mean, device=runtime.device), torch.tensor(spec.std, device=runtime.device)
        self._prepare = runtime.compiled(partial(_prepare, mean, std))
        self._loss = runtime.compiled(partial(_weighted_loss, network, runtime))

    def __call__(self, images: Tensor, labels: Tensor, rate: float, stream: torch.Generator) -> Tensor:
        x, targets, shares = self._batch(images, labels, stream)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = x.new_zeros(())
        for piece in _training_chunks(x, targets, shares, self._chunk(len(x))):
            loss = self._loss(*piece)
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        return total

    def _batch(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented, mixed images, both label columns `(B, 2)` and their shares `(B, 2)`, which sum to 1 / B."""
        size = len(images)
        drawn = augment.draw(self.strategy, size, stream)
        mix = _draw_cutmix(self.schedule.cutmix, images.shape[2], images.shape[3], size, stream)
        partner, box = mix.partner.to(images.device), mix.box.to(images.device)
        x = self._prepare(images, drawn.operations, drawn.uniform.to(images.device), partner, box)
        targets = torch.stack([labels, labels[partner]], dim=1)
        kept = torch.tensor([mix.kept, 1 - mix.kept], device=x.device)
        return x, targets, (kept / size).expand(size, 2)

    def _chunk(self, size: int) -> int:
        return size if self.network.couples_batch else self.runtime.chunk_of(size)


def _prepare(
    mean: Tensor,
    std: Tensor,
    images: Tensor,
    operations: tuple[str, ...],
    uniform: Tensor,
    partner: Tensor,
    box: Tensor,
) -> Tensor:
    """Normalise, augment and paste the partner's box."""
    x = augment.apply(normalise(to_pixels(images), mean, std), operations, uniform)
    rows = torch.arange(x.shape[2], device=x.device)
    columns = torch.arange(x.shape[3], device=x.device)
    inside = ((rows >= box[0]) & (rows < box[1]))[:, None] & ((columns >= box[2]) & (columns < box[3]))
    return torch.where(inside, x[partner], x)


def _weighted_loss(network: Backbone, runtime: Runtime, x: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy to both label columns, weighted; the shares of a whole batch sum to 1."""
    with runtime.autocast():
        logits = network(x)
    return -(F.log_softmax(logits.float(), dim=1).gather(1, targets) * shares).sum()


def _training_chunks(x: Tensor, targets: Tensor, shares: Tensor, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Pieces of exactly `size` images; the last is filled up with images of no weight, so graphs keep their shape."""
    missing = -len(x) % size
    if missing:
        x = torch.cat([x, x[:1].expand(missing, -1, -1, -1)])
        targets = torch.cat([targets, targets[:1].expand(missing, -1)])
        shares = torch.cat([shares, shares.new_zeros(missing, 2)])
    return list(zip(x.split(size), targets.split(size), shares.split(size), strict=True))


@dataclass(frozen=True)
class _CutMix:
    partner: Tensor  # (B,) index of the image whose box is pasted
    box: Tensor  # top, bottom, left, right; empty for a batch that is not mixed
    kept: float  # share of the first label


def _draw_cutmix(probability: float, height: int, width: int, size: int, stream: torch.Generator) -> _CutMix:
    """One box for the whole batch, its area uniform (Beta(1, 1)), with probability `probability`."""
    u = torch.rand(4, generator=stream).tolist()
    partner = torch.randperm(size, generator=stream)
    if u[0] >= probability:
        return _CutMix(partner, torch.zeros(4, dtype=torch.long), 1.0)
    share = math.sqrt(1 - u[1])
    cut_h, cut_w = int(height * share), int(width * share)
    y, x = int(u[2] * height), int(u[3] * width)
    top, bottom = max(y - cut_h // 2, 0), min(y + cut_h // 2, height)
    left, right = max(x - cut_w // 2, 0), min(x + cut_w // 2, width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return _CutMix(partner, torch.tensor([top, bottom, left, right]), kept)


def _make_optimizer(network: Backbone, schedule: Schedule) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=schedule.nesterov,
        )
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    raise UsageError(f"optimizer={schedule.optimizer!r}: use sgd or adamw")


@torch.no_grad()
def accuracy(network: Backbone, data: Split, spec: DatasetSpec, runtime: Runtime, *, batch: int = 1024) -> float:
    """Share of `data` that `network` classifies rightly, 0..1; images are not augmented."""
    network.to(runtime.device).eval()
    mean, std = torch.tensor(spec.mean, device=runtime.device), torch.tensor(spec.std, device=runtime.device)

    def predict(images: Tensor) -> Tensor:
        with runtime.autocast():
            return network(normalise(to_pixels(images), mean, std)).argmax(dim=1)

    predict = runtime.compiled(predict)
    size = min(runtime.chunk, batch)
    right = 0
    for images, labels in zip(data.images.split(size), data.labels.split(size), strict=True):
        padded = images if len(images) == size else images[torch.arange(size) % len(images)]
        right += int((predict(padded.to(runtime.device))[: len(images)].cpu() == labels).sum())
    return right / len(data)
