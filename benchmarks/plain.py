"""The plain reference: DSDM written the way the field writes it. Every speed claim of potstill is a ratio to this.

Eager fp32, a loop over classes, d x d covariances by their definition, an optimiser step per class, the model rebuilt
and its checkpoint read from disk at every iteration, a second pass for the history; evaluation and pre-training with
one eager step per batch. It uses none of potstill's compute path: own network, own augmentation, own losses.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class PlainConvNet(nn.Module):
    """ConvNet-3, width 128, with torch's own GroupNorm, ReLU and AvgPool2d; `padding` of the first convolution."""

    def __init__(self, channels: int = 3, num_classes: int = 10, depth: int = 3, width: int = 128, padding: int = 1):
        super().__init__()
        layers = []
        for i in range(depth):
            layers += [
                nn.Conv2d(channels if i == 0 else width, width, 3, padding=padding if i == 0 else 1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.LazyLinear(num_classes)

    def embed(self, x):
        return self.features(x).flatten(1)

    def forward(self, x):
        return self.classifier(self.embed(x))


def color(x, u):
    x = x + (u[0] - 0.5)
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (2 * u[1]) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (u[2] + 0.5) + mean


def crop(x, u):
    side = x.shape[-1]
    reach = int(side * 0.125 + 0.5)
    top, left = (int(u[i] * (2 * reach + 1)) for i in (3, 4))
    return F.pad(x, (reach,) * 4)[:, :, top : top + side, left : left + side]


def cutout(x, u):
    side = x.shape[-1]
    size = side // 2
    top, left = (int(u[i] * (side + 1)) - size // 2 for i in (5, 6))
    mask = torch.ones_like(x)
    mask[:, :, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return x * mask


def augment(x, u):
    return cutout(crop(color(x, u), u), u)


def decode(x, factor=2):
    side = x.shape[-1] // factor
    tiles = [
        x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(factor) for j in range(factor)
    ]
    return F.interpolate(torch.cat(tiles), scale_factor=factor, mode="bilinear")


def covariance(features):
    centred = features - features.mean(dim=0)
    return centred.T @ centred / (len(features) - 1)


class PlainDSDM:
    """The authors' loop body, class by class."""

    def __init__(
        self,
        real,
        labels,
        images,
        checkpoints: list[Path],
        mean,
        std,
        build=PlainConvNet,
        real_batch=256,
        rate=0.1,
        momentum=0.5,
    ):
        self.real, self.checkpoints, self.build = real, checkpoints, build
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
        self.images = images.clone().requires_grad_()  # (K, IPC, C, H, W)
        self.optimizer = torch.optim.SGD([self.images], lr=rate, momentum=momentum)
        self.history: list = [None] * len(images)
        self.device, self.real_batch = real.device, real_batch
        self.index = [(labels.cpu() == c).nonzero().flatten() for c in range(len(images))]

    def step(self, t: int) -> float:
        model = self.build().to(self.device)
        model(torch.zeros(1, *self.images.shape[2:], device=self.device))
        path = self.checkpoints[t % len(self.checkpoints)]
        model.load_state_dict(torch.load(path, weights_only=True, map_location=self.device))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self.images.data.clamp_(0, 1)
        total = 0.0
        for c in range(len(self.images)):
            pick = self.index[c][torch.randperm(len(self.index[c]))[: self.real_batch]]
            real = (self.real[pick.to(self.device)].float() / 255 - self.mean) / self.std
            synthetic = (decode(self.images[c]) - self.mean) / self.std
            both = augment(torch.cat([real, synthetic]), torch.rand(7))
            with torch.no_grad():
                f_real = model.embed(both[: len(real)].detach())
            f_syn = model.embed(both[len(real) :])
            loss = (f_real.mean(0) - f_syn.mean(0)).square().sum()
            loss = loss + 50 * (covariance(f_real) - covariance(f_syn)).square().sum() / f_syn.shape[1]
            if self.history[c] is not None:
                loss = loss + 0.2 * (f_syn.mean(0) - self.history[c]).square().sum() / f_syn.shape[1]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        with torch.no_grad():
            for c in range(len(self.images)):
                synthetic = (decode(self.images[c]) - self.mean) / self.std
                new = model.embed(augment(synthetic, torch.rand(7))).mean(0)
                old = self.history[c]
                self.history[c] = new if old is None else 0.99 * old + 0.01 * new
        return total


def train_epoch(model, optimizer, images, labels, mean, std, batch):
    """One epoch of the usual eager loop, per-sample colour and crop by a batch-wise draw, CutMix at .5."""
    mean, std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
    for index in torch.randperm(len(images)).to(images.device).split(batch):
        x = (images[index].float() / (255 if images.dtype == torch.uint8 else 1) - mean) / std
        u = torch.rand(7)
        x, y = crop(color(x, u), u), labels[index]
        share, partner = 1.0, torch.randperm(len(x)).to(x.device)
        if torch.rand(()) < 0.5:
            side = x.shape[-1]
            cut = int(side * math.sqrt(float(torch.rand(()))))
            top, left = (int(torch.randint(side, ())) for _ in range(2))
            top, left, bottom, right = max(top - cut // 2, 0), max(left - cut // 2, 0), top + cut // 2, left + cut // 2
            x = x.clone()
            x[:, :, top:bottom, left:right] = x[partner][:, :, top:bottom, left:right]
            share = 1 - (min(bottom, side) - top) * (min(right, side) - left) / side**2
        logits = model(x)
        loss = share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[partner])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
