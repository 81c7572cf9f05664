"""The import of an isolated plugin's module is tried in a process of its own, which it may end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.config.records import PluginPolicy, PythonPlugin
from aiocontainerd.host import discovery
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.registry import Registry

ONLY_DECLARED = PluginPolicy(allow=("nothing-that-is-installed",))
ROW = "python_plugins.acme"


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the path of a module that is importable here and in child processes."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "acme_tried.py"
    sys.modules.pop("acme_tried", None)


def reason(limit_s: float = 60.0) -> str:
    """Return why the module is not loaded."""
    registry = Registry()
    declared = {"acme": PythonPlugin(module="acme_tried", isolation="process")}
    discovery.discover(registry, declared, ONLY_DECLARED, Placement(import_limit_s=limit_s))
    row = registry.get(ROW)
    assert row is not None
    return row.reason


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import ctypes\nctypes.string_at(0)\n", "its import ends its process by SIGSEGV at {}:2 in <module>"),
        (
            "import os\nprint('no licence', flush=True)\nos._exit(3)\n",
            "its import ends its process with status 3 (no licence)",
        ),
        ("import os\nos.kill(os.getpid(), 9)\n", "its import ends its process by SIGKILL"),
    ],
)
def test_an_import_that_ends_its_process_is_a_row(acme: Path, code: str, text: str) -> None:
    acme.write_text(code)
    assert reason() == f"{text.format(acme)}; the daemon does not import it"
    assert "acme_tried" not in sys.modules


def test_an_import_that_hangs_is_ended_and_its_line_is_told(acme: Path) -> None:
    acme.write_text("import threading\nthreading.Event().wait()\n")
    assert reason(3.0) == (
        f"its import did not end within 3s (io.containerd.timeout.plugin.init) at {acme}:2 in <module>; "
        "the daemon does not import it"
    )


def test_an_exception_is_told_by_the_import_that_follows(acme: Path) -> None:
    acme.write_text("raise SystemExit(4)\n")
    assert reason() == f"SystemExit: 4 ({acme.parent.name}/{acme.name}:1 in <module>)"


def test_the_registration_is_that_of_the_daemons_import(acme: Path) -> None:
    acme.write_text(
        "from aiocontainerd.plugin import SnapshotterBase, kinds, register\n"
        '@register(kinds.SNAPSHOTTER, "acme")\nclass Acme(SnapshotterBase): ...\n'
    )
    assert "which is not installed" in reason_of_placing()
    assert "acme_tried" in sys.modules


def reason_of_placing() -> str:
    registry = Registry()
    declared = {"acme": PythonPlugin(module="acme_tried", isolation="process")}
    discovery.discover(registry, declared, ONLY_DECLARED)
    return next(plugin.reason for plugin in registry.plugins if plugin.reason and "acme:" in plugin.id)
