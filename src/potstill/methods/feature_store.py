"""Real features kept in a folder, so that runs share them: other IPC values, other methods, the same run resumed.

What real images look like to a network depends on the network, the batch and the augmentation, not on the set that is
being distilled. Batches are named by a hash of all that determines them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import DataError
from ..files import require_writable, sweep, write_atomically
from ..machine.work import core_seconds
from ..tensors import map_tensors, pack

REMEDY = "delete the file to make it again"


@dataclass
class FeatureStore:
    """A folder of feature batches that any number of processes read and fill together.

    Attributes:
        folder: where they lie; made when first needed.
        device: that makes batches.
        reused_seconds, reused_core_seconds: what making batches took that were found here, by the clock and in work,
            whoever made them: a run that found them owes that time to an honest account.
        on_batch: called with (batches done, of how many) while the folder is being filled.
    """

    folder: Path
    device: str = "cpu"
    reused_seconds: float = 0.0
    reused_core_seconds: float = 0.0
    on_batch: Callable[[int, int], None] = field(default=lambda done, total: None, repr=False)

    def fill(self, batches: Sequence[tuple[str, Callable[[], Tensor]]]) -> None:
        """Make every batch that is not here yet, of (name, how to make it).

        Processes that fill the same folder divide the work: one that another is making is left to it, and waited for
        only when nothing else is left to do.
        """
        if not all(self._path(name).exists() for name, _ in batches):  # a shared folder may be read only
            require_writable(self.folder)
            sweep(self.folder)
        done = 0
        left = [*batches]
        for wait in (False, True):
            passed_over = []
            for name, make in left:
                try:
                    self._provide(name, make, wait=wait)
                    done += 1
                    self.on_batch(done, len(batches))
                except Timeout:
                    passed_over.append((name, make))
            left = passed_over

    def read(self, name: str) -> Tensor:
        """A batch; its memory belongs to the file and can be dropped by the system at need.

        Raises:
            DataError: missing or damaged; names the file and the remedy.
        """
        return self._open(name)[0]

    def _provide(self, name: str, make: Callable[[], Tensor], *, wait: bool) -> None:
        path = self._path(name)
        if path.exists():
            return self._count(name)
        with FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0):
            if path.exists():  # made while this process waited
                return self._count(name)
            started, worked = time.perf_counter(), core_seconds(self.device)
            features = make()
            seconds, work = time.perf_counter() - started, core_seconds(self.device) - worked
            took = {"seconds": f"{seconds:.3f}", "core_seconds": f"{work:.3f}"}
            write_atomically(path, pack({"features": features}, took))

    def _count(self, name: str) -> None:
        _, seconds, work = self._open(name)
        self.reused_seconds += seconds
        self.reused_core_seconds += work

    def _open(self, name: str) -> tuple[Tensor, float, float]:
        """The features of a batch, and the seconds they took of the clock and of work, as far as that was counted."""
        path = self._path(name)
        tensors, facts = map_tensors(path, "features", REMEDY)
        try:
            return tensors["features"], float(facts["seconds"]), float(facts.get("core_seconds", facts["seconds"]))
        except (KeyError, ValueError) as error:
            raise DataError(f"{path}: damaged features ({error}); {REMEDY}") from error

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
