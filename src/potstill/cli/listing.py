"""What `potstill list` says: the names of a kind with their first docstring line, and one entry's keys."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from ..data import DATASETS
from ..data.records import KnownSet
from ..evaluation import PROTOCOLS, Scheduled, find_protocol
from ..methods import METHODS
from ..networks import NETWORKS, arguments_of
from ..recipe import read_recipe, recipe_names
from ..recipe.keys import Key, find_keys, keys_of, section_keys
from ..run.paper import TABLES, read_plan, read_text
from ..spec import noun_of


def names(kind: str) -> dict[str, str]:
    """Name to one line, for a kind of thing."""
    if kind == "recipes":
        return {name: "" for name in recipe_names()}
    if kind == "studies":
        return {name: read_plan(name).title for name in TABLES}
    if kind == "keys":
        return {key.name: _line(key) for key in keys_of()}
    if kind == "protocols":
        return {name: protocol.about for name, protocol in PROTOCOLS.items()}
    if kind == "datasets":
        return {name: _facts(DATASETS[name]) for name in DATASETS}
    registry: Any = {"methods": METHODS, "networks": NETWORKS}[kind]
    return {name: _first_line(registry[name]) for name in registry}


def describe_keys(name: str, method: str | None = None) -> dict[str, Any]:
    """The keys of a section, or one key, for a method (`method`: which keys a `method` section has).

    Raises:
        UsageError: no such key, section or method.
    """
    keys = find_keys(name, method or "dsdm")
    return {"name": name, "keys": [asdict(key) for key in keys], "text": _text(keys)}


def describe(kind: str, name: str) -> dict[str, Any]:
    """One entry: its keys and defaults where it has any, and a text for the terminal.

    Raises:
        UsageError: an unknown name; the known are listed.
    """
    if kind == "keys":
        return describe_keys(name)
    if kind == "methods":
        method = METHODS[name]
        keys = section_keys(method.Config(), "method.")
        defaults = {key.name: default for key, default in zip(keys, _defaults(method.Config()), strict=True)}
        return {"name": name, "keys": defaults, "text": f"{inspect.getdoc(method)}\n\n{_text(keys)}".rstrip()}
    if kind == "recipes":
        import yaml

        recipe = read_recipe(name)
        return {"name": name, "recipe": recipe, "text": yaml.safe_dump(recipe, sort_keys=False).rstrip()}
    if kind == "studies":
        return {"name": name, "title": read_plan(name).title, "text": read_text(name).rstrip()}
    if kind == "protocols":
        protocol = find_protocol(name)
        if not isinstance(protocol, Scheduled):
            return {"name": name, "schedule": {}, "text": protocol.about}
        schedule = vars(protocol.schedule)
        return {"name": name, "schedule": schedule, "text": "\n".join(f"{k}: {v}" for k, v in schedule.items())}
    if kind == "datasets":
        known = DATASETS[name]
        lines = [_facts(known), f"classes: {', '.join(known.classes)}", f"mirror images keep the label: {known.mirror}"]
        return {"name": name, "classes": list(known.classes), "mirror": known.mirror, "text": "\n".join(lines)}
    arguments = arguments_of(name)
    taken = [f"{key}={'by image size' if value is None else value}" for key, value in arguments.items()]
    lines = [inspect.getdoc(NETWORKS[name]) or name, *([f"arguments: {name}:{','.join(taken)}"] if taken else [])]
    return {"name": name, "arguments": arguments, "text": "\n".join(lines)}


def _line(key: Key) -> str:
    return f"{key.default:12s} {key.kind}: {key.meaning}"


def _text(keys: list[Key]) -> str:
    return "\n".join(f"{key.name} = {key.default}  ({key.kind})\n    {key.meaning}" for key in keys)


def _defaults(config: Any) -> list[Any]:
    """Values of a section's keys, in the order of `section_keys`."""
    values = [getattr(config, entry.name) for entry in fields(config)]
    return [inner for value in values for inner in (_defaults(value) if is_dataclass(value) else [value])]


def _facts(known: KnownSet) -> str:
    train, test = known.published
    licence = f", {known.licence}" if known.licence else ""
    return f"{len(known.classes)} classes, {train} training and {test} test {noun_of(known.modality)}s{licence}"


def _first_line(entry: Any) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]
