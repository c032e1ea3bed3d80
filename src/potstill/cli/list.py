"""`potstill list`: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from . import options as shared

KINDS = ("methods", "datasets", "networks", "recipes", "studies", "protocols", "keys")


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(verbs, "list", run, "what there is to choose from")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", nargs="?", help="one of them, with its keys; of keys, a section or one key")
    parser.add_argument("method", nargs="?", help="list keys method NAME: the keys of that method")


def run(options: argparse.Namespace) -> None:
    from .listing import describe, describe_keys, names

    if options.method and options.kind != "keys":
        raise UsageError(f"unexpected argument {options.method!r}: see potstill list --help")
    if options.name is None:
        found = names(options.kind)
        width = max([26, *map(len, found)]) + 2
        lines = [f"{name:{width}s}{text}".rstrip() for name, text in found.items()]
        shared.show(options, {options.kind: found}, "\n".join(lines))
    else:
        by_key = options.kind == "keys"
        record = describe_keys(options.name, options.method) if by_key else describe(options.kind, options.name)
        shared.show(options, record, record["text"])
