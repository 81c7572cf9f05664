"""What the distributions declare is what their code imports, and the client library needs no more than the base."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Set
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
from anyio._backends import _asyncio as anyio_state
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aiocontainerd.cli import programs

REPOSITORY = Path(__file__).resolve().parents[1]
ROOTS = [REPOSITORY, *sorted(path.parent for path in REPOSITORY.glob("[pc]*/*/pyproject.toml"))]
OURS = "aiocontainerd"
TOOLS = {"dev"}
"""Extras of programs, and of what only `api/generate.py` imports."""
NAMED = {"uvloop": '"use_uvloop": True'}
"""Packages that are used without an import: what uses them says this."""


def project(root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


def names(requirements: list[str]) -> set[str]:
    """Return the names of distributions that are not ours."""
    found = {canonicalize_name(Requirement(line).name) for line in requirements}
    return {name for name in found if not name.startswith(OURS)}


def declared(root: Path, *, without: Set[str] = frozenset()) -> set[str]:
    """Return the names of what a distribution requires, its extras included but for some."""
    table = project(root)
    extras = {name: lines for name, lines in table.get("optional-dependencies", {}).items() if name not in without}
    return names([*table["dependencies"], *(line for lines in extras.values() for line in lines)])


def sources(root: Path) -> list[Path]:
    folders = [path for path in root.glob(f"{OURS}*") if path.is_dir()]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


@cache
def imports(path: Path) -> list[str]:
    """Return the names of the modules that a file imports, wherever."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return found


@cache
def providers() -> dict[str, set[str]]:
    """Return the distributions that have a top-level package, by its name."""
    found: dict[str, set[str]] = {
        package: {canonicalize_name(name) for name in names} for package, names in packages_distributions().items()
    }
    return found | {"google": {"protobuf"}}


def foreign(path: Path) -> Iterator[str]:
    """Yield the distributions of others that a file imports from."""
    for module in imports(path):
        package = module.partition(".")[0]
        if package not in sys.stdlib_module_names and not package.startswith(OURS):
            yield from providers()[package]


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: project(root)["name"])
def test_whatever_is_imported_is_declared(root: Path) -> None:
    allowed = declared(root, without=TOOLS)
    generated = names(requires("betterproto2") or [])
    undeclared = {
        (str(path.relative_to(root)), name)
        for path in sources(root)
        for name in foreign(path)
        if name not in allowed and not ("gen" in path.parts and name in generated)
    }
    of_generator = {(path, name) for path, name in undeclared if path.endswith("api/generate.py")}
    assert undeclared - of_generator == set()
    assert {name for _, name in of_generator} <= {"protobuf"}  # which grpcio-tools brings


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: project(root)["name"])
def test_whatever_is_declared_is_used(root: Path) -> None:
    text = "\n".join(path.read_text() for path in sources(root))
    used = {name for path in sources(root) for name in foreign(path)}
    used |= {name for name, mark in NAMED.items() if mark in text}
    assert declared(root, without=TOOLS) - used == set()


def test_the_daemon_comes_with_every_plugin_of_ours() -> None:
    plugins = {project(root)["name"] for root in ROOTS if root.parent.name == "plugins"}
    listed = {line for line in project(REPOSITORY)["optional-dependencies"]["daemon"] if line.startswith(OURS)}
    assert listed == plugins


def test_a_program_knows_every_package_that_an_extra_brings() -> None:
    table = project(REPOSITORY)
    of_extras = names([line for extra in ("daemon", "cli") for line in table["optional-dependencies"][extra]])
    packages = {package for package, found in providers().items() if found & (of_extras - names(table["dependencies"]))}
    assert {package for package in packages if not package.startswith("_") and package != "pyximport"} == (
        programs.OF_EXTRAS
    )


def closure(wanted: list[str]) -> set[str]:
    """Return the names of all that these requirements bring to this machine."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in wanted]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(line) for line in requires(name) or []]
    return found


ON_THE_BASE = """
import importlib, pkgutil, sys

refused, roots = set({refused!r}), {roots!r}

class Refused:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in refused:
            raise ModuleNotFoundError("No module named " + repr(package), name=package)

sys.meta_path.insert(0, Refused())
for root in roots:
    module = importlib.import_module(root)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), root + "."):
        importlib.import_module(found.name)
{then}
"""


def on_the_base(*roots: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """Import modules where nothing is installed but what the base requires."""
    base = closure(project(REPOSITORY)["dependencies"])
    refused = sorted(package for package, found in providers().items() if not found & {OURS, *base})
    code = ON_THE_BASE.format(refused=refused, roots=roots, then=then)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("root", ["client", "distribution", "interfaces", "oci", "plugin", "snapshots", "wire"])
def test_the_base_is_enough_for(root: str) -> None:
    done = on_the_base(f"{OURS}.{root}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "function", "extra"),
    [("aiocontainerd", "daemon", "daemon"), ("actr", "actr", "cli"), ("aiocontainerd-plugin", "plugin", "daemon")],
)
def test_a_program_without_its_extra_says_which_in_one_line(program: str, function: str, extra: str) -> None:
    assert project(REPOSITORY)["scripts"][program] == f"{OURS}.cli.programs:{function}"
    done = on_the_base(f"{OURS}.cli.programs", then=f"module.{function}()")
    line = f"{program}: the package click is missing; pip install 'aiocontainerd[{extra}]' brings it\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_a_package_of_no_extra_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ModuleNotFoundError("No module named 'acme'", name="acme")

    monkeypatch.setattr("aiocontainerd.cli.actr.main.main", fails)
    with pytest.raises(ModuleNotFoundError, match="acme"):
        programs.actr()


PRIVATE = re.compile(r"\b([a-z0-9_]+)(?:\.[a-z0-9]\w*)*\._[a-z]\w*")


def private_modules() -> set[str]:
    """Return the distributions that have a private module which our code imports."""
    files = [path for root in ROOTS for path in sources(root)]
    modules = {module for path in files for module in imports(path) if PRIVATE.match(module)}
    return {
        name
        for module in modules
        for name in providers().get(module.partition(".")[0], ())
        if not module.startswith(OURS) and not name.startswith(OURS)
    }


@pytest.mark.parametrize("extra", ["daemon", "testing"])
def test_a_library_with_a_private_module_that_we_import_has_an_upper_bound(extra: str) -> None:
    table = project(REPOSITORY)
    lines = [*table["dependencies"], *table["optional-dependencies"][extra]]
    bounded = {canonicalize_name(Requirement(line).name) for line in lines if "<" in line}
    assert private_modules() <= {"anyio"}, "pin what is relied on in a test below"
    assert private_modules() <= bounded


def test_the_base_has_no_need_of_a_private_module() -> None:
    done = on_the_base(f"{OURS}.client", f"{OURS}.distribution", then="assert 'aiocontainerd.guard' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.anyio
async def test_anyio_keeps_the_scopes_of_a_task_as_the_guard_reads_them() -> None:
    task = asyncio.current_task()
    assert task is not None
    with anyio.CancelScope(shield=True) as outer, anyio.CancelScope() as inner:
        await anyio.lowlevel.checkpoint()
        state = anyio_state._task_states[task]
        assert state.cancel_scope is inner
        assert inner._parent_scope is outer
        assert (outer.shield, inner.shield) == (True, False)
        assert inner._cancel_handle is None
        inner.cancel()
        assert inner._cancel_handle is not None
