"""What each key of a section is: type, default and meaning, from the dataclass that declares it and its docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from ..errors import UsageError
from ..methods import METHODS
from .names import kinds, short_names
from .resolve import in_words, resolve
from .sections import Recipe
from .text import shown


@dataclass(frozen=True)
class Key:
    """One key of a recipe by its full name; `kind` and `default` as a recipe writes them."""

    name: str
    kind: str
    default: str
    meaning: str


def keys_of(method: str = "dsdm") -> list[Key]:
    """All keys of a recipe for a method, in the order of a resolved recipe; defaults are those of its preset."""
    recipe = resolve({"method": method})
    name = Key("method.name", in_words(str), method, meanings(Recipe)["method_name"])
    rest = section_keys(recipe, "", without=("method_name", "method"))
    return [name, *section_keys(recipe.method, "method."), *rest]


def find_keys(words: str, method: str = "dsdm") -> list[Key]:
    """The key of that name, full or short, or all keys of a section.

    Raises:
        UsageError: neither; the sections are listed.
    """
    every = keys_of(method)
    short = {f"method.{short}": f"method.{full}" for short, full in short_names(METHODS[method].Config).items()}
    full = short.get(words, words)
    found = [key for key in every if key.name == full or key.name.startswith(f"{full}.")]
    if not found:
        sections = dict.fromkeys(key.name.partition(".")[0] for key in every)
        raise UsageError(f"no key or section {words!r} with method {method!r}: known are {', '.join(sections)}")
    return found


def section_keys(section: Any, above: str, *, without: Sequence[str] = ()) -> list[Key]:
    """The keys of a section, those of sections within it included, with its values as their defaults.

    `above` is its dotted name with a dot.
    """
    names = [name for name in kinds(type(section)) if name not in without]
    return [key for name in names for key in _of_field(section, name, above)]


def _of_field(section: Any, name: str, above: str) -> list[Key]:
    value, kind, meaning = getattr(section, name), kinds(type(section))[name], meanings(type(section))[name]
    if not is_dataclass(kind):
        return [Key(f"{above}{name}", in_words(kind), _written(value), meaning)]
    keys = section_keys(value, f"{above}{name}.")
    # Descent is a section of many methods: what one of them does with it is told with every key.
    return [replace(key, meaning=f"{meaning.rstrip('.')}; {key.meaning}") for key in keys] if above else keys


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
