"""What may import what, and what a start does not import."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "aiocontainerd"
PLUGINS = sorted((REPOSITORY / "plugins").glob("*/aiocontainerd_*"))
CORE_FILES = [p for p in sorted(CORE.rglob("*.py")) if "gen" not in p.relative_to(CORE).parts]


def imported(path: Path) -> Iterator[str]:
    """The names of every import statement of a file, wherever it stands."""
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
        "import sys; from aiocontainerd import daemon, discovery; from aiocontainerd.cli import daemon as cli\n"
        f"print(*[m for m in sys.modules if m.startswith('aiocontainerd.api.gen') or m in {heavy!r}])"
    )
    assert printed(code) == []


def test_finding_every_plugin_imports_no_message() -> None:
    code = (
        "import sys; from aiocontainerd import discovery; discovery.all_registrations()\n"
        "print(*[m for m in sys.modules if m.startswith('aiocontainerd.api.gen')])"
    )
    assert printed(code) == []


def test_the_version_is_told_at_once() -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "aiocontainerd.cli.daemon", "--version"], capture_output=True, text=True, check=True
        )
        took.append(time.perf_counter() - began)
    assert done.stdout.startswith("aiocontainerd ")
    assert min(took) < 2.0
