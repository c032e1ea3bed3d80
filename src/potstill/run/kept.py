"""What was measured on this machine, kept in files for a month: for this hardware and these versions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch

from .._version import __version__
from ..errors import PotstillError
from ..files import write_atomically
from ..machine.runtime import Runtime
from .environment import commit, device_name
from .progress import Reporter

#: Days for which what was measured is taken as true.
DAYS = 30

T = TypeVar("T")


class Kept:
    """Records of dataclasses, measured when they are first asked for; `folder`: None where no file is to keep them."""

    def __init__(self, reporter: Reporter, folder: Path | None):
        self._reporter, self._folder = reporter, folder
        self._known = dict[str, Any]()
        #: Seconds that measuring took, how often it was done, and seconds since each that was found was made.
        self._spent, self._made, self._ages = 0.0, 0, list[float]()

    def find(self, words: str, kind: Mapping[str, Any], form: Callable[..., T], measure: Callable[[], T]) -> T:
        """What is known of a kind: from before, from an earlier call on such hardware, or measured."""
        versions = {"potstill": __version__, "commit": commit(), "torch": torch.__version__}
        key = json.dumps([form.__name__, kind, device_name(Runtime(device=kind["device"])), versions], default=str)
        if key not in self._known:
            path = self._folder and self._folder / f"{sha256(key.encode()).hexdigest()[:24]}.json"
            self._known[key] = self._read(path, form) or self._measured(words, path, key, measure)
        return self._known[key]

    def _read(self, path: Path | None, form: Callable[..., T]) -> T | None:
        """What was kept, if it is whole and not too old."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_text()) if path else {}
            age = time.time() - record["made"]
            if age < DAYS * 86400:
                found = form(**record["found"])
                self._ages.append(age)
                return found
        return None

    def _measured(self, words: str, path: Path | None, key: str, measure: Callable[[], T]) -> T:
        self._made += 1
        self._reporter.say(f"timing {self._made}: {words}")
        started = time.perf_counter()
        found = measure()
        self._spent += time.perf_counter() - started
        if path:
            record = {"kind": json.loads(key), "made": time.time(), "found": asdict(found)}  # type: ignore[call-overload]
            with suppress(OSError, PotstillError):  # a cache that cannot be written is none
                write_atomically(path, json.dumps(record, indent=1) + "\n")
        return found

    def told(self) -> str:
        """Where the numbers are from."""
        made = f"{self._made} timed now in {self._spent:.0f} s" if self._made else ""
        found = f"{len(self._ages)} found in the cache, the oldest made {_ago(max(self._ages))}" if self._ages else ""
        return ", ".join(filter(None, (made, found))) or "nothing had to be timed"


def _ago(seconds: float) -> str:
    hours = seconds / 3600
    if hours < 2:
        return f"{seconds / 60:.0f} min ago"
    return f"{hours:.0f} h ago" if hours < 48 else f"{hours / 24:.0f} days ago"
