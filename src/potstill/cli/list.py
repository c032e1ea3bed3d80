"""`potstill list`: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any

from . import options as shared

KINDS = ("methods", "datasets", "networks", "recipes", "protocols")


def add_parser(verbs: Any) -> None:
    parser = shared.add_verb(verbs, "list", run, "what there is to choose from")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("name", nargs="?", help="one of them, with its keys")


def run(options: argparse.Namespace) -> None:
    from .listing import describe, names

    if options.name is None:
        found = names(options.kind)
        lines = [f"{name:28s}{text}".rstrip() for name, text in found.items()]
        shared.show(options, {options.kind: found}, "\n".join(lines))
    else:
        record = describe(options.kind, options.name)
        shared.show(options, record, record["text"])
