"""A plugin in a process of its own that hangs, crashes or is restarted: what callers, log and operators are told."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiocontainerd_proxy import backoff, cgroups
from aiocontainerd_proxy.plugin import isolate_plugin

from aiocontainerd import api, kinds
from aiocontainerd.cli.actr.daemon import reason, state
from aiocontainerd.config.records import Isolation
from aiocontainerd.config.timeouts import PLUGIN_HANG, PLUGIN_STOP, PLUGIN_WORK
from aiocontainerd.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from aiocontainerd.guard.health import OPENS_AFTER
from aiocontainerd.guard.owners import Owners
from aiocontainerd.host.introspection import status
from aiocontainerd.plugin import InitContext, PluginConfig, Registration, SnapshotterBase
from aiocontainerd.serve.plugins import PluginsGrpc
from aiocontainerd.testing import host

pytestmark = pytest.mark.anyio

URI = f"{kinds.SNAPSHOTTER}.acme"
CODE = """\
import ctypes, os, time
import anyio
from aiocontainerd.plugin import Mount, SnapshotterBase, Usage, kinds, register


@register(kinds.SNAPSHOTTER, "acme")
class Acme(SnapshotterBase):
    async def make(self, layer, parents):
        if layer.key == "sleeps":
            time.sleep(600)
        if layer.key == "exits":
            os._exit(3)
        if layer.key.startswith("waits"):
            await anyio.sleep_forever()
        if layer.key == "out of memory":
            os.kill(os.getpid(), 9)
        if layer.key == "segfault":
            ctypes.string_at(0)

    async def mounts_of(self, layer, parents):
        return [Mount("bind", self.path(layer.id))]

    async def usage_of(self, layer):
        return Usage()

    async def stored(self):
        return []

    async def discard(self, layer_id): ...
"""
LIMIT_S = 60.0


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(CODE.splitlines(), 1) if text in line)


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="px-", dir="/tmp") as directory:
        (Path(directory) / "acme_trouble.py").write_text(CODE)
        monkeypatch.setenv("PYTHONPATH", directory)
        yield Path(directory)


async def _init(_context: InitContext[PluginConfig]) -> object:
    raise AssertionError("it lives in another process")


@asynccontextmanager
async def isolated(tmp: Path, *, hang_s: float = LIMIT_S, work_s: float = LIMIT_S) -> AsyncIterator[host.Host]:
    made = isolate_plugin(Registration(kind=kinds.SNAPSHOTTER, id="acme", init=_init), Isolation(module="acme_trouble"))
    limits = {PLUGIN_HANG.key: hang_s, PLUGIN_WORK.key: work_s, PLUGIN_STOP.key: 2.0}
    async with host.running(tmp, made, timeout_s=LIMIT_S, timeouts=limits) as running:
        yield running


async def holds(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - seen from outside, as operators do
            await anyio.sleep(0.01)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what an operator reads: warnings and errors."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def fails(running: host.Host, key: str) -> str:
    """Return the error of the call that brings the process down."""
    with pytest.raises(Unavailable) as error:
        await running.plugin.instance.prepare(key)
    return error.value.message


async def views(running: host.Host) -> list[tuple[str, str]]:
    """Return state and reason as `plugins ls`, `health` and `explain` show them."""
    service = PluginsGrpc(lambda: [running.plugin], Owners.nobody, None)
    explained = (await service.explain(api.plugins.ExplainRequest(plugin=URI))).health
    (row,) = (await service.list_health(api.plugins.ListHealthRequest())).plugins
    assert explained is not None
    listed = status(running.plugin)
    shown = "" if reason(listed) == "-" else reason(listed)
    return [(state(listed), shown), (row.state, row.reason), (explained.state, explained.reason)]


async def test_a_process_that_hangs_is_ended_and_started_again_and_its_line_told(
    tmp: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.25)
    async with isolated(tmp, hang_s=6.0) as running:
        await running.plugin.instance.prepare("works")
        caplog.clear()
        error = await fails(running, "sleeps")
        where = f"{tmp}/acme_trouble.py:{line_of('sleep(600)')}"
        ending = f"answered nothing for 6s at {where} in make and was ended; started again in 250ms"
        assert error == f"plugin {URI}: Prepare failed, its process {ending}"
        await holds(lambda: running.plugin.condition.state == "ok")
        await running.plugin.instance.prepare("works too")
        assert f"the process of plugin {URI} {ending}" in told(caplog)
        blocks = f"plugin {URI} blocks the event loop at {where} ("
        assert [text for text in told(caplog) if not text.startswith(blocks)] == [
            f"the process of plugin {URI} {ending}"
        ]
        assert any(text.startswith(blocks) for text in told(caplog)), "its own watchdog names the line early"


async def test_a_process_that_answers_nothing_is_shown_as_hanging_by_all_views(tmp: Path) -> None:
    async with isolated(tmp, hang_s=9.0) as running, anyio.create_task_group() as group:
        await running.plugin.instance.prepare("works")
        assert await views(running) == [("ok", "")] * 3
        group.start_soon(fails, running, "sleeps")
        await holds(lambda: running.plugin.condition.state == "hangs")
        assert await views(running) == [("hangs", "has answered nothing for 3s")] * 3
        assert running.plugin.health.restart is not None
        await running.plugin.health.restart()
        await running.plugin.instance.prepare("works too")
        assert await views(running) == [("ok", "")] * 3


@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("exits", "ended with status 3"),
        ("segfault", f"was ended by SIGSEGV at {{tmp}}/acme_trouble.py:{line_of('string_at')} in make"),
    ],
)
async def test_the_first_caller_of_a_crash_learns_of_it_and_the_log_has_one_line(
    tmp: Path, caplog: pytest.LogCaptureFixture, key: str, how: str
) -> None:
    async with isolated(tmp) as running:
        await running.plugin.instance.prepare("works")
        caplog.clear()
        ending = f"{how.format(tmp=tmp)}; started again in 1s"
        assert await fails(running, key) == f"plugin {URI}: Prepare failed, its process {ending}"
        assert (
            await fails(running, "second caller")
            == f"plugin {URI} at {running.plugin.exports['address']} is failed: {ending}"
        )
        assert await views(running) == [("failed", ending)] * 3
        await holds(lambda: running.plugin.condition.state == "ok")
        await running.plugin.instance.prepare("works too")
        assert told(caplog) == [f"the process of plugin {URI} {ending}"]


async def test_a_process_that_the_kernel_kills_for_want_of_memory_is_told_as_that(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with isolated(tmp) as running:
        await running.plugin.instance.prepare("works")
        killed = "was ended by SIGKILL; started again in "
        assert killed in await fails(running, "out of memory"), "somebody's SIGKILL"
        await holds(lambda: running.plugin.condition.state == "ok")
        monkeypatch.setattr(cgroups, "oom_kills", lambda _directories: 1)
        killed = "was ended by SIGKILL because memory ran out; started again in "
        assert killed in await fails(running, "out of memory")


@pytest.mark.parametrize(
    ("file", "text", "kills"),
    [
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n", 3),
        ("cgroup.procs", "1\n", 0),
    ],
)
def test_kills_for_want_of_memory_are_counted_by_either_version(
    tmp_path: Path, file: str, text: str, kills: int
) -> None:
    (tmp_path / file).write_text(text)
    assert cgroups.oom_kills([str(tmp_path), str(tmp_path / "absent")]) == kills


async def test_a_call_that_a_blocked_process_does_not_answer_says_so(tmp: Path) -> None:
    async with isolated(tmp, work_s=0.5) as running:
        await running.plugin.instance.prepare("works")
        with pytest.raises(DeadlineExceeded) as error:
            await running.plugin.instance.prepare("sleeps")
        assert ", its process answers nothing, given up after " in error.value.message
        assert "aiocontainerd_proxy" not in error.value.message


async def test_calls_that_miss_their_deadlines_name_the_line_and_five_in_a_row_end_the_process(
    tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with isolated(tmp, work_s=2.0) as running:
        await running.plugin.instance.prepare("works")
        caplog.clear()
        errors: list[str] = []

        async def waits(key: str) -> None:
            with pytest.raises(DeadlineExceeded) as error:
                await running.plugin.instance.prepare(key)
            errors.append(error.value.message)

        async with anyio.create_task_group() as group:
            for number in range(OPENS_AFTER):
                group.start_soon(waits, f"waits-{number}")
        where = f"{tmp}/acme_trouble.py:{line_of('sleep_forever')}"
        late = f"plugin {URI}: prepare took longer than 2s ({PLUGIN_WORK.key}), waiting at {where}, given up after "
        assert all(error.startswith(late) for error in errors), errors
        ending = f"the process of plugin {URI} missed one deadline after the other and was ended (the last: {late}"
        await holds(lambda: any(text.startswith(ending) for text in told(caplog)))
        await holds(lambda: running.plugin.condition.state == "ok")
        assert running.plugin.health.methods["prepare"].expired == OPENS_AFTER


async def test_a_mistake_of_an_isolated_plugin_is_told_in_its_status(tmp: Path) -> None:
    (tmp / "acme_trouble.py").write_text(CODE.replace("    async def discard(self, layer_id): ...\n", ""))
    async with isolated(tmp) as running:
        await holds(lambda: running.plugin.condition.state == "failed")
        reason = running.plugin.condition.reason
        assert reason.startswith(
            f"ended with status 1 (cannot serve acme_trouble: plugin {URI} is not loaded: Acme lacks discard, which "
            "SnapshotterBase asks for); started again in "
        ), reason


async def test_a_restart_is_no_error_and_starts_at_once(tmp: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with isolated(tmp) as running:
        service = PluginsGrpc(lambda: [running.plugin], Owners.nobody, None)
        await running.plugin.instance.prepare("kept")
        before = int(running.plugin.exports["pid"])
        answer = await service.restart(api.plugins.RestartRequest(plugin="acme"))
        assert answer.pid not in (0, before)
        assert (await running.plugin.instance.stat("kept")).name == "kept"
        assert told(caplog) == []
        assert (await service.restart(api.plugins.RestartRequest(plugin=URI))).pid not in (before, answer.pid)


async def test_only_a_plugin_with_a_process_of_its_own_can_be_restarted(tmp: Path) -> None:
    inside = Registration(kind=kinds.SNAPSHOTTER, id="acme", init=_inside)
    async with host.running(tmp, inside) as running:
        service = PluginsGrpc(lambda: [running.plugin], Owners.nobody, None)
        with pytest.raises(FailedPrecondition, match=f"^plugin {URI} has no process of its own"):
            await service.restart(api.plugins.RestartRequest(plugin="acme"))
        with pytest.raises(NotFound):
            await service.restart(api.plugins.RestartRequest(plugin="nobody"))


async def _inside(context: InitContext[PluginConfig]) -> object:
    class Inside(SnapshotterBase):
        async def stored(self) -> list[str]:
            return []

    snapshotter = Inside(context.root)
    await snapshotter.start()
    context.on_stop(snapshotter.aclose)
    return snapshotter
