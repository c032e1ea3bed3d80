"""The stage that trains a recipe's pool of networks, into the cache where every run finds it."""

from __future__ import annotations

from pathlib import Path

from ..files import default_cache
from ..learning.pool import Pool, pretrain, untrained
from ..machine.runtime import Runtime
from ..recipe import Recipe
from ..spec import LabelledDataset
from .progress import Reporter
from .signals import interruptible


def pretrain_pool(
    recipe: Recipe,
    data: LabelledDataset,
    reporter: Reporter,
    *,
    cache: Path | None = None,
    runtime: Runtime | None = None,
) -> Pool:
    """The recipe's pool, from the cache where it is there."""
    config = recipe.pool
    if not config.pretrained:
        return untrained(data.spec, network=config.network, members=config.members, seed=config.seed)
    schedule = config.training()
    runtime = runtime or recipe.runtime.resolve(
        passes=3 * len(data.train) * schedule.epochs * config.members, side=data.spec.shape[1]
    )
    runtime.start()
    reporter.say(f"pool: {config.members} x {config.network}, {schedule.epochs} epochs; {runtime.describe()}")
    with reporter.stage("pretrain", config.members * schedule.epochs) as stage, interruptible("the pool"):
        return pretrain(
            data.train,
            data.spec,
            cache=(cache or default_cache()) / "pool",
            runtime=runtime,
            network=config.network,
            members=config.members,
            schedule=schedule,
            snapshots=config.snapshots,
            seed=config.seed,
            on_epoch=lambda member, epoch, loss: stage.advance(f"network {member + 1} epoch {epoch} loss {loss:.3f}"),
        )
