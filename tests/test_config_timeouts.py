"""Keys of `[timeouts]`: who declares them, what is refused, who reads them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd import kinds
from aiocontainerd.config import Config, ConfigError, load, timeouts
from aiocontainerd.config.render import dump
from aiocontainerd.events import EventBus
from aiocontainerd.host import authoring, discovery, reference
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, PluginConfig, PluginError, Registration, State, Timeout, register
from aiocontainerd.testing import host

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
CONNECT = Timeout("acme.timeout.connect", "5s", "Connecting to Acme.")
WORK = "io.containerd.timeout.plugin.work"
INIT = "io.containerd.timeout.plugin.init"


async def _init(_context: InitContext[Any]) -> object:
    return object()


ACME = Registration(kind=kinds.SNAPSHOTTER, id="acme", init=_init, timeouts=(CONNECT,))


def loaded(directory: Path, **written: str) -> Config:
    lines = "".join(f'"{key}" = "{value}"\n' for key, value in written.items())
    (directory / "c.toml").write_text(f"version = 4\n[timeouts]\n{lines}")
    return load(directory / "c.toml")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("acme.timeout.conect", '; did you mean "acme.timeout.connect"?'),
        ("io.containerd.timeout.plugin.wrok", f'; did you mean "{WORK}"?'),
        (f"io.containerd.timeout.plugin.wrok.{ACME.uri}", f'; did you mean "{WORK}.{ACME.uri}"?'),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_an_error_with_file_line_and_the_nearest(tmp_path: Path, key: str, hint: str) -> None:
    config = loaded(tmp_path, **{WORK: "3m", key: "1s"})
    with pytest.raises(ConfigError) as caught:
        config.check_plugins([ACME])
    assert str(caught.value) == f'{tmp_path}/c.toml:4: unknown key timeouts."{key}"{hint}'


def test_an_unknown_key_is_a_warning_where_the_file_is_shared_with_containerd(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('version = 4\n[timeouts]\n"zzz" = "1s"\n')
    config = load(tmp_path / "c.toml", warn_only=True)
    config.check_plugins([ACME])
    assert config.warnings == [f'{tmp_path}/c.toml:3: unknown key timeouts."zzz"']


def test_an_unknown_key_is_a_warning_where_a_module_that_may_declare_it_is_broken(tmp_path: Path) -> None:
    config = loaded(tmp_path, zzz="1s")
    registry = Registry()
    registry.add_failed(discovery.DECLARED_KIND, "acme", "no such file", state=State.SKIPPED)
    with pytest.raises(ConfigError):
        discovery.check_config(registry, config)
    registry.add_failed(discovery.DECLARED_KIND, "acme", "it does not import")
    discovery.check_config(registry, config)
    assert config.warnings == [f'{tmp_path}/c.toml:3: unknown key timeouts."zzz"']


def test_every_key_of_containerds_own_default_config_is_accepted(tmp_path: Path) -> None:
    row = next(line for line in (ROOT / "docs/containerd/core.md").read_text().splitlines() if "| `[timeouts]`" in line)
    stock = {f"io.containerd.timeout.{name}": value for name, value in re.findall(r"(\w+\.\w+) (\d\w*)", row)}
    assert stock.keys() == timeouts.STOCK_KEYS
    config = loaded(tmp_path, **stock)
    registrations = discovery.all_registrations(reference.FIRST_PARTY)
    config.check_plugins(registrations)
    assert config.warnings == [
        f"{tmp_path}/c.toml:3: without effect here: "
        "io.containerd.timeout.bolt.open, io.containerd.timeout.cri.defercleanup"
    ]


def test_a_key_that_has_no_effect_is_not_among_the_defaults() -> None:
    registrations = discovery.all_registrations(reference.FIRST_PARTY)
    default = tomllib.loads(dump(Config({}, {}), registrations))["timeouts"]
    assert default.keys() == {t.key for r in registrations for t in r.timeouts} | {t.key for t in timeouts.CORE}
    assert "io.containerd.timeout.bolt.open" not in default


def test_the_default_config_says_what_each_key_limits() -> None:
    text = dump(Config({}, {}), [ACME])
    assert '\n# Connecting to Acme.\n"acme.timeout.connect" = "5s"\n' in text
    assert f'\n# Starting a plugin.\n"{INIT}" = "30s"\n' in text


def test_a_key_of_a_plugin_that_is_not_installed_is_a_warning(tmp_path: Path) -> None:
    config = loaded(tmp_path, **{f"{WORK}.{ACME.uri}": "1s", f"{WORK}.io.x.v1.y": "1s"})
    config.check_plugins([ACME])
    assert config.warnings == [f'{tmp_path}/c.toml:4: no plugin "io.x.v1.y" is installed']


def test_a_declared_key_has_its_default_and_an_undeclared_one_a_second(tmp_path: Path) -> None:
    config = loaded(tmp_path, **{WORK: "1m30s"})
    assert config.timeout_s(CONNECT.key) == 1
    config.declare([ACME])
    assert (config.timeout_s(WORK), config.timeout_s(CONNECT.key), config.timeout_s("nobody.knows")) == (90, 5, 1)


def test_a_plugin_may_have_deadlines_of_its_own(tmp_path: Path) -> None:
    config = loaded(tmp_path, **{WORK: "3m", f"{WORK}.{ACME.uri}": "20m"})
    assert config.timeout_s(f"{WORK}.{ACME.uri}") == 1200
    assert config.timeout_s(f"{WORK}.io.containerd.snapshotter.v1.other") == 180
    assert config.timeout_s(f"io.containerd.timeout.plugin.quick.{ACME.uri}") == 10
    own = config.timeouts_of(ACME)
    assert (own[WORK], own[CONNECT.key], own[INIT]) == (1200, 1, 30)
    assert own.keys() == {CONNECT.key, *(timeout.key for timeout in timeouts.CORE)}


@register(kinds.EVENT_SINK, "acme", timeouts=(CONNECT,))
class Acme:
    filters = ()

    def __init__(self, context: InitContext[PluginConfig]) -> None:
        self.limit_s = context.timeout_s(CONNECT)
        self.all = context.timeouts()

    async def deliver(self, envelope: object) -> None: ...


async def test_a_plugin_reads_what_it_declares(tmp_path: Path) -> None:
    async with host.running(tmp_path, Acme, timeout_s=7.0) as running:
        assert running.plugin.instance.limit_s == 7.0
        assert running.plugin.instance.all.keys() == {CONNECT.key, *(timeout.key for timeout in timeouts.CORE)}


async def test_a_plugin_that_reads_what_it_does_not_declare_fails(tmp_path: Path) -> None:
    async def init(context: InitContext[PluginConfig]) -> object:
        return context.timeout_s(CONNECT)

    async with host.running(tmp_path, Registration(kind=kinds.EVENT_SINK, id="acme", init=init)) as running:
        assert running.plugin.state == State.FAILED
        assert running.plugin.reason == (
            "io.containerd.event-sink.v1.acme reads acme.timeout.connect, "
            "but its registration does not declare it in timeouts"
        )


@pytest.mark.parametrize(("key", "by"), [(CONNECT.key, ACME.uri), (WORK, "the daemon")])
def test_a_key_is_declared_in_one_way_only(key: str, by: str) -> None:
    registry = Registry()
    registry.add(ACME)
    registry.add(Registration(kind=kinds.CONTENT, id="same", init=_init, timeouts=(CONNECT,)))
    other = Registration(kind=kinds.CONTENT, id="other", init=_init, timeouts=(Timeout(key, "6s", "Else."),))
    with pytest.raises(PluginError, match=rf"plugin \S+\.other declares {key} in another way than {by} does"):
        registry.add(other)


def test_a_default_that_is_no_duration_is_refused() -> None:
    bad = Registration(kind=kinds.CONTENT, id="acme", init=_init, timeouts=(Timeout("a.b", "soon", "Nothing."),))
    with pytest.raises(PluginError, match=r"plugin io\.containerd\.content\.v1\.acme declares timeout a\.b: time: inv"):
        authoring.check_config(bad)


class Recorder:
    """Notes which keys are read."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def __call__(self, key: str) -> float:
        self.read.add(key)
        return 5.0

    def classes(self) -> set[str]:
        return {timeouts.split_plugin_key(key)[0] for key in self.read}

    async def run(self, directory: Path, *registrations: Registration) -> None:
        registry = Registry()
        for one in registrations:
            registry.add(one)
        daemon = DaemonInfo(
            root=directory / "root", state=directory / "state", temp=directory, grpc_address="", ttrpc_address="",
            bus=EventBus(), plugins=lambda: registry.plugins, timeout_s=self,
        )  # fmt: skip
        async with registry.run(daemon, lambda one: one.config()):
            assert {plugin.state for plugin in registry.plugins} == {State.LOADED}, registry.plugins


READ_IN_USE = {
    "io.containerd.metadata.v1.bolt": "each collection; `test_metadata_sqlite_plugin` sees it act",
}
"""Plugins whose init does not read their keys -> what does."""
DECLARING = [
    one for one in discovery.all_registrations(reference.FIRST_PARTY) if one.timeouts and one.uri not in READ_IN_USE
]


@pytest.mark.parametrize("registration", DECLARING, ids=[one.uri for one in DECLARING])
async def test_every_key_that_a_plugin_declares_is_read_by_it(tmp_path: Path, registration: Registration) -> None:
    recorder = Recorder()
    await recorder.run(tmp_path, registration)
    assert {timeout.key for timeout in registration.timeouts} <= recorder.read


class Snapshots:
    async def stat(self, key: str) -> None: ...

    async def usage(self, key: str) -> None: ...

    async def cleanup(self) -> None: ...

    async def walk(self) -> AsyncIterator[object]:
        return
        yield


class Launcher:
    async def start(self) -> None: ...


ELSEWHERE = {
    one.key
    for one in (
        timeouts.NOTIFY, timeouts.SERVER_STOP, timeouts.PLUGIN_CONTENT, timeouts.PLUGIN_CONNECT, timeouts.PLUGIN_HANG,
        timeouts.PLUGIN_RETRY,
    )
}  # fmt: skip
"""Read around the plugins: tests of `daemon/run`, `cli/plugin/serve` and the package of proxies see them act."""


async def test_every_key_of_the_daemon_is_read(tmp_path: Path) -> None:
    async def snapshots(_context: InitContext[Any]) -> object:
        return Snapshots()

    async def launcher(_context: InitContext[Any]) -> object:
        return Launcher()

    recorder = Recorder()
    plugins = ((kinds.SNAPSHOTTER, snapshots), (kinds.SHIM_LAUNCHER, launcher))
    await recorder.run(tmp_path, *(Registration(kind=kind, id="acme", init=init) for kind, init in plugins))
    assert {timeout.key for timeout in timeouts.CORE} == (
        recorder.classes() & {t.key for t in timeouts.CORE}
    ) | ELSEWHERE
