"""What `potstill list` says: the names of a kind with their first docstring line, and one entry's keys."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

from ..data import DATASETS
from ..data.records import KnownSet
from ..evaluation import PROTOCOLS, Scheduled, find_protocol
from ..methods import METHODS
from ..networks import NETWORKS, arguments_of
from ..recipe import read_recipe, recipe_names


def names(kind: str) -> dict[str, str]:
    """Name to one line, for a kind of thing."""
    if kind == "recipes":
        return {name: "" for name in recipe_names()}
    if kind == "protocols":
        return {
            name: f"{s.epochs} epochs, {s.optimizer} {s.learning_rate:g}, batch {s.batch}"
            for name, protocol in PROTOCOLS.items()
            if isinstance(protocol, Scheduled) and (s := protocol.schedule)
        }
    if kind == "datasets":
        return {name: _facts(DATASETS[name]) for name in DATASETS}
    registry: Any = {"methods": METHODS, "networks": NETWORKS}[kind]
    return {name: _first_line(registry[name]) for name in registry}


def describe(kind: str, name: str) -> dict[str, Any]:
    """One entry: its keys and defaults where it has any, and a text for the terminal.

    Raises:
        UsageError: an unknown name; the known are listed.
    """
    if kind == "methods":
        method = METHODS[name]
        keys = {f"method.{f.name}": f.default for f in fields(method.Config) if f.default is not MISSING}
        lines = "\n".join(f"  {key:32s}{value}" for key, value in keys.items())
        return {
            "name": name,
            "keys": keys,
            "text": f"{inspect.getdoc(method)}\n\n{inspect.getdoc(method.Config)}\n\n{lines}",
        }
    if kind == "recipes":
        import yaml

        recipe = read_recipe(name)
        return {"name": name, "recipe": recipe, "text": yaml.safe_dump(recipe, sort_keys=False).rstrip()}
    if kind == "protocols":
        protocol = find_protocol(name)
        schedule = vars(protocol.schedule) if isinstance(protocol, Scheduled) else {"epochs": protocol.epochs}
        return {
            "name": name,
            "schedule": schedule,
            "text": "\n".join(f"{k}: {v}" for k, v in schedule.items()),
        }
    if kind == "datasets":
        known = DATASETS[name]
        lines = [_facts(known), f"classes: {', '.join(known.classes)}", f"mirror images keep the label: {known.mirror}"]
        return {"name": name, "classes": list(known.classes), "mirror": known.mirror, "text": "\n".join(lines)}
    arguments = arguments_of(name)
    taken = [f"{key}={'by image size' if value is None else value}" for key, value in arguments.items()]
    lines = [inspect.getdoc(NETWORKS[name]) or name, *([f"arguments: {name}:{','.join(taken)}"] if taken else [])]
    return {"name": name, "arguments": arguments, "text": "\n".join(lines)}


def _facts(known: KnownSet) -> str:
    train, test = known.published
    licence = f", {known.licence}" if known.licence else ""
    return f"{len(known.classes)} classes, {train} training and {test} test images{licence}"


def _first_line(entry: Any) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0]
