"""What each key of a section is: type, default and meaning, from the dataclass that declares it and its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any

from ..errors import UsageError
from ..methods import METHODS
from .layers import flat
from .resolve import in_words, kinds, preset, shown
from .sections import Recipe


@dataclass(frozen=True)
class Key:
    """One key of a recipe by its full name; `kind` and `default` as a recipe writes them."""

    name: str
    kind: str
    default: str
    meaning: str


def keys_of(method: str = "dsdm") -> list[Key]:
    """All keys of a recipe for a method, in the order of a resolved recipe; defaults are those of its preset."""
    rest = [key for name in kinds(Recipe) if name not in ("method_name", "method") for key in _of_field(Recipe, name)]
    name = Key("method.name", in_words(str), "dsdm", meanings(Recipe)["method_name"])
    own = dict(flat(preset(method, "potstill")))
    keys = [name, *section_keys(METHODS[method].Config, "method."), *rest]
    return [replace(key, default=_written(own[key.name])) if key.name in own else key for key in keys]


def find_keys(words: str, method: str = "dsdm") -> list[Key]:
    """The key of that full name, or all keys of a section.

    Raises:
        UsageError: neither; the sections are listed.
    """
    every = keys_of(method)
    found = [key for key in every if key.name == words or key.name.startswith(f"{words}.")]
    if not found:
        sections = dict.fromkeys(key.name.partition(".")[0] for key in every)
        raise UsageError(f"no key or section {words!r} with method {method!r}: known are {', '.join(sections)}")
    return found


def section_keys(cls: Any, above: str) -> list[Key]:
    """The keys of a section, those of sections within it included; `above` is its dotted name with a dot."""
    return [key for name in kinds(cls) for key in _of_field(cls, name, above)]


def _of_field(cls: Any, name: str, above: str = "") -> Iterator[Key]:
    kind = kinds(cls)[name]
    if is_dataclass(kind):
        yield from section_keys(kind, f"{above}{name}.")
        return
    (entry,) = (entry for entry in fields(cls) if entry.name == name)
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    yield Key(f"{above}{name}", in_words(kind), _written(default), meanings(cls)[name])


def _written(value: Any) -> str:
    """A value as a recipe has it."""
    value = list(value) if isinstance(value, tuple) else value
    return value if isinstance(value, str) and value else shown(value)


def meanings(cls: type) -> dict[str, str]:
    """The entries under Attributes in the docstrings of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, listed = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): ((?:.*(?:\n {5,})?)+)", listed, flags=re.MULTILINE):
            found[name] = " ".join(text.split())
    return found
