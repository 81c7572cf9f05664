"""Introspection, deprecations, events, version, health and diff."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiocontainerd_services.deprecations import PREFIX, Deprecations
from aiocontainerd_services.diff import DiffService, choose

import aiocontainerd
from aiocontainerd import api, context, kinds, typeurl
from aiocontainerd.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented, Unknown
from aiocontainerd.events import EventBus
from aiocontainerd.host.introspection import DaemonIntrospection, load_uuid
from aiocontainerd.host.registration import PluginError, Registration
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.oci import platform
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.serve.diff import DiffGrpc
from aiocontainerd.serve.events import EventsGrpc, EventsTtrpc
from aiocontainerd.serve.health import HealthGrpc
from aiocontainerd.serve.introspection import IntrospectionGrpc
from aiocontainerd.serve.version import VersionGrpc
from aiocontainerd.sys.mount import Mount
from aiocontainerd.testing.disks import MemoryDisk
from aiocontainerd.wire import codec
from aiocontainerd.wire.times import time_to_wire

pytestmark = pytest.mark.anyio


# DaemonIntrospection


async def _init(_context: Any) -> object:
    return object()


def plugin(kind: str, plugin_id: str, state: State = State.LOADED, reason: str = "", code: int = 0) -> Plugin:
    made = Plugin(Registration(kind=kind, id=plugin_id, requires=("io.containerd.event.v1",), init=_init))
    made.state, made.reason, made.code, made.instance = state, reason, code, object()
    return made


def introspection(tmp_path: Path, *plugins: Plugin) -> IntrospectionGrpc:
    deprecations = Deprecations(lambda: 5)
    deprecations.emit("cgroup-v1")
    return IntrospectionGrpc(DaemonIntrospection(lambda: plugins, tmp_path / "intro" / "uuid", deprecations))


async def test_plugins_show_what_each_declared(tmp_path: Path) -> None:
    shown = plugin("io.containerd.snapshotter.v1", "overlayfs")
    shown.exports["root"] = "/r"
    shown.capabilities.append("rebase")
    shown.platforms.append("linux/arm64/v8")
    answer = await introspection(tmp_path, shown).plugins(api.introspection.PluginsRequest())
    assert answer.plugins == [
        api.introspection.Plugin(
            type="io.containerd.snapshotter.v1",
            id="overlayfs",
            requires=["io.containerd.event.v1"],
            platforms=[api.types.Platform(os="linux", architecture="arm64", variant="v8")],
            exports={"root": "/r"},
            capabilities=["rebase"],
        )
    ]


async def test_snapshotters_and_differs_are_for_the_host_where_they_name_no_platform(tmp_path: Path) -> None:
    shown = plugin(kinds.SNAPSHOTTER, "a"), plugin(kinds.DIFFER, "b", State.SKIPPED), plugin(kinds.CONTENT, "c")
    answer = await introspection(tmp_path, *shown).plugins(api.introspection.PluginsRequest())
    host = platform.default()
    of_host = [api.types.Platform(os="linux", architecture=host.architecture, variant=host.variant)]
    assert [found.platforms for found in answer.plugins] == [of_host, of_host, []]


async def test_failed_and_skipped_plugins_are_shown_with_their_error_and_disabled_ones_are_not(tmp_path: Path) -> None:
    service = introspection(
        tmp_path,
        plugin("k", "bad", State.FAILED, "no such pool: not found", 5),
        plugin("k", "odd", State.SKIPPED, "no zfs: skip plugin", 2),
        plugin("k", "off", State.DISABLED, "disabled by configuration"),
    )
    found = (await service.plugins(api.introspection.PluginsRequest())).plugins
    errors = {p.id: p.init_err for p in found}
    assert errors == {
        "bad": api.rpc.Status(code=5, message="no such pool: not found"),
        "odd": api.rpc.Status(code=2, message="no zfs: skip plugin"),
    }


async def test_plugins_are_filtered_by_type_and_id(tmp_path: Path) -> None:
    service = introspection(tmp_path, plugin("t1", "a"), plugin("t1", "b"), plugin("t2", "a"))

    async def ids(*filters: str) -> list[tuple[str, str]]:
        answer = await service.plugins(api.introspection.PluginsRequest(filters=list(filters)))
        return [(p.type, p.id) for p in answer.plugins]

    assert await ids("type==t1,id==a") == [("t1", "a")]
    assert await ids("id==b", "type==t2") == [("t1", "b"), ("t2", "a")]
    with pytest.raises(InvalidArgument, match="parse error"):
        await ids("type==,,")


async def test_server_tells_a_lasting_uuid_and_what_is_deprecated(tmp_path: Path) -> None:
    service = introspection(tmp_path)
    first = await service.server(api.protobuf.Empty())
    again = await introspection(tmp_path).server(api.protobuf.Empty())
    assert uuid.UUID(first.uuid).version == 4
    assert first.uuid == again.uuid == (tmp_path / "intro" / "uuid").read_text()
    assert (first.pid, first.pidns) == (os.getpid(), Path("/proc/self/ns/pid").stat().st_ino)
    assert [(d.id, d.last_occurrence) for d in first.deprecations] == [(PREFIX + "cgroup-v1", time_to_wire(5))]


def test_an_empty_uuid_file_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "uuid"
    file.write_text("")
    assert load_uuid(file) == file.read_text()
    assert [f.name for f in tmp_path.iterdir()] == ["uuid"]


@pytest.mark.root
def test_without_a_uuid_on_a_read_only_file_system_one_is_told_all_the_same(disk: MemoryDisk) -> None:
    disk.remount("ro")
    assert len(load_uuid(disk.directory / "intro" / "uuid")) == 36


class Telling:
    async def plugin_info(self, options: typeurl.Any) -> typeurl.Any:
        return typeurl.Any(options.type_url + "!", options.value)


async def test_plugin_info_asks_the_instance_only_when_options_are_given(tmp_path: Path) -> None:
    telling = plugin("k", "telling")
    telling.instance = Telling()
    service = introspection(tmp_path, telling)
    silent = await service.plugin_info(api.introspection.PluginInfoRequest(type="k", id="telling"))
    assert silent.extra is None
    options = api.protobuf.Any(type_url="containerd.types.RuntimeRequest", value=b"")
    request = api.introspection.PluginInfoRequest(type="k", id="telling", options=options)
    told = await service.plugin_info(request)
    assert told.extra == api.protobuf.Any(type_url="containerd.types.RuntimeRequest!", value=b"")


async def test_plugin_info_says_why_it_cannot_answer(tmp_path: Path) -> None:
    service = introspection(tmp_path, plugin("k", "mute"), plugin("k", "bad", State.FAILED, "broken", 2))

    async def ask(plugin_id: str, type_url: str = "containerd.types.RuntimeRequest") -> object:
        options = api.protobuf.Any(type_url=type_url)
        return await service.plugin_info(api.introspection.PluginInfoRequest(type="k", id=plugin_id, options=options))

    with pytest.raises(NotFound, match=r"^plugin k\.gone not found$"):
        await ask("gone")
    with pytest.raises(FailedPrecondition, match="broken"):
        await ask("bad")
    with pytest.raises(Unimplemented):
        await ask("mute")
    with pytest.raises(Unknown, match=r"types\.unheard\.Of"):
        await ask("mute", "types.unheard.Of")


def test_deprecations_keep_the_latest_use_and_refuse_unknown_ids() -> None:
    clock = iter([1, 2, 3])
    log = Deprecations(lambda: next(clock))
    log.emit("enable-cdi")
    log.emit("cri-cni-bin-dir")
    log.emit(PREFIX + "enable-cdi")
    assert [(w.id.removeprefix(PREFIX), w.last_occurrence_ns) for w in log.warnings()] == [
        ("cri-cni-bin-dir", 2),
        ("enable-cdi", 3),
    ]
    with pytest.raises(InvalidArgument, match="unknown deprecation nonsense"):
        log.emit("nonsense")


# Events


def event(value: bytes = b"") -> api.protobuf.Any:
    return api.protobuf.Any(type_url="example.Foreign", value=value)


def envelope(**fields: Any) -> api.types.Envelope:
    given: dict[str, Any] = {
        "timestamp": time_to_wire(9),
        "namespace": "n",
        "topic": "/a/b",
        "event": event(),
    }
    return api.types.Envelope(**{**given, **fields})


async def test_subscribers_get_published_and_forwarded_events_of_every_namespace() -> None:
    bus = EventBus(lambda: 7)
    service = EventsGrpc(bus)
    got: list[api.types.Envelope] = []

    async def subscriber() -> None:
        async with aclosing(service.subscribe(api.events.SubscribeRequest(filters=['topic=="/a/b"']))) as answers:
            async for message in answers:
                got.append(codec.decode(api.types.Envelope, message.data))  # noqa: PERF401 - it is cancelled

    async with anyio.create_task_group() as group:
        group.start_soon(subscriber)
        await anyio.wait_all_tasks_blocked()
        with context.use(namespace="here"):
            await service.publish(api.events.PublishRequest(topic="/a/b", event=event(b"\x01")))
            await service.publish(api.events.PublishRequest(topic="/other", event=event()))
        await service.forward(api.events.ForwardRequest(envelope=envelope()))
        await EventsTtrpc(bus).forward(api.events_ttrpc.ForwardRequest(envelope=envelope(namespace="m")))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert got == [
        envelope(timestamp=time_to_wire(7), namespace="here", event=event(b"\x01")),
        envelope(),
        envelope(namespace="m"),
    ]
    assert bus.statistics()["subscriptions"] == 0


async def test_publish_needs_a_namespace_and_a_topic_but_no_event() -> None:
    bus = EventBus()
    service = EventsGrpc(bus)
    with pytest.raises(FailedPrecondition, match="namespace is required"):
        await service.publish(api.events.PublishRequest(topic="/a", event=event()))
    with context.use(namespace="n"), bus.subscribe() as heard:
        with pytest.raises(InvalidArgument, match='envelope topic "": must not be empty'):
            await service.publish(api.events.PublishRequest())
        await service.publish(api.events.PublishRequest(topic="/a"))
        assert (await anext(heard)).topic == "/a"


async def test_forward_refuses_what_is_no_envelope() -> None:
    service = EventsGrpc(EventBus())
    with pytest.raises(InvalidArgument, match="field envelope must be set"):
        await service.forward(api.events.ForwardRequest())
    with pytest.raises(InvalidArgument, match='envelope topic "": must not be empty'):
        await service.forward(api.events.ForwardRequest(envelope=envelope(topic="")))


async def test_an_envelope_without_time_and_event_is_forwarded() -> None:
    bus = EventBus()
    with bus.subscribe() as heard:
        await EventsGrpc(bus).forward(api.events.ForwardRequest(envelope=envelope(event=None, timestamp=None)))
        received = await anext(heard)
    assert (received.timestamp_ns, received.event.type_url) == (0, "")


async def test_a_bad_subscription_filter_is_unknown() -> None:
    service = EventsGrpc(EventBus())
    text = r"^subscription error: failed parsing subscription filters: filters: parse error: .*: invalid argument$"
    with pytest.raises(Unknown, match=text):
        await anext(service.subscribe(api.events.SubscribeRequest(filters=["topic==/tasks/exit"])))


# Version, health


async def test_version_names_the_release_whose_api_is_served_and_ours() -> None:
    answer = await VersionGrpc().version(api.protobuf.Empty())
    assert answer.version == f"2.4.0+aiocontainerd.{aiocontainerd.__version__}"
    assert answer.revision == ""


async def test_the_daemon_serves_under_the_empty_name_only() -> None:
    service, status = HealthGrpc(), api.health.HealthCheckResponseServingStatus
    assert (await service.check(api.health.HealthCheckRequest())).status == status.SERVING
    with pytest.raises(NotFound, match=r"^unknown service$"):
        await service.check(api.health.HealthCheckRequest(service="x"))
    assert (await anext(service.watch(api.health.HealthCheckRequest()))).status == status.SERVING
    unknown = await anext(service.watch(api.health.HealthCheckRequest(service="x")))
    assert unknown.status == status.SERVICE_UNKNOWN


# Diff


class OneDiffer:
    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error = name, error
        self.asked: list[Any] = []

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        self.asked.append((layer, list(mounts), options))
        if self.error:
            raise self.error
        return Descriptor("tar", self.name, 1)

    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor:
        self.asked.append((list(lower), list(upper), options))
        if self.error:
            raise self.error
        return Descriptor("tar+gzip", self.name, 1)


def apply_request(**fields: Any) -> api.diff.ApplyRequest:
    mount = api.types.Mount(type="bind", source="/s", options=["rw"])
    return api.diff.ApplyRequest(diff=api.types.Descriptor(digest="d"), mounts=[mount], **fields)


async def test_only_a_differ_that_does_not_know_how_is_followed_by_the_next() -> None:
    first, second = OneDiffer("first", Unimplemented("unsupported")), OneDiffer("second")
    answer = await DiffGrpc(DiffService([first, second])).apply(apply_request())
    assert answer.applied is not None
    assert answer.applied.digest == "second"
    first.error = FailedPrecondition("broken")
    with pytest.raises(FailedPrecondition, match="broken"):
        await DiffGrpc(DiffService([first, second])).apply(apply_request())
    assert len(second.asked) == 1


async def test_where_no_differ_knows_how_the_last_refusal_is_the_answer() -> None:
    differs = [OneDiffer("a", Unimplemented("first")), OneDiffer("b", Unimplemented("last"))]
    with pytest.raises(Unimplemented, match="last"):
        await DiffGrpc(DiffService(differs)).diff(api.diff.DiffRequest())


@pytest.mark.parametrize(
    ("configured", "asked", "synced"), [(False, False, False), (True, False, True), (False, True, True)]
)
async def test_either_config_or_request_makes_apply_sync(configured: bool, asked: bool, synced: bool) -> None:
    differ = OneDiffer("a")
    payloads = {"p": api.protobuf.Any(type_url="t", value=b"v")}
    service = DiffGrpc(DiffService([differ], sync_fs=configured))
    await service.apply(apply_request(sync_fs=asked, payloads=payloads))
    options = ApplyOptions(payloads={"p": typeurl.Any("t", b"v")}, sync_fs=synced)
    assert differ.asked == [(Descriptor("", "d", 0, {}), [Mount("bind", "/s", "", ("rw",))], options)]


async def test_diff_hands_on_every_option() -> None:
    differ = OneDiffer("a")
    request = api.diff.DiffRequest(
        left=[api.types.Mount(type="l")],
        right=[api.types.Mount(type="r")],
        media_type="m",
        ref="ref",
        labels={"a": "b"},
        source_date_epoch=time_to_wire(11),
    )
    answer = await DiffGrpc(DiffService([differ])).diff(request)
    assert answer.diff == api.types.Descriptor(media_type="tar+gzip", digest="a", size=1)
    options = CompareOptions(media_type="m", reference="ref", labels={"a": "b"}, source_date_epoch_ns=11)
    assert differ.asked == [([Mount("l", "")], [Mount("r", "")], options)]


async def test_apply_without_a_layer_names_the_field() -> None:
    with pytest.raises(InvalidArgument, match="field diff must be set"):
        await DiffGrpc(DiffService([])).apply(api.diff.ApplyRequest())


def test_a_configured_differ_that_is_not_loaded_is_an_error_that_names_it() -> None:
    one = OneDiffer("a")
    assert choose(["a"], {"a": one}) == [one]
    with pytest.raises(PluginError, match=r"needed differ not loaded: zz \(loaded: a\)"):
        choose(["zz"], {"a": one})
