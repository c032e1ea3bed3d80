"""From layers to a checked `Recipe`, or to one line about the first key that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from ..errors import UsageError
from ..methods import METHODS, Method
from .layers import Layer, merge
from .sections import FIDELITIES, Recipe

T = TypeVar("T")

#: A kind of value in a user's words, alone and in lists.
WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    int | float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("true or false", "truth values"),
    NoneType: ("null", "nulls"),
}


def resolve(*layers: Layer) -> Recipe:
    """Merge layers, check them and build the recipe.

    Args:
        layers: nested dictionaries, or flat ones with dotted keys; later ones win.
    Raises:
        UsageError: an unknown key, a value of the wrong type or outside its range; the message names the key.
    """
    given = merge(*layers)
    per_method = _section(given.pop("methods", {}), "methods.")
    for name in per_method:
        _ = METHODS[name]
    method = _section(given.pop("method", {}), "method.")
    name = _name(method.pop("name", "dsdm"), "method.name")
    cls = METHODS[name]
    fidelity = _name(given.pop("fidelity", "potstill"), "fidelity")
    preset = merge(_preset(cls, name, fidelity))
    method = merge(preset.pop("method", {}), _section(per_method.get(name, {}), f"methods.{name}."), method)
    sections = merge(preset, given)
    _refuse_unknown(sections, _sections(), "", "")
    values = {key: _convert(kind, sections[key], key) for key, kind in _sections().items() if key in sections}
    config = _build(cls.Config, method, "method.", f" of method {name!r}")
    return Recipe(method_name=name, method=config, fidelity=fidelity, **values)


def _preset(cls: type[Method[Any]], name: str, fidelity: str) -> Layer:
    if fidelity not in FIDELITIES:
        raise UsageError(f"fidelity={fidelity!r}: use one of {', '.join(FIDELITIES)}")
    if not cls.fidelity:
        return {}
    if fidelity not in cls.fidelity:
        raise UsageError(f"fidelity={fidelity!r} of method {name!r}: use one of {', '.join(cls.fidelity)}")
    return cls.fidelity[fidelity]


@cache
def kinds(cls: type) -> dict[str, Any]:
    """The keys of a section with their types."""
    hints = get_type_hints(cls)
    return {entry.name: hints[entry.name] for entry in fields(cls)}


def _sections() -> dict[str, Any]:
    """The keys of a recipe that do not depend on its method."""
    return {key: kind for key, kind in kinds(Recipe).items() if key not in ("method_name", "method", "fidelity")}


def _build(cls: type[T], given: Layer, above: str, owner: str = "") -> T:
    """A section from its keys. `above` is its dotted name with a dot at the end."""
    known = kinds(cls)
    _refuse_unknown(given, known, above, owner)
    values = {key: _convert(known[key], value, above + key) for key, value in given.items()}
    try:
        return cls(**values)
    except UsageError as error:
        own = str(error).partition("=")[0].partition(".")[0] in known
        raise UsageError(f"{above if own else ''}{error}") from error


def _convert(kind: Any, value: Any, key: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, _section(value, f"{key}."), f"{key}.")  # type: ignore[arg-type]
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        hint = " (put it in quotes)" if kind is str and not isinstance(value, (Mapping, list)) else ""
        raise UsageError(f"{key}={shown(value)}: need {in_words(kind)}{hint}") from None


def in_words(kind: Any) -> str:
    """A type as a user says it: "a whole number or auto"."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        count = "" if inner[-1] is ... else f"{len(inner)} "
        return f"a list of {count}{WORDS[inner[0]][1]}"
    if kind in WORDS:
        return WORDS[kind][0]
    return " or ".join(in_words(one) for one in get_args(kind))


def shown(value: Any) -> str:
    """A value as a recipe writes it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_unknown(given: Layer, known: Iterable[str], above: str, owner: str) -> None:
    known = {*known, *(() if above else ("method", "fidelity"))}
    for key in given:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            meant = f"did you mean {above}{close[0]}? " if close else ""
            listed = ", ".join(sorted(known)) or "none"
            raise UsageError(f"unknown recipe key {f'{above}{key}'[:80]!r}{owner}: {meant}known are {listed}")


def _section(value: Any, above: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"recipe key {above[:-1]!r}: expected a section of keys, found {shown(value)}")
    return dict(value)


def _name(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"recipe key {key!r}: expected a name, found {shown(value)}")
    return value
