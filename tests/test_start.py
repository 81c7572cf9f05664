"""What the daemon and its client may not import before they serve or answer: start-up is a budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

READY = """
import sys
from aiocontainerd.cli.daemon import main
from aiocontainerd.sys import systemd

def tell(state, limit_s):
    if state == systemd.READY:
        print(*sys.modules, sep="\\n", flush=True)
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)

systemd.notify = tell
main(sys.argv[1:])
"""
VERSION = """
import sys
from aiocontainerd.cli.actr.main import main
try:
    main()
finally:
    print(*sys.modules, sep="\\n", flush=True)
"""
OWN_VERSION = """
import sys
from aiocontainerd.cli import programs
try:
    programs.{}()
finally:
    print(*sys.modules, sep="\\n", flush=True)
"""
CONFIG = """version = 3
imports = []
[plugins."io.containerd.shim.v1.manager"]
socket_dir = "{0}/s"
[plugins."io.containerd.shim-launcher.v1.aio"]
fork_server = false
cgroup = ""
"""
HEAVY = (
    "aiohttp", "cryptography", "dateutil", "google.protobuf", "grpc", "isal", "packaging", "re2", "rich", "tarfile",
    "zstandard",
)  # fmt: skip
"""Imported by neither, each of them dearer than a plugin."""


def imported(program: str, *args: str) -> set[str]:
    """Return the modules that a program names on its standard output."""
    command = [sys.executable, "-c", program, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.stdout, done.stderr
    return set(done.stdout.split())


def below(modules: set[str], *packages: str) -> list[str]:
    return sorted(m for m in modules if any(m == one or m.startswith(f"{one}.") for one in packages))


@pytest.mark.root
def test_a_daemon_that_is_ready_has_not_imported_what_it_may_never_need(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    with TemporaryDirectory(prefix="aio-") as sockets:  # a path that sockets' names fit behind
        config.write_text(CONFIG.format(sockets))
        directories = [f"--{name}={tmp_path / name}" for name in ("address", "root", "state")]
        modules = imported(READY, "--config", str(config), *directories)
    assert "aiocontainerd_services.tasks" in modules
    api = [name for name in below(modules, "aiocontainerd.api.gen") if name.count(".") > 3]
    assert below(modules, *HEAVY, "grpclib", "h2", "aiocontainerd.client.client") + api == []


def test_the_version_is_asked_for_without_what_other_commands_use(tmp_path: Path) -> None:
    modules = imported(VERSION, "-a", str(tmp_path / "none.sock"), "version")
    assert "aiocontainerd.client.client" in modules
    assert below(modules, *HEAVY, "anyio", "uvloop", "pluggy", "sqlite3", "aiocontainerd.host.registry") == []


@pytest.mark.parametrize(
    ("function", "too_much"),
    [("daemon", ()), ("plugin", ()), ("actr", ("msgspec", "aiocontainerd.config", "aiocontainerd.client"))],
)
def test_a_program_prints_its_own_version_without_an_event_loop(function: str, too_much: tuple[str, ...]) -> None:
    modules = imported(OWN_VERSION.format(function), "--version")
    assert "aiocontainerd.cli.programs" in modules
    loop = ("asyncio", "anyio", "uvloop", "grpclib", "betterproto2", "pluggy", "sqlite3")
    assert below(modules, *HEAVY, *loop, *too_much, "aiocontainerd.host", "aiocontainerd.rpc") == []
