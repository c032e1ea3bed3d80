"""Names to things. One instance per kind (methods, networks, data sets, protocols); unknown names list the known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

from .errors import UsageError

T = TypeVar("T")
E = TypeVar("E")  # what is decorated keeps its own type


class Registry(Generic[T]):
    """A dictionary that is filled by a decorator and answers a misspelt name with the names it knows."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator: enter the decorated object under `name`, once; a class learns its `name`."""

        def enter(entry: E) -> E:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name] = cast(T, entry)
            if isinstance(entry, type):
                setattr(entry, "name", name)  # noqa: B010 (not every class declares it)
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(f"unknown {self.kind} {name!r}: known are {', '.join(sorted(self._entries))}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
