"""The client library and what it pulls with need none of the daemon's packages."""

from __future__ import annotations

import subprocess
import sys

DAEMON_ONLY = ("click", "google_re2", "isal", "pluggy", "re2", "rich", "uvloop", "zstandard")
SCRIPT = f"""
import importlib, importlib.abc, pkgutil, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {DAEMON_ONLY!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import aiocontainerd.client, aiocontainerd.distribution
aiocontainerd.client.Client
for package in (aiocontainerd.client, aiocontainerd.distribution):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
importlib.import_module("aiocontainerd.api").content.Info()
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("aiocontainerd.")}}
print(*sorted(rooms & {{"cli", "config", "daemon", "guard", "host", "plugin", "serve", "snapshots", "testing"}}))
"""


def test_every_module_imports_without_the_packages_and_rooms_of_the_daemon() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
