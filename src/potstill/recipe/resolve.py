"""From layers to a checked `Recipe`, or to one line about the first key that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import is_dataclass, replace
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from ..errors import UsageError
from ..methods import METHODS
from ..sets.parameterisations import Factor
from .layers import BY_DEFAULT, Layer, flat, merge, shipped
from .names import full_names, kinds, short_names
from .sections import FIDELITIES, Recipe
from .text import shown

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
    given = merge(BY_DEFAULT, *layers)
    name = _name(_section(given["method"], "method.").get("name", "dsdm"), "method.name")
    fidelity = _name(given.pop("fidelity", "potstill"), "fidelity")
    cls = METHODS[name]
    given = merge(preset(name, fidelity), given)
    method = {key: value for key, value in given.pop("method", {}).items() if key != "name"}
    _refuse_unknown(given, Recipe, {*_sections(), "method", "fidelity"}, "")
    given = {"parameterisation": cls.stores, **given}
    values = {key: _convert(_sections()[key], value, key) for key, value in given.items()}
    config = _build(cls.Config(), method, "method.", f" of method {name!r}")
    return Recipe(method_name=name, method=config, fidelity=fidelity, **values)


def preset(method: str, fidelity: str) -> Layer:
    """The shipped layer that `fidelity` stands for: `METHOD/as_paper`, `as_code` or `as_potstill`; empty where none is.

    Raises:
        UsageError: a word that is no fidelity.
    """
    if fidelity not in FIDELITIES:
        raise UsageError(f"fidelity={fidelity!r}: use one of {', '.join(FIDELITIES)}")
    return shipped(f"{method}/as_{fidelity}") or {}


def of_method(layers: Iterable[Layer], name: str) -> dict[str, Any]:
    """The layer of one method of a comparison: what all share, and over it the method's own part of `methods`.

    Raises:
        UsageError: a part for a method that there is not.
    """
    shared = merge(*layers, {"method": {"name": name}})
    parts = _section(shared.pop("methods", {}), "methods.")
    for method in parts:
        _ = METHODS[method]
    return merge(shared, {"method": _section(parts.get(name, {}), f"methods.{name}.")})


def difference(there: Recipe, here: Recipe) -> str:
    """One key that tells two recipes' sets apart: `method.descent.momentum 0.5, not 0.9`."""
    old, new = dict(flat(there.to_dict())), dict(flat(here.to_dict()))
    planning = there.unplanned or here.unplanned
    unscored = ("evaluation", "saving", "runtime", "fidelity", *(() if planning else ("budget",)))
    for key in sorted(old | new):
        if old.get(key) != new.get(key) and key.partition(".")[0] not in unscored:
            return f"{key} {old.get(key)}, not {new.get(key)}"
    return f"recipe {there.hash()}, not {here.hash()}"


def _sections() -> dict[str, Any]:
    """The keys of a recipe that do not depend on its method."""
    return {key: kind for key, kind in kinds(Recipe).items() if key not in ("method_name", "method", "fidelity")}


def _build(default: T, given: Layer, above: str, owner: str = "") -> T:
    """A section by its keys, over those of `default`. `above` is its dotted name with a dot at the end."""
    known = kinds(type(default))
    _refuse_unknown(given, type(default), known, above, owner)
    values = {key: _convert(known[key], value, above + key, getattr(default, key)) for key, value in given.items()}
    try:
        return replace(default, **values)  # type: ignore[type-var]
    except UsageError as error:
        own = str(error).partition("=")[0].partition(".")[0] in known
        raise UsageError(f"{above if own else ''}{error}") from error


def _convert(kind: Any, value: Any, key: str, default: Any = None) -> Any:
    """A value as a key of that type has it; in a section the keys that are not given stay as in `default`."""
    if is_dataclass(kind):
        return _build(kind() if default is None else default, _section(value, f"{key}."), f"{key}.")  # type: ignore[operator]
    if kind == Factor and type(value) is int:
        value = (value, value)
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
        several = "a list of" if inner[-1] is ... else f"{WORDS[inner[0]][0]} or a list of {len(inner)}"
        return f"{several} {WORDS[inner[0]][1]}"
    if kind in WORDS:
        return WORDS[kind][0]
    return " or ".join(in_words(one) for one in get_args(kind))


def _refuse_unknown(given: Layer, cls: type, known: Collection[str], above: str, owner: str = "") -> None:
    """Raises UsageError at the first key of a section of `cls` that is not known. `owner`: whose the section is."""
    for key in given:
        if key in known:
            continue
        if key == "methods" and not above:
            raise UsageError(
                "recipe key 'methods': only comparisons and studies have keys by method; use method.KEY here"
            )
        names = {**(short_names(cls) if owner else {}), **{name: name for name in known}}
        close = get_close_matches(str(key), names, 1)
        meant = f"did you mean {above}{names[close[0]]}? " if close else ""
        listed = ", ".join(sorted(full_names(cls) if owner else known)) or "none"
        have = [name for name in METHODS if _has(METHODS[name].Config, key)] if owner else []
        others = f"; {', '.join(have)} have it (in a comparison or study: methods.NAME.{key})" if have else ""
        raise UsageError(f"unknown recipe key {f'{above}{key}'[:80]!r}{owner}: {meant}known are {listed}{others}")


def _has(cls: type, key: str) -> bool:
    return key in kinds(cls) or key in short_names(cls)


def _section(value: Any, above: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"recipe key {above[:-1]!r}: expected a section of keys, found {shown(value)}")
    return dict(value)


def _name(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"recipe key {key!r}: expected a name, found {shown(value)}")
    return value
