"""Fixtures and rules of every test here: the asyncio backend, root, blocking calls in the event loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster

OUR_PACKAGES = ["aiocontainerd", *sorted(p.name for p in Path(__file__).parent.glob("plugins/*/aiocontainerd_*"))]

MAY_BLOCK = ["aiocontainerd.testing", "aiocontainerd.sys.cgroup", "aiocontainerd_shim"]
"""Suites read the trees they check; a shim reads cgroup files in a process of its own, one for each container."""

QUICK_CALLS = (
    "os.access", "os.getcwd", "os.link", "os.listdir", "os.mkdir", "os.path.abspath", "os.path.islink",
    "os.path.ismount", "os.path.sameopenfile", "os.path.samestat", "os.readlink", "os.remove", "os.rename",
    "os.replace", "os.rmdir", "os.scandir", "os.stat", "os.statvfs", "os.symlink", "os.unlink",
)  # fmt: skip
"""Calls about names in the daemon's own small directories: quicker than a hop to a thread, so allowed in the loop."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A blocking call of our code in an event loop fails the test."""
    detector = BlockBuster(scanned_modules=OUR_PACKAGES, excluded_modules=MAY_BLOCK)
    for name in QUICK_CALLS:
        del detector.functions[name]
    detector.activate()
    yield
    detector.deactivate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, namespaces or cgroups"))
