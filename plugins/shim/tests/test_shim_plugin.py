"""The registration of the launcher: when its fork server starts, and the limits it gets."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from aiocontainerd_shim import plugin
from aiocontainerd_shim.fork import limits
from aiocontainerd_shim.fork.launcher import AioLauncher
from aiocontainerd_shim.fork.limits import Limits

from aiocontainerd.host.registry import Registry
from aiocontainerd.testing import host

pytestmark = pytest.mark.anyio
(REGISTRATION,) = plugin.register_plugins()


async def test_the_fork_server_starts_once_the_daemon_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    attended, serves = anyio.Event(), Registry.serves

    async def attend(_launcher: AioLauncher) -> None:
        order.append("attends")
        attended.set()

    def begin_to_serve(registry: Registry) -> None:
        order.append("serves")
        serves(registry)

    monkeypatch.setattr(AioLauncher, "attend", attend)
    monkeypatch.setattr(Registry, "serves", begin_to_serve)
    config = plugin.Config(cgroup="")
    with anyio.fail_after(10):
        async with host.running(tmp_path, REGISTRATION, config=config):
            await attended.wait()
    assert order == ["serves", "attends"]


async def test_the_launcher_gets_the_limits_of_the_config(tmp_path: Path) -> None:
    config = plugin.Config(fork_server=False, cgroup="")
    async with host.running(tmp_path, REGISTRATION, config=config, timeout_s=7.0) as daemon:
        assert daemon.plugin.instance.limits == Limits(start_s=7.0, answer_s=7.0, idle_s=7.0, probe_s=7.0)


def test_each_limit_has_its_own_key() -> None:
    seconds = {limits.START: 1.0, limits.ANSWER: 2.0, limits.IDLE: 3.0, limits.PROBE: 0.0}
    found = Limits.from_timeouts(lambda timeout: seconds[timeout])
    assert found == Limits(start_s=1.0, answer_s=2.0, idle_s=3.0, probe_s=float("inf"))


def test_the_defaults_are_those_of_the_keys() -> None:
    from aiocontainerd.durations import parse

    assert Limits() == Limits.from_timeouts(lambda timeout: parse(timeout.default))
