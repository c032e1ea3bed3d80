"""Keeps the direction of imports that `docs/architecture.md` draws. A new module or folder must be placed in LEVELS."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "potstill"

# Lowest first. A room is a module or a folder; it may import from rooms of lower levels and from itself.
LEVELS = (
    {"errors", "_version", "_moved"},
    {"checks", "files", "tensors", "escape"},
    {"spec", "spectrogram", "scores", "registry", "seeding", "machine"},
    {"matching"},
    {"networks", "data", "sets"},
    {"learning"},
    {"methods", "evaluation"},
    {"recipe"},
    {"run"},
    {"report"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
SIDEWAYS: set[tuple[str, str]] = set()  # (importer, imported) that are allowed within a level
FREE = {"__init__"}  # gathers the public names from wherever they are

LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imported_rooms(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, room) for every import of this package in the file, those inside functions included."""
    folder = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [root.name, *folder[: len(folder) + 1 - node.level]] if node.level else []
            stem = above + (node.module.split(".") if node.module else [])
            targets = [[*stem, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == root.name:
                is_room = len(target) > 1 and ((root / target[1]).is_dir() or (root / f"{target[1]}.py").is_file())
                yield node.lineno, target[1] if is_room else "__init__"


def problems(root: Path) -> list[str]:
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        room = name.parts[0].removesuffix(".py")
        if room not in LEVEL_OF:
            found.append(f"{name}: {room} has no place in LEVELS")
            continue
        for line, other in imported_rooms(path, root):
            allowed = room in FREE or other == room or (room, other) in SIDEWAYS
            if not allowed and LEVEL_OF.get(other, len(LEVELS)) >= LEVEL_OF[room]:
                found.append(f"{name}:{line}: {room} must not import {other}")
    return found


def test_imports_point_downwards():
    assert PACKAGE.is_dir()
    assert not problems(PACKAGE)


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("matching/statistics.py", "from ..learning import fit", "matching must not import learning"),
        ("matching/statistics.py", "def f():\n    import potstill.data.idx", "matching must not import data"),
        ("data/idx.py", "def f():\n    from .. import cli", "data must not import cli"),
        ("methods/dsdm.py", "from potstill.evaluation import evaluate", "methods must not import evaluation"),
        ("evaluation.py", "from . import pool, methods", "evaluation must not import methods"),
        ("networks/deep/net.py", "from ...learning import fit", "networks must not import learning"),
        ("run/store.py", "from .. import __version__", "run must not import __init__"),
        ("cellar.py", "import torch", "cellar has no place in LEVELS"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, source: str, complaint: str):
    root = _tree(tmp_path, {file: source})
    assert any(complaint in problem for problem in problems(root))


def test_allowed_imports_pass(tmp_path: Path):
    sources = {
        "__init__.py": "from .cli import main",
        "methods/dsdm.py": "from . import base\nfrom ..learning import pool\nfrom ..matching import statistics",
        "cli.py": "import potstill\nfrom potstill.run.store import RunStore",
    }
    assert not problems(_tree(tmp_path, sources))


def _tree(folder: Path, sources: dict[str, str]) -> Path:
    """A package with empty modules in every room, and the given sources over them."""
    root = folder / PACKAGE.name
    empty = {f"{room}.py": "" for room in LEVEL_OF.keys() - {file.split("/")[0] for file in sources}}
    for file, source in {**empty, **sources}.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root
