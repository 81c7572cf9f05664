"""Reload: a config file that changes, and what is done about it."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest

from aiocontainerd.config import Config, ConfigError
from aiocontainerd.daemon import reload
from aiocontainerd.daemon.reload import Reloader
from aiocontainerd.daemon.wanted import ADDED, FAILED, REMOVED, REPLACED, RESTART, Wanted
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.host.registry import Registry
from aiocontainerd.interfaces.plugins import Change
from aiocontainerd.plugin import InitContext, Plugin, Registration, State, kinds

URI = f"{kinds.SNAPSHOTTER}.acme"
ROW = "python_plugins.acme"


async def init(_context: InitContext[Any]) -> object:
    return object()


def wanted(outside: object = None, table: object = None) -> Wanted:
    registration = Registration(kind=kinds.SNAPSHOTTER, id="acme", init=init)
    return Wanted(registration=registration, distribution="acme", outside=outside, table=table)


class Files:
    """A config file that changes between reloads, and a registry that notes what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plans: dict[str, dict[str, Wanted]]) -> None:
        self.plans = plans
        self.current = "start"
        self.asked: list[str] = []
        self.rows: dict[str, Plugin] = {}
        self.begun, self.goes_on = anyio.Event(), anyio.Event()
        self.goes_on.set()
        self.refuses: Exception | None = None
        self.state = State.LOADED
        monkeypatch.setattr(reload, "plan_for", lambda config: plans[config.settings.root.removeprefix("/")])

    def config(self, name: str) -> Config:
        return Config({"root": f"/{name}", "state": "/state"}, {})

    def load(self) -> Config:
        if self.current == "broken":
            raise ConfigError("config.toml:3: no such key")
        return self.config(self.current)

    def reloader(self) -> Reloader:
        registry: Any = self
        return Reloader(registry, self.config("start"), self.load)

    def set_deadlines(self) -> None:
        self.asked.append("set deadlines")

    async def add_running(self, registration: Registration, distribution: str) -> Plugin:
        self.asked.append(f"add {registration.uri}")
        plugin = Plugin(registration, distribution)
        plugin.state, plugin.reason = self.state, "no socket" if self.state != State.LOADED else ""
        self.rows[plugin.uri] = plugin
        self.begun.set()
        await self.goes_on.wait()
        return plugin

    def get(self, uri: str) -> Plugin | None:
        return self.rows.get(uri)

    async def remove_running(self, uri: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        del self.rows[uri]
        self.asked.append(f"remove {uri}")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    plans = {"start": {}, "with": {URI: wanted("socket")}, "other": {URI: wanted("else")}, "inside": {URI: wanted()}}
    return Files(monkeypatch, plans)


def about(changes: Any, subject: str = URI) -> list[Change]:
    return [change for change in changes if change.subject == subject]


@pytest.mark.anyio
async def test_plugins_come_change_and_go_with_the_file(files: Files) -> None:
    reloader = files.reloader()
    for name, outcome in (("with", ADDED), ("with", None), ("other", REPLACED), ("start", REMOVED)):
        files.current = name
        changes = about(await reloader.reload())
        assert [change.outcome for change in changes] == ([outcome] if outcome else [])
    assert files.asked == [f"add {URI}", f"remove {URI}", f"add {URI}", f"remove {URI}"]


@pytest.mark.anyio
async def test_what_needs_a_restart_is_told_at_every_reload(files: Files) -> None:
    reloader = files.reloader()
    files.current = "inside"
    for _ in range(2):
        changes = await reloader.reload()
        assert about(changes) == [Change(URI, RESTART, "it is part of the daemon's process")]
        assert about(changes, "root") == [Change("root", RESTART, "read when the daemon starts")]
    assert files.asked == []


@pytest.mark.anyio
async def test_a_plugin_in_use_stays_and_says_by_whom(files: Files) -> None:
    reloader = files.reloader()
    files.current = "with"
    await reloader.reload()
    files.refuses = FailedPrecondition("in use by somebody: restart needed")
    files.current = "start"
    assert about(await reloader.reload()) == [Change(URI, RESTART, "in use by somebody: restart needed")]
    files.refuses = None
    assert about(await reloader.reload()) == [Change(URI, REMOVED)]


@pytest.mark.anyio
async def test_a_plugin_that_does_not_start_is_told_with_its_reason(files: Files) -> None:
    files.current, files.state = "with", State.FAILED
    assert about(await files.reloader().reload()) == [Change(URI, FAILED, "no socket")]


@pytest.mark.anyio
async def test_a_plugin_that_did_not_start_is_tried_again_at_every_reload(files: Files) -> None:
    reloader = files.reloader()
    files.current, files.state = "with", State.FAILED
    for _ in range(2):
        assert about(await reloader.reload()) == [Change(URI, FAILED, "no socket")]
    files.state = State.LOADED
    assert about(await reloader.reload()) == [Change(URI, REPLACED)]
    assert about(await reloader.reload()) == []
    assert files.asked == [f"add {URI}", *[f"remove {URI}", f"add {URI}"] * 2]


@pytest.mark.anyio
async def test_a_plugin_that_was_disabled_at_the_start_is_added_in_place_of_its_row(files: Files) -> None:
    files.rows[URI] = Plugin(wanted().registration)
    files.rows[URI].state = State.DISABLED
    files.current = "with"
    assert about(await files.reloader().reload()) == [Change(URI, ADDED)]
    assert files.asked == [f"remove {URI}", f"add {URI}"]


@pytest.mark.anyio
async def test_a_module_that_registers_nothing_is_told_until_it_does(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    broken = msgspec.structs.replace(wanted(), failure="there is no module acme")
    files.plans |= {"bad": {ROW: broken}, "other": {ROW: msgspec.structs.replace(broken, failure="no more")}}
    reloader = files.reloader()
    for name, text in [
        ("bad", "there is no module acme"),
        ("bad", "there is no module acme"),
        ("other", "no more"),
    ]:
        files.current = name
        assert about(await reloader.reload(), ROW) == [Change(ROW, FAILED, text)]
    assert not [message for message in caplog.messages if ROW in message], "discovery logs it"
    files.current = "with"
    changes = await reloader.reload()
    assert (about(changes), about(changes, ROW)) == ([Change(URI, ADDED)], [])
    started = files.reloader()
    files.plans["start"], files.current = {ROW: broken}, "bad"
    assert about(await started.reload(), ROW) == [], "it is in the log of the start"


@pytest.mark.anyio
async def test_a_reload_ends_what_it_began_though_its_caller_goes_away(files: Files) -> None:
    reloader = files.reloader()
    files.current, files.goes_on = "with", anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(reloader.reload)
        await files.begun.wait()
        group.cancel_scope.cancel()
        files.goes_on.set()
    assert about(await reloader.reload()) == []
    assert files.asked == [f"add {URI}"]


@pytest.mark.anyio
async def test_a_config_that_cannot_be_used_changes_nothing(files: Files) -> None:
    files.current = "broken"
    with pytest.raises(InvalidArgument, match="the config is not reloaded: config"):
        await files.reloader().reload()
    assert files.asked == []


@pytest.mark.anyio
async def test_without_a_file_there_is_nothing_to_read_again() -> None:
    with pytest.raises(FailedPrecondition, match="started without a config file"):
        await Reloader(Registry(), Config({}, {}), None).reload()


WORK = "io.containerd.timeout.plugin.work"
LOAD = "io.containerd.timeout.shim.load"


@pytest.mark.anyio
async def test_timeouts_are_applied_at_once_and_told_once() -> None:
    timeouts: dict[str, str] = {}
    asked: list[float] = []
    reloader = Reloader(Registry(), Config({}, {}), lambda: Config({"timeouts": dict(timeouts)}, {}))
    registry: Any = reloader._registry
    registry.set_deadlines = lambda: asked.append(reloader.timeout_s(WORK))
    timeouts |= {WORK: "3m", LOAD: "6s", "io.containerd.timeout.plugin.quick": "10s"}
    changes = about(await reloader.reload(), "timeouts")
    assert changes == [Change("timeouts", "applied", f"{WORK} = 3m0s, {LOAD} = 6s")]
    assert asked == [180.0]
    assert about(await reloader.reload(), "timeouts") == []
    timeouts.clear()
    assert [change.detail for change in about(await reloader.reload(), "timeouts")] == [f"{WORK} = 2m0s, {LOAD} = 5s"]
    assert asked == [180.0, 120.0]


def explained(reloader: Reloader, key: str) -> list[str]:
    return [str(value) for value in reloader.explain(key)]


@pytest.mark.anyio
async def test_the_values_told_are_those_in_force_not_those_of_the_file() -> None:
    written: dict[str, Any] = {"root": "/first"}
    reloader = Reloader(Registry(), Config(dict(written), {}), lambda: Config(dict(written), {}))
    written = {"root": "/second", "timeouts": {LOAD: "7s"}}
    assert explained(reloader, "root")[0].startswith('root = "/first"')
    await reloader.reload()
    assert explained(reloader, "root")[0].startswith('root = "/first"'), "root waits for a restart"
    assert explained(reloader, f'timeouts."{LOAD}"')[0].split("  #")[0] == f'timeouts."{LOAD}" = "7s"'


def test_an_unknown_key_is_not_found() -> None:
    with pytest.raises(NotFound, match="key ghost in the config"):
        Reloader(Registry(), Config({}, {}), None).explain("ghost")
