"""Fixtures and rules of every test here: the asyncio backend, root, blocking calls in the event loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiocontainerd.testing import blocking

HERE = Path(__file__).parent
OUR_PACKAGES = [
    "aiocontainerd",
    *sorted(path.name for folder in ("plugins", "contrib") for path in HERE.glob(f"{folder}/*/aiocontainerd_*")),
]

MAY_BLOCK = [*blocking.MAY_BLOCK, "aiocontainerd_shim"]
"""A shim reads cgroup files in a process of its own, one for each container."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A blocking call of our code in an event loop fails the test."""
    with blocking.refused(OUR_PACKAGES, MAY_BLOCK):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, namespaces or cgroups"))
