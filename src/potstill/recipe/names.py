"""The one rule of short names.

A key in a section of a method's keys, such as `method.history.weight`, may also be given as SECTION_KEY,
`method.history_weight`, and by its own name alone, `method.smoothing`, where nothing else among the method's keys has
it. Layers are put in full before they are merged, so a later layer wins under whichever name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from ..errors import UsageError
from .text import shown


@cache
def kinds(cls: type) -> dict[str, Any]:
    """The keys of a section with their types."""
    hints = get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in fields(cls)}


def full_names(cls: type) -> list[str]:
    """The keys of a section, and those of sections in it as "history.weight"."""
    return [
        full
        for name, kind in kinds(cls).items()
        for full in ([f"{name}.{key}" for key in kinds(kind)] if is_dataclass(kind) else [name])  # type: ignore[arg-type]
    ]


@cache
def short_names(cls: type) -> dict[str, str]:
    """The short names of keys, each with the full one: "history_weight" and "weight" with "history.weight"."""
    inner = {full: full.partition(".")[2] for full in full_names(cls) if "." in full}
    times = Counter(inner.values())
    alone = {key: full for full, key in inner.items() if times[key] == 1}
    names = alone | {full.replace(".", "_"): full for full in inner}
    return {short: full for short, full in names.items() if short not in {*kinds(cls), "name"}}  # the method's own


def in_short(key: str) -> str:
    """A full key without its first section, for headings and folders: "history_weight" for "method.history.weight"."""
    return key.partition(".")[2].replace(".", "_") or key


def in_full(given: Mapping[str, Any], cls: type, above: str) -> dict[str, Any]:
    """The keys of a method, those with short names in their sections; `above` is its dotted name with a dot.

    Raises:
        UsageError: one key under two names with two values.
    """
    names = short_names(cls)
    keys = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    for short in [key for key in keys if key in names]:
        section, _, key = names[short].partition(".")
        value, place = keys.pop(short), keys.setdefault(section, {})
        if isinstance(place, dict) and place.setdefault(key, value) != value:
            raise UsageError(
                f"{above}{short}={shown(value)} and {above}{section}.{key}={shown(place[key])}: "
                "these are one key, give it once"
            )
    return keys
