"""The stage that trains a recipe's pool of networks, into the cache where every run finds it."""

from __future__ import annotations

from pathlib import Path

from ..errors import counted
from ..files import default_cache, require_writable
from ..learning.pool import MemberKey, Pool, is_cached, is_trained, member_keys, pretrain, snapshot_epochs, untrained
from ..machine.runtime import Runtime
from ..networks import build_network
from ..recipe import Recipe
from ..seeding import derive
from ..spec import LabelledDataset
from .progress import Reporter
from .signals import interruptible


def check_pool_cache(recipe: Recipe, data: LabelledDataset, *, cache: Path | None = None) -> None:
    """Find out before a run is begun whether what its pool still lacks can be kept.

    Raises:
        UsageError, RunError: there is no folder for it, or none that can be written; a frozen network.
    """
    if recipe.pool.pretrained:
        build_network(recipe.pool.network, data.spec, 0).require_trainable()
    folder = (cache or default_cache()) / "pool"
    if recipe.pool.pretrained and not all(is_cached(keys, folder) for keys in run_keys(recipe, data)):
        require_writable(folder)


def missing_runs(recipe: Recipe, data: LabelledDataset, folder: Path) -> int:
    """How many of the pool's networks are still to be trained."""
    return sum(not is_trained(keys, folder) for keys in run_keys(recipe, data)) if recipe.pool.pretrained else 0


def run_keys(recipe: Recipe, data: LabelledDataset) -> list[list[MemberKey]]:
    """Addresses of the members of each training run of the recipe's pool."""
    config, schedule = recipe.pool, recipe.pool.training()
    epochs = snapshot_epochs(schedule, config.snapshots)
    seeds = [derive(config.seed, "pool", run) for run in range(config.members)]
    return [member_keys(data.spec, config.network, schedule, seed, epochs) for seed in seeds]


def pool_runtime(recipe: Recipe, data: LabelledDataset) -> Runtime:
    """What the recipe's choices come to for training its pool on this machine."""
    passes = 3 * len(data.train) * recipe.pool.training().epochs * recipe.pool.members
    return recipe.runtime.resolve(passes=passes, side=data.spec.shape[1])


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
    runtime = runtime or pool_runtime(recipe, data)
    runtime.start()
    epochs = counted(schedule.epochs, "epoch")
    reporter.say(f"pool: {config.members} x {config.network}, {epochs}; {runtime.describe()}")
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
