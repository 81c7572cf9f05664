"""Give all suites what they share: the event loop, and the target to test.

A contract class, such as `SnapshotterContract`, gets what it checks from fixtures of whoever subclasses it. The `Test`
class beside it in each suite's module gets the same from `--target` (`aiocontainerd/testing/target.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from aiocontainerd.testing.blocking import refused
from aiocontainerd.testing.target import Bench, Target, TargetError


class Contract:
    """Base of the contract classes: asyncio, whatever the project that runs them uses for its own tests."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"


class Targeted(Contract):
    """Base of the suites' own test classes: everything comes from `--target`."""

    kind: ClassVar[str]

    @pytest.fixture(autouse=True)
    def no_blocking_calls(self, suite_target: Target) -> Iterator[None]:
        """Fail the test for a blocking call of the target in the event loop, and for a target that cannot be loaded."""
        if not suite_target.remote:
            from aiocontainerd.testing.plugin_bench import loaded

            try:
                loaded(suite_target.path)
            except TargetError as error:
                pytest.fail(str(error), pytrace=False)
        with refused(suite_target.modules()):
            yield

    @pytest.fixture
    async def bench(self, suite_target: Target, tmp_path: Path) -> AsyncIterator[Bench]:
        """Give the bench that opens instances of the target. Remove what they leave in a daemon at the end."""
        if suite_target.remote:
            from aiocontainerd.testing.socket_bench import socket_bench

            async with socket_bench(suite_target) as bench:
                yield bench
        else:
            from aiocontainerd.testing.plugin_bench import PluginBench

            yield PluginBench(suite_target, tmp_path)
