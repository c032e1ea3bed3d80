"""YAML as recipes use it: JSON's kinds of values, and nothing that surprises.

YAML 1.2's rules for plain words, so that `no`, `on` and dates are texts and `1e3` is a number. A key given twice is
refused, not replaced in silence, and so are aliases, of which a few hundred bytes can stand for gigabytes.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_WORDS = (
    ("null", r"null|~|", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as its base class has it)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{self.peek_event().anchor} are not read: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))  # 010 is ten


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would take for something else than a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _WORDS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), [*_first, ""])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def from_yaml(text: str) -> Any:
    """The value that `text` writes.

    Raises:
        ValueError: no YAML, or YAML that is not read; the message is one line.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def to_yaml(record: Any, *, sort_keys: bool = False) -> str:
    """Text that `from_yaml` reads back to the same."""
    return yaml.dump(record, Dumper=_Dumper, sort_keys=sort_keys)


def shown(value: Any) -> str:
    """A value as a recipe writes it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
