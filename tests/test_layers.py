"""What may import what, and what a start does not import."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "aiocontainerd"
PLUGINS = sorted((REPOSITORY / "plugins").glob("*/aiocontainerd_*"))
CORE_FILES = [p for p in sorted(CORE.rglob("*.py")) if "gen" not in p.relative_to(CORE).parts]


def imported(path: Path) -> Iterator[str]:
    """Yield the names of every import statement of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def package(name: str) -> str:
    return name.partition(".")[0]


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_core_module_has_an_import_of_a_plugin() -> None:
    guilty = {
        str(path.relative_to(REPOSITORY)): name
        for path in CORE_FILES
        for name in imported(path)
        if package(name).startswith("aiocontainerd_")
    }
    assert guilty == {}


WORDS = frozenset(
    {
        "context",
        "durations",
        "errors",
        "gojson",
        "gotext",
        "events",
        "filters",
        "groups",
        "identifiers",
        "kinds",
        "labels",
        "timestamps",
        "typeurl",
    }
)
"""Modules at the top that every room uses and that use no room."""
RECORDS = frozenset({"interfaces", "oci", "sys"})
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "words": frozenset(),
    "sys": frozenset({"words"}),
    "oci": frozenset({"words", "sys"}),
    "interfaces": frozenset({"words", "oci", "sys"}),
    "guard": frozenset({"words", "interfaces"}),
    "config": frozenset({"words", "interfaces"}),
    "scaffold": frozenset({"words"}),
    "host": frozenset({"words", "interfaces", "guard", "config", "oci", "scaffold"}),
    "api": frozenset({"words"}),
    "wire": frozenset({"words", "api", *RECORDS}),
    "rpc": frozenset({"words", "api", "wire", "interfaces", "sys"}),
    "serve": frozenset({"words", "api", "wire", "rpc", "guard", *RECORDS}),
    "distribution": frozenset({"words", *RECORDS}),
    "index": frozenset({"words", "sys"}),
    "snapshots": frozenset({"words", "index", *RECORDS}),
    "client": frozenset({"words", "api", "wire", "rpc", "distribution", *RECORDS}),
    "daemon": frozenset({"words", "api", "wire", "rpc", "guard", "config", "host", *RECORDS}),
}
"""Room -> the rooms that its modules may name in an import, also inside of functions and for types.

`config` takes from `interfaces` the keys of the deadline classes. `serve` reads what `guard` and `rpc` count, for the
Plugins service. `host` reads of `scaffold` what the reference page shows.
"""
ABOVE = frozenset({"cli", "plugin", "testing"})
"""The programs and the suites stand above all rooms; `plugin` hands on names of many."""


def room_of(module: tuple[str, ...]) -> str:
    """Return the room of a module below `aiocontainerd`."""
    return "words" if module[0] in WORDS else module[0]


def rooms_imported(path: Path) -> Iterator[str]:
    """Yield the rooms that the imports of a file name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or package(node.module or "") != CORE.name:
            continue
        below = tuple((node.module or "").split(".")[1:])
        for found in [below] if below else [(alias.name,) for alias in node.names]:
            if found[0] != "__version__":
                yield room_of(found)


ONLY_IN: Mapping[str, tuple[str, ...]] = {
    "aiofiles": ("distribution",),
    "aiohttp": ("distribution", "testing"),
    "aiohttp_socks": ("distribution",),
    "blockbuster": ("testing",),
    "click": ("cli",),
    "grpclib": ("rpc",),
    "h2": ("rpc",),
    "hpack": ("rpc",),
    "packaging": ("host",),
    "pluggy": ("host",),
    "pytest": ("testing",),
    "re2": ("words",),
    "rich": ("cli",),
    "tomli_w": ("config",),
    "zstandard": ("distribution", "testing"),
}
"""Package of somebody else -> the rooms that may import it; one that is not here may be imported anywhere."""


@pytest.mark.parametrize("name", ONLY_IN)
def test_a_package_is_imported_where_it_is_used_only(name: str) -> None:
    rooms = {
        room_of(path.relative_to(CORE).with_suffix("").parts)
        for path in CORE_FILES
        if name in map(package, imported(path))
    }
    assert rooms == set(ONLY_IN[name])


def test_private_state_of_anyio_is_read_in_one_module() -> None:
    readers = [str(path.relative_to(CORE)) for path in CORE_FILES if "anyio._backends" in imported(path)]
    assert readers == ["guard/task_state.py"]


def test_rooms_import_one_way() -> None:
    guilty = set()
    for path in CORE_FILES:
        module = path.relative_to(CORE).with_suffix("").parts
        if module == ("__init__",):
            continue
        room = room_of(module)
        if room not in ABOVE:
            guilty |= {
                f"{path.relative_to(REPOSITORY)}: {other}"
                for other in rooms_imported(path)
                if other != room and other not in MAY_IMPORT[room]
            }
    assert sorted(guilty) == []


def test_nothing_below_the_programs_imports_them() -> None:
    guilty = {
        str(path.relative_to(REPOSITORY))
        for path in CORE_FILES
        if path.relative_to(CORE).parts[0] != "cli" and "cli" in rooms_imported(path)
    }
    assert guilty == set()


@pytest.mark.parametrize("room", sorted({*MAY_IMPORT, *ABOVE} - {"words", "plugin"}))
def test_a_room_says_what_it_imports_and_what_imports_it(room: str) -> None:
    text = ast.get_docstring(ast.parse((CORE / room / "__init__.py").read_text())) or ""
    assert len(re.findall(r"(?i)\bimport(?:s|ed)?\b", text)) > 1


def test_finding_every_plugin_imports_no_client() -> None:
    code = (
        "import sys; from aiocontainerd.daemon import run; from aiocontainerd.host import discovery\n"
        "discovery.all_registrations()\n"
        "print(*[m for m in sys.modules if m.startswith('aiocontainerd.client')])"
    )
    assert printed(code) == []


def modules_below(root: Path) -> dict[str, Path]:
    """Return the modules of a package by name; packages that hand on names are none."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        if "gen" not in parts and parts[-1] != "__init__":
            found[".".join(parts)] = path
    return found


def uses(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Return the modules that each module names in its imports, also those for types."""
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                found[name] |= named & modules.keys() - {name}
    return found


@pytest.mark.parametrize("root", [CORE, *PLUGINS], ids=lambda path: path.name)
def test_no_modules_import_each_other_in_a_circle(root: Path) -> None:
    try:
        TopologicalSorter(uses(modules_below(root))).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def table_of_paths() -> set[Path]:
    """Whatever the table of README.md names; a name without a folder is in that of the one before it."""
    named: set[Path] = set()
    for row in re.findall(r"(?m)^\| (`[^|]+) \|", (REPOSITORY / "README.md").read_text()):
        folder = REPOSITORY
        for pattern in re.findall(r"`([^`]+)`", row):
            for base in (REPOSITORY, folder):
                found = set(base.glob(pattern.rstrip("/")))
                if found:
                    break
            assert found, pattern
            named |= found
            folder = min(found).parent
    return named


def test_the_table_of_paths_has_every_room() -> None:
    rooms = {path for path in CORE.iterdir() if path.name[0] not in "._" and path.suffix in (".py", "")}
    rooms |= set((REPOSITORY / "plugins").iterdir()) | {
        REPOSITORY / name for name in ("contrib", "integration", "docs")
    }
    named = table_of_paths()
    assert [str(room) for room in sorted(rooms - {CORE / "cli", CORE / "__pycache__"} - named)] == []


@pytest.mark.parametrize("root", [CORE, *PLUGINS], ids=lambda path: path.name)
def test_who_imports_a_package_has_its_types(root: Path) -> None:
    assert (root / "py.typed").exists()


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_no_other_plugin(plugin: Path) -> None:
    others = {
        name
        for path in plugin.rglob("*.py")
        for name in imported(path)
        if package(name).startswith("aiocontainerd_") and package(name) != plugin.name
    }
    assert others == set()


def test_every_core_module_imports_without_any_plugin_package() -> None:
    names = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for p in CORE_FILES]
    names = [name for name in names if not name.startswith("aiocontainerd.testing")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*[m for m in sys.modules if m.startswith('aiocontainerd_') and not m.startswith('__editable__')])"
    )
    assert printed(code) == []


def test_the_program_imports_neither_messages_nor_heavy_libraries() -> None:
    heavy = ("aiohttp", "betterproto2", "grpclib", "h2", "isal", "re2", "rich", "sqlite3", "uvloop", "zstandard")
    code = (
        "import sys; from aiocontainerd.daemon import run; from aiocontainerd.host import discovery\n"
        "from aiocontainerd.cli import daemon as cli\n"
        f"print(*[m for m in sys.modules if m.startswith('aiocontainerd.api.gen') or m in {heavy!r}])"
    )
    assert printed(code) == []


def test_finding_every_plugin_imports_no_message() -> None:
    code = (
        "import sys; from aiocontainerd.host import discovery; discovery.all_registrations()\n"
        "print(*[m for m in sys.modules if m.startswith('aiocontainerd.api.gen')])"
    )
    assert printed(code) == []


def processor_s() -> float:
    """Return the processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_version_is_told_at_once() -> None:
    before = processor_s()
    done = subprocess.run(
        [sys.executable, "-m", "aiocontainerd.cli.daemon", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("aiocontainerd ")
    assert processor_s() - before < 1.0


def test_no_two_public_classes_of_the_core_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in CORE_FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(REPOSITORY)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
