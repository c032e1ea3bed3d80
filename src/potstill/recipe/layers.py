"""Layers of a recipe: nested dictionaries, or flat ones with dotted keys, from files, command-line words and Python.

Several become one by `merge`, later ones over earlier ones, key by key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..methods import METHODS
from .names import in_full
from .text import from_yaml

Layer = Mapping[str, Any]

#: Beneath all layers: whose method's keys a recipe has that names none.
BY_DEFAULT: Layer = {"method": "dsdm"}

#: The folder of the shipped studies, which are no recipes (run/paper.py).
STUDIES = "paper/"
#: Bytes of a recipe file at most: the longest shipped one has a few hundred.
LARGEST_FILE = 1_000_000
#: Sections within sections, and more than any recipe has.
DEEPEST = 8


def merge(*layers: Layer) -> dict[str, Any]:
    """One nested dictionary; dotted keys open sections, later layers win key by key.

    A `factor` in a layer that names no parameterisation is that of tiles, whatever earlier layers store.

    A `method` section that names another method than the last that is named is left out: its keys are no keys of that.
    `method: dm` is short for a section with a name alone. Where the method is known, short names of its keys are put in
    full (`names`).

    Raises:
        UsageError: a key below one that has a single value, or below too many others, or twice in a layer.
    """
    nested = [_nested(layer) for layer in layers]
    names = [name for layer in nested if (name := _method_name(layer)) is not None]
    merged: dict[str, Any] = {}
    for layer in nested:
        if _method_name(layer) not in (None, *names[-1:]):
            del layer["method"]
        _put(merged, _in_full(layer, names[-1] if names else None), ())
    return merged


def _in_full(layer: dict[str, Any], method: Any) -> dict[str, Any]:
    """A layer with the keys of its method, and those of each in `methods`, under their full names."""
    full, parts = {}, layer.get("methods")
    if "method" in layer:
        full["method"] = _keys_in_full(layer["method"], method, "method.")
    if isinstance(parts, Mapping):
        full["methods"] = {name: _keys_in_full(keys, name, f"methods.{name}.") for name, keys in parts.items()}
    return layer | full


def _keys_in_full(keys: Any, method: Any, above: str) -> Any:
    known = isinstance(keys, Mapping) and isinstance(method, str) and method in METHODS
    return in_full(keys, METHODS[method].Config, above) if known else keys


def _nested(layer: Layer) -> dict[str, Any]:
    nested: dict[str, Any] = {"parameterisation": "tiles"} if "factor" in layer else {}
    named = isinstance(layer.get("method"), str)
    _put(nested, {"method.name" if named and key == "method" else key: value for key, value in layer.items()}, ())
    return nested


def _method_name(layer: Layer) -> Any:
    method = layer.get("method")
    return method.get("name") if isinstance(method, Mapping) else None


def _put(target: dict[str, Any], layer: Layer, above: tuple[str, ...]) -> None:
    for dotted, value in layer.items():
        *sections, key = path = str(dotted).split(".")
        if len(above) + len(path) > DEEPEST:
            raise UsageError(f"unknown recipe key {'.'.join((*above, *path))[:60]!r}: no key lies so deep")
        place = target
        for name in sections:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UsageError(f"recipe key {'.'.join(path)!r}: {name!r} has a single value, not a section")
        if isinstance(value, Mapping):
            if not isinstance(place.get(key), dict):
                place[key] = {}
            _put(place[key], value, (*above, *path))
        else:
            place[key] = value.item() if isinstance(value, np.generic) else value  # as loops over arrays have it


def flat(layer: Layer, above: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a nested layer by their dotted names."""
    for key, value in layer.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def read_recipe(source: str | Path) -> dict[str, Any]:
    """The layer in a recipe file: a path, or the name of a shipped recipe such as "dsdm/cifar10_ipc10".

    Raises:
        UsageError: no such file or recipe (the shipped ones are listed), or not a mapping in YAML.
    """
    if not isinstance(source, (str, Path)):
        raise UsageError(
            f"a recipe of type {type(source).__name__}: give keys, or the name of a file or shipped recipe"
        )
    if os.path.isfile(source):
        return parse_recipe(_text_of(Path(source)), str(source))
    layer = shipped(str(source))
    if layer is None:
        raise UsageError(f"no recipe {str(source)!r}: give a file, or one of {', '.join(recipe_names())}")
    return dict(layer)


@cache
def shipped(name: str) -> Layer | None:
    """The layer of that name in the package, None where there is none."""
    path = _shipped().get(name)
    return None if path is None else parse_recipe(path.read_text(encoding="utf-8"), name)


def parse_recipe(text: str, source: str) -> dict[str, Any]:
    """The layer in a recipe's text; `source` is named in errors."""
    try:
        layer = from_yaml(text)
    except ValueError as error:
        raise UsageError(f"{source}: not valid YAML ({error})") from error
    if not isinstance(layer, dict):
        found = "nothing" if layer is None else f"a {type(layer).__name__}"
        raise UsageError(f"{source}: a recipe is a mapping of keys, found {found}")
    return layer


def recipe_names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(name for name in _shipped() if not name.startswith(STUDIES))


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """Flat layer from command-line words: `--method.steps 2000` or `--method.steps=2000`; values are YAML.

    Raises:
        UsageError: a word that is no key, or a key without a value.
    """
    layer: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UsageError(f"unexpected argument {word!r}: recipe keys look like --method.steps 2000")
        key, has_value, value = word[2:].partition("=")
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key}: no value given; recipe keys look like --method.steps 2000")
            value = rest.pop(0)
        try:
            layer[key.replace("-", "_")] = from_yaml(value)
        except ValueError:
            layer[key.replace("-", "_")] = value
    return layer


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{path}: too large for a recipe, need at most {LARGEST_FILE:,} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


@cache
def _shipped() -> dict[str, Path]:
    root = Path(str(resources.files("potstill") / "recipes"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.yaml")}
