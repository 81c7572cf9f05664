"""The rooms of the shim import one way, and the rooms below `rest` know nothing of rest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import aiocontainerd_shim
import pytest

SHIM = Path(aiocontainerd_shim.__file__).parent
MAY_IMPORT: dict[str, set[str]] = {
    "children": set(),
    "oci": {"children"},
    "cgroups": set(),
    "io": set(),
    "task": {"children", "oci", "cgroups", "io"},
    "rest": {"children", "cgroups", "io", "task"},
    "program": {"children", "oci", "cgroups", "task", "rest"},
    "fork": {"children", "oci", "cgroups", "task", "rest", "program"},
}


def rooms_imported(path: Path) -> Iterator[str]:
    """Yield the rooms that a module names in its imports, those for types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("aiocontainerd_shim."))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_says(room: str) -> None:
    imported = {other for path in (SHIM / room).glob("*.py") for other in rooms_imported(path)} - {room}
    assert imported - MAY_IMPORT[room] == set()


def test_every_room_has_a_rule() -> None:
    rooms = {path.name for path in SHIM.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_lists_its_modules(room: str) -> None:
    modules = {path.stem for path in (SHIM / room).glob("*.py")} - {"__init__"}
    listed = set(re.findall(r"(?m)^(\w+)  +", (SHIM / room / "__init__.py").read_text()))
    assert listed == modules


def test_the_program_sees_four_names_of_rest() -> None:
    seen = set()
    for path in [*(SHIM / "program").glob("*.py"), *(SHIM / "fork").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiocontainerd_shim.rest"):
                seen |= {alias.name for alias in node.names}
    assert seen == {"AlwaysAwake", "Parts", "Resident", "Rest"}
