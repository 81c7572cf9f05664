"""`register`: what becomes of a decorated class or function, and of the mistakes it can see."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from aiocontainerd import plugin
from aiocontainerd.events import EventBus
from aiocontainerd.host import authoring, loading
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.plugin import InitContext, PluginConfig, PluginError, Registration, SkipPlugin, kinds, register


class Config(PluginConfig, frozen=True):
    """A config."""

    root_path: str = ""


class Table(PluginConfig, frozen=True):
    """A table with a field of a type that TOML has no values for."""

    where: Path = Path("/")


class Unreadable(PluginConfig, frozen=True):
    """A config with such a table."""

    table: Table = Table()


DEFAULTS = Config()


async def outcome(directory: Path, target: object, config: PluginConfig = DEFAULTS) -> Any:
    """Return the row of the plugin that `target` carries, after it was started and stopped."""
    registry = Registry()
    (registration,) = authoring.carried(target)
    row = registry.add(registration)
    daemon = DaemonInfo(
        root=directory / "root", state=directory / "state", temp=directory, grpc_address="", ttrpc_address="",
        bus=EventBus(), plugins=list, timeout_s=lambda _name: 5.0,
    )  # fmt: skip
    async with registry.run(daemon, lambda _registration: config):
        pass
    return row


@pytest.mark.anyio
async def test_a_class_is_given_what_it_asks_for_started_and_closed(tmp_path: Path) -> None:
    did: list[object] = []

    @register(kinds.EVENT_SINK, "acme", config=Config)
    class Acme:
        def __init__(self, root: Path, config: Config, *, more: int = 1) -> None:
            did.extend((root, config))

        async def start(self, context: InitContext[Config]) -> None:
            did.append(context.uri)

        async def aclose(self) -> None:
            did.append("closed")

    row = await outcome(tmp_path, Acme)
    assert (row.state, type(row.instance)) == (State.LOADED, Acme)
    assert did == [tmp_path / "root" / row.uri, Config(), row.uri, "closed"]
    assert row.exports == {"root": str(tmp_path / "root" / row.uri)}


@pytest.mark.anyio
async def test_root_path_of_the_config_is_the_root(tmp_path: Path) -> None:
    @register(kinds.EVENT_SINK, "acme", config=Config)
    class Acme:
        def __init__(self, root: Path) -> None:
            self.root = root

    row = await outcome(tmp_path, Acme, Config(root_path="/somewhere"))
    assert row.instance.root == Path("/somewhere")


@pytest.mark.anyio
async def test_start_may_take_nothing_and_skip(tmp_path: Path) -> None:
    @register(kinds.EVENT_SINK, "acme")
    class Acme:
        async def start(self) -> None:
            raise SkipPlugin("nothing to do here")

    row = await outcome(tmp_path, Acme)
    assert (row.state, row.reason) == (State.SKIPPED, "nothing to do here: skip plugin")


@pytest.mark.anyio
async def test_a_coroutine_function_is_the_init(tmp_path: Path) -> None:
    @register(kinds.EVENT_SINK, "acme", config=Config)
    async def init(context: InitContext[Config]) -> object:
        return context.config

    assert (await outcome(tmp_path, init)).instance == Config()


def test_a_class_can_be_registered_twice_and_its_subclass_is_not() -> None:
    @register(kinds.GRPC, "acme")
    @register(kinds.TTRPC, "acme", requires=[kinds.METADATA])
    class Acme:
        pass

    class Other(Acme):
        pass

    assert [one.uri for one in authoring.carried(Acme)] == ["io.containerd.ttrpc.v1.acme", "io.containerd.grpc.v1.acme"]
    assert authoring.carried(Acme)[0].requires == (kinds.METADATA,)
    assert authoring.carried(Other) == ()


def test_a_module_brings_what_its_own_package_decorated(tmp_path: Path) -> None:
    def made(package: str, plugin_id: str) -> type:
        return register(kinds.EVENT_SINK, plugin_id)(type(plugin_id, (), {"__module__": package}))

    module: Any = types.ModuleType("acme.plugin")
    module.Own, module.Sibling = made("acme.plugin", "own"), made("acme.sink", "sibling")
    module.Foreign, module.again = made("other", "foreign"), module.Own
    assert [one.id for one in authoring.carried_by_module(module)] == ["own", "sibling"]


def refused(target: Any, text: str, **options: Any) -> None:
    with pytest.raises(PluginError) as error:
        register(kinds.EVENT_SINK, "acme", **options)(target)
    assert str(error.value) == text


def test_what_can_never_work_is_said_where_it_is_written() -> None:
    class Asks:
        def __init__(self, settings: object) -> None: ...

    class Starts:
        def start(self) -> None: ...

    class Closes:
        def aclose(self) -> None: ...

    def init(context: object) -> object: ...

    here = f"{__name__}.{test_what_can_never_work_is_said_where_it_is_written.__name__}.<locals>"
    refused(
        Asks,
        f"{here}.Asks.__init__ asks for 'settings'; a plugin's class is given any of config, context, root by name",
    )
    refused(Starts, f"{here}.Starts.start is not async; write `async def start`")
    refused(Closes, f"{here}.Closes.aclose is not async; write `async def aclose`")
    refused(init, f"{here}.init (plugin acme) is not async; write `async def init`")
    refused(
        Asks,
        "the config of plugin io.containerd.event-sink.v1.acme is <class 'int'>, not a subclass of PluginConfig",
        config=int,
    )
    refused(
        Asks,
        "the config of plugin io.containerd.event-sink.v1.acme is "
        f"{__name__}.Unreadable, whose field table.where is of type Path, which no value in TOML becomes; there are "
        "str, int, float, bool, dates and times, Secret, Duration, and lists, tables and Structs of these",
        config=Unreadable,
    )


def test_the_one_import_has_every_name_it_promises() -> None:
    for name in plugin.__all__:
        assert getattr(plugin, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        plugin.Nothing  # noqa: B018 - the look-up is what is tested


def test_a_decorated_module_and_class_are_found_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "acme_short.py").write_text(
        "from aiocontainerd.plugin import kinds, register\n\n@register(kinds.EVENT_SINK, 'acme')\nclass Acme: pass\n"
        "@register(kinds.EVENT_SINK, 'more')\nclass More: pass\n"
    )
    found = loading.registrations_of("acme_short")
    assert [type(one) for one in found] == [Registration, Registration]
    assert loading.registrations_of("acme_short:More") == found[1:]
    with pytest.raises(PluginError, match=r"module acme_short has no Mor; did you mean More\?"):
        loading.registrations_of("acme_short:Mor")
    with pytest.raises(PluginError, match="'acme-short' is no path of a module"):
        loading.registrations_of("acme-short")
