"""Reload: what becomes of each plugin and key that differs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aiocontainerd import reload
from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.records import Debug, ProxyPlugin, Settings
from aiocontainerd.errors import FailedPrecondition, InvalidArgument
from aiocontainerd.plugin import InitContext, Plugin, Registration, State, kinds
from aiocontainerd.registration import Change
from aiocontainerd.registry import Registry
from aiocontainerd.reload import ADDED, FAILED, REMOVED, REPLACED, RESTART, Reloader, Wanted

URI = f"{kinds.SNAPSHOTTER}.acme"


async def init(_context: InitContext[Any]) -> object:
    return object()


def wanted(beside: object = None, table: object = None) -> Wanted:
    registration = Registration(kind=kinds.SNAPSHOTTER, id="acme", init=init)
    return Wanted(registration=registration, distribution="acme", beside=beside, table=table)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (None, wanted("socket"), ADDED),
        (wanted("socket"), None, REMOVED),
        (wanted("socket"), wanted("other"), REPLACED),
        (wanted("socket", {"a": 1}), wanted("socket", {"a": 2}), REPLACED),
        (wanted("socket"), wanted("socket"), None),
        (None, wanted(), RESTART),
        (wanted(), None, RESTART),
        (wanted(table={"a": 1}), wanted(table={"a": 2}), RESTART),
        (wanted(), wanted("socket"), RESTART),
        (wanted("socket"), wanted(), RESTART),
        (wanted(), wanted(), None),
    ],
)
def test_only_plugins_beside_the_daemon_are_followed(
    before: Wanted | None, after: Wanted | None, outcome: str | None
) -> None:
    plans = ({URI: one} if one is not None else {} for one in (before, after))
    assert reload.steps(*plans) == ([] if outcome is None else [(URI, outcome)])


def test_removals_come_first() -> None:
    before, after = {"b": wanted("socket")}, {"a": wanted("socket")}
    assert reload.steps(before, after) == [("b", REMOVED), ("a", ADDED)]


def test_keys_that_only_a_start_reads_are_named() -> None:
    changed = Settings(
        debug=Debug(level="debug"), timeouts={"a": "1s"}, proxy_plugins={"a": ProxyPlugin(type="snapshot")}
    )
    assert reload.changed_keys(Settings(), changed) == ["debug"]


class Files:
    """A config file that changes between reloads, and a registry that notes what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plans: dict[str, dict[str, Wanted]]) -> None:
        self.plans = plans
        self.current = "start"
        self.asked: list[str] = []
        self.refuses: Exception | None = None
        self.state = State.LOADED
        monkeypatch.setattr(reload, "wanted_by", lambda config: plans[config.settings.root.removeprefix("/")])

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
        return plugin

    async def remove_running(self, uri: str) -> None:
        if self.refuses is not None:
            raise self.refuses
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


@pytest.mark.anyio
async def test_timeouts_are_applied_at_once_and_told_once() -> None:
    timeouts: dict[str, str] = {}
    asked: list[float] = []
    reloader = Reloader(Registry(), Config({}, {}), lambda: Config({"timeouts": dict(timeouts)}, {}))
    registry: Any = reloader._registry
    registry.set_deadlines = lambda: asked.append(reloader.timeout_s(WORK))
    timeouts |= {WORK: "3m", "io.containerd.timeout.acme": "5s", "io.containerd.timeout.plugin.quick": "10s"}
    changes = about(await reloader.reload(), "timeouts")
    assert changes == [Change("timeouts", "applied", f"io.containerd.timeout.acme = 5s, {WORK} = 3m0s")]
    assert asked == [180.0]
    assert about(await reloader.reload(), "timeouts") == []
    timeouts.clear()
    assert [change.detail for change in about(await reloader.reload(), "timeouts")] == [
        f"io.containerd.timeout.acme = 1s, {WORK} = 2m0s"
    ]
    assert asked == [180.0, 120.0]


def test_a_plugin_in_a_process_is_started_anew_where_its_own_deadlines_change() -> None:
    uri = f"{kinds.SNAPSHOTTER}.native"
    isolated = {"plugin_isolation": {uri: "process"}}
    plans = [
        reload.wanted_by(Config({**isolated, "timeouts": timeouts}, {}))
        for timeouts in ({}, {f"{WORK}.{kinds.SNAPSHOTTER}.other": "1s"}, {f"{WORK}.{uri}": "1s"})
    ]
    assert reload.steps(plans[0], plans[1]) == []
    assert reload.steps(plans[0], plans[2]) == [(uri, REPLACED)]


def test_a_plugins_place_and_table_are_part_of_what_is_wanted() -> None:
    tree = {
        "proxy_plugins": {"acme": {"type": "snapshot", "address": "/run/acme.sock"}},
        "plugins": {f"{kinds.SNAPSHOTTER}.native": {"root_path": "/srv"}},
        "disabled_plugins": [f"{kinds.SNAPSHOTTER}.overlayfs"],
    }
    found = reload.wanted_by(Config(tree, {}))
    assert isinstance(found[URI].beside, ProxyPlugin)
    native = found[f"{kinds.SNAPSHOTTER}.native"]
    assert (native.beside, native.table) == (None, {"root_path": "/srv"})
    assert f"{kinds.SNAPSHOTTER}.overlayfs" not in found
    assert msgspec.structs.asdict(native)["distribution"] == "aiocontainerd-snapshotter-native"
