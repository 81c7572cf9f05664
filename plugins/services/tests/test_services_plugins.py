"""The Plugins service of our own: what it finds, what it tells, what it passes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from aiocontainerd import api, kinds
from aiocontainerd.daemon.wanted import ADDED
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.guard.dispatcher import Dispatcher
from aiocontainerd.guard.health import Block
from aiocontainerd.guard.owners import Owners
from aiocontainerd.interfaces.plugins import Change
from aiocontainerd.plugin import InitContext, Plugin, Registration, State
from aiocontainerd.rpc.metrics import Metrics
from aiocontainerd.serve.plugins import PluginsGrpc

pytestmark = pytest.mark.anyio

URI = f"{kinds.SNAPSHOTTER}.acme"


async def init(_context: InitContext[Any]) -> object:
    return object()


class Acme:
    """A snapshotter that knows one snapshot."""

    async def stat(self, key: str) -> str:
        if key != "k":
            raise NotFound(f"snapshot {key} does not exist")
        return key

    async def prepare(self, key: str, parent: str = "") -> None:
        await anyio.sleep_forever()


def plugin(kind: str, plugin_id: str, *requires: str, instance: object = None) -> Plugin:
    made = Plugin(Registration(kind=kind, id=plugin_id, requires=requires, init=init), "acme-package")
    made.loaded(Dispatcher(lambda _key: 5.0).guard(made.health, kind, instance))
    return made


@pytest.fixture
def plugins() -> list[Plugin]:
    acme = plugin(kinds.SNAPSHOTTER, "acme", instance=Acme())
    skipped = plugin(kinds.DIFFER, "other")
    skipped.state, skipped.reason = State.SKIPPED, "no kernel: skip plugin"
    return [acme, plugin(kinds.METADATA, "bolt", kinds.SNAPSHOTTER), plugin(kinds.SERVER, "grpc", kinds.ALL), skipped]


def service(plugins: list[Plugin]) -> PluginsGrpc:
    return PluginsGrpc(lambda: plugins, Owners.nobody, None)


async def explained(plugins: list[Plugin], name: str) -> api.plugins.ExplainResponse:
    return await service(plugins).explain(api.plugins.ExplainRequest(plugin=name))


@pytest.mark.parametrize("name", [URI, "snapshotter.v1.acme", "acme"])
async def test_a_plugin_is_found_by_uri_short_uri_or_id(plugins: list[Plugin], name: str) -> None:
    found = await explained(plugins, name)
    assert found.health is not None
    assert (found.health.kind, found.health.id, found.distribution) == (kinds.SNAPSHOTTER, "acme", "acme-package")
    assert found.required_by == [f"{kinds.METADATA}.bolt"]


async def test_an_unknown_name_and_one_of_several_are_refused(plugins: list[Plugin]) -> None:
    with pytest.raises(NotFound, match="plugin nobody"):
        await explained(plugins, "nobody")
    plugins.append(plugin(kinds.CONTENT, "acme"))
    with pytest.raises(InvalidArgument, match="several plugins are called acme"):
        await explained(plugins, "acme")


async def test_calls_latencies_and_errors_are_told_by_method(plugins: list[Plugin]) -> None:
    acme = plugins[0].instance
    await acme.stat("k")
    with pytest.raises(NotFound):
        await acme.stat("x")
    found = await explained(plugins, URI)
    (method,) = found.methods
    assert (method.name, method.timeout) == ("stat", "io.containerd.timeout.plugin.quick")
    assert (method.calls, method.errors, method.limit_ns) == (2, 1, 5_000_000_000)
    assert 0 < method.p50_ns <= method.p99_ns
    assert method.last_error == "snapshot x does not exist"
    assert found.health is not None
    assert (found.health.calls, found.health.errors) == (2, 1)
    assert found.health.last_error == "stat: snapshot x does not exist"
    assert found.health.last_error_at is not None


async def test_what_runs_and_what_was_left_is_told(plugins: list[Plugin]) -> None:
    acme = plugins[0]
    acme.health.tasks.add(f"{URI}:pump")
    acme.health.leaked.append("forgotten")
    acme.health.note_block(Block(plugin=URI, where="/srv/a.py:7", seconds=0.5))
    acme.health.rss_bytes = lambda: 4096
    running = asyncio.get_running_loop().create_task(acme.instance.prepare("k"))
    await anyio.wait_all_tasks_blocked()
    found = await explained(plugins, URI)
    running.cancel()
    assert (found.tasks, found.leaked_tasks, found.other_tasks) == ([f"{URI}:pump"], ["forgotten"], [])
    assert found.rss_bytes == 4096
    assert found.last_block == api.plugins.Block(where="/srv/a.py:7", duration_ns=500_000_000)
    assert found.health is not None
    assert (found.health.in_flight, found.health.blocks, found.health.blocked_ns) == (1, 1, 500_000_000)


async def test_tasks_of_the_plugins_code_are_told_also_without_its_context(plugins: list[Plugin]) -> None:
    owners = Owners({"acme": (URI,)})
    task = asyncio.get_running_loop().create_task(anyio.sleep_forever(), name=f"{URI}:stray")
    await anyio.wait_all_tasks_blocked()
    found = await PluginsGrpc(lambda: plugins, lambda: owners, None).explain(api.plugins.ExplainRequest(plugin=URI))
    task.cancel()
    assert found.other_tasks == [f"{URI}:stray"]


async def test_every_plugin_has_a_row_of_health(plugins: list[Plugin]) -> None:
    found = await service(plugins).list_health(api.plugins.ListHealthRequest())
    assert [(row.id, row.state) for row in found.plugins] == [
        ("acme", "ok"), ("bolt", "ok"), ("grpc", "ok"), ("other", "skip"),
    ]  # fmt: skip
    assert found.plugins[3].reason == "no kernel: skip plugin"


async def test_a_reload_tells_its_changes() -> None:
    async def reload() -> Sequence[Change]:
        return [Change(URI, ADDED, "hello")]

    answer = await PluginsGrpc(list, Owners.nobody, reload).reload(api.plugins.ReloadRequest())
    assert answer.changes == [api.plugins.Change(subject=URI, outcome="added", detail="hello")]


async def test_a_daemon_that_cannot_reload_says_so(plugins: list[Plugin]) -> None:
    with pytest.raises(FailedPrecondition, match="cannot read its config again"):
        await service(plugins).reload(api.plugins.ReloadRequest())


class Hello:
    """A gRPC service."""

    service_name = "acme.Hello"


class Server:
    """A server whose front end counted some calls."""

    def __init__(self) -> None:
        self.front = SimpleNamespace(metrics=Metrics())
        metrics = self.front.metrics
        for code, seconds in ((0, 0.001), (0, 0.001), (5, 0.04), (4, 2.0)):
            metrics.started["/acme.Hello/Say"] += 1
            metrics.finished("/acme.Hello/Say", code, seconds)
        metrics.failed("/acme.Hello/Say", "nobody is there")
        metrics.started["/acme.Hello/Say"] += 1
        metrics.started["/acme.Hello/Sing"] += 1
        metrics.finished("/acme.Hello/Sing", 0, 8.0)
        metrics.started["/acme.HelloAgain/Say"] += 1


async def test_a_service_is_told_by_what_the_front_ends_count() -> None:
    plugins = [plugin(kinds.GRPC, "hello", instance=Hello()), plugin(kinds.SERVER, "grpc", instance=Server())]
    found = await explained(plugins, "hello")
    method = found.methods[0]
    assert (method.name, method.calls, method.errors, method.expired, method.in_flight) == ("Say", 4, 2, 1, 1)
    assert (method.p50_ns, method.p99_ns, method.last_error) == (5_000_000, 2_500_000_000, "nobody is there")
    assert found.health is not None
    assert (found.health.calls, found.health.in_flight) == (5, 1)
    assert (found.health.p50_ns, found.health.p99_ns) == (50_000_000, 10_000_000_000)
    assert found.health.last_error == "Say: nobody is there"
