"""Run a plugin without a daemon and serve it to one: `aiocontainerd-plugin serve`.

The plugin gets what a daemon would give it: its decoded config, directories of its own, and an event bus, which nobody
else hears. A differ also gets the content of the daemon that `content` names, in the namespace and lease of each call,
and the programs of `[stream_processors]`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio.abc import TaskStatus

from aiocontainerd import kinds
from aiocontainerd.cli.plugin import target
from aiocontainerd.config import Config, load
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.config.timeouts import NOTIFY, PLUGIN_CONTENT, SERVER_STOP
from aiocontainerd.daemon import disks, service_manager
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.host import conformance, loading
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import PluginError, Registration
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.interfaces.snapshotter import named
from aiocontainerd.sys import systemd

if TYPE_CHECKING:
    from aiocontainerd.interfaces.rpc_service import Service
    from aiocontainerd.interfaces.services import Deprecation
    from aiocontainerd.interfaces.snapshotter import Snapshotter

log = logging.getLogger(__name__)

DEFAULT_ROOT = "/var/lib/aiocontainerd-plugin"
DEFAULT_STATE = "/run/aiocontainerd-plugin"
_UNLIMITED_S = 99_999_999.0
"""The longest timeout that a gRPC call can carry."""


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve, and how. `uid` and `gid` own the socket. `namespace` is for calls that name none."""

    target: str
    address: str
    root: Path = Path(DEFAULT_ROOT)
    state: Path = Path(DEFAULT_STATE)
    config: Path | None = None
    plugin_id: str = ""
    content: str = ""
    namespace: str = ""
    uid: int = msgspec.field(default_factory=os.geteuid)
    gid: int = msgspec.field(default_factory=os.getegid)
    ready_fd: int = -1
    """Descriptor that gets a line and is closed once the socket serves; -1 for none."""


async def run(options: ServeOptions) -> bool:
    """Serve until SIGTERM or SIGINT. Raises PluginError, ConfigError, ContainerdError, OSError before it serves.

    Return True if it ended to be started again: its root was read-only and can be written now.
    """
    from aiocontainerd.daemon import lock

    config = Config({}, {}) if options.config is None else load(options.config)
    for warning in config.warnings:
        log.warning("%s", warning)
    registry = Registry()
    chosen = [registry.add(registration) for registration in target.registrations(options.target, options.plugin_id)]
    config.declare(plugin.registration for plugin in chosen)
    for stand_in in _stand_ins(options, config, chosen):
        registry.add(stand_in)
    for program in _programs(loading.load(options.target), config, chosen):
        registry.add(program)
    stop, again = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as signals:
        await signals.start(_handle_signals, stop, name="signals")
        try:
            with lock.hold(_made(options.root / chosen[0].uri)):
                check = _check_of(chosen)
                daemon = _daemon(options, registry, config)
                async with registry.run(daemon, config.plugin_config, check=check), _watchdog(config, registry):
                    signals.start_soon(_stop_when_writable, registry, stop, again, name="disks")
                    await _serve(options, config, registry, chosen, stop)
        finally:
            signals.cancel_scope.cancel()
    return again.is_set()


async def _stop_when_writable(registry: Registry, stop: anyio.Event, again: anyio.Event) -> None:
    """Stop when what was opened on a read-only file system can be opened in its place."""
    await disks.watch(registry, again)
    stop.set()


def _check_of(chosen: Sequence[Plugin]) -> Callable[[str, object], object]:
    """Return the check of instances at load. What stands in for a plugin of the daemon need not be a whole one."""
    served = {plugin.kind for plugin in chosen}
    return lambda kind, instance: conformance.check(kind, instance) if kind in served else None


@asynccontextmanager
async def _watchdog(config: Config, registry: Registry) -> AsyncIterator[None]:
    """Name in the log whatever line of the plugin blocks the event loop, as in a daemon."""
    from aiocontainerd.guard.watchdog import Watchdog

    threshold_s = config.settings.debug.block_threshold.seconds
    watchdog = Watchdog(threshold_s, registry.owners, lambda _block: None)
    await watchdog.start()
    try:
        yield
    finally:
        await watchdog.stop()


async def _serve(
    options: ServeOptions, config: Config, registry: Registry, chosen: Sequence[Plugin], stop: anyio.Event
) -> None:
    from aiocontainerd.rpc.grpc import GrpcFrontEnd
    from aiocontainerd.rpc.sockets import bind_unix

    for plugin in chosen:
        if plugin.state != State.LOADED:
            cause = registry.get(plugin.caused_by) or plugin
            raise PluginError(f"plugin {plugin.uri} is not loaded: {cause.reason}")
    front = GrpcFrontEnd(services(chosen, registry, options.state))
    bound = bind_unix(options.address.removeprefix("unix://"), options.uid, options.gid)
    try:
        await front.start(bound.sock)
        registry.serves()
        log.info("serving %s on %s", ", ".join(plugin.uri for plugin in chosen), bound.path)
        await service_manager.tell(systemd.READY, config.timeout_s(NOTIFY.key))
        _write_line(options.ready_fd)
        await stop.wait()
        await service_manager.tell(systemd.STOPPING, config.timeout_s(NOTIFY.key))
    finally:
        with anyio.CancelScope(shield=True):
            await front.stop(config.timeout_s(SERVER_STOP.key) or math.inf)
        bound.remove()


def services(chosen: Sequence[Plugin], registry: Registry, state: Path) -> list[Service]:
    """Return what is served: the services of the plugins, introspection (which tells capabilities) and health."""
    from aiocontainerd.host.introspection import DaemonIntrospection
    from aiocontainerd.serve.content import ContentGrpc
    from aiocontainerd.serve.diff import DiffGrpc
    from aiocontainerd.serve.health import HealthGrpc
    from aiocontainerd.serve.introspection import IntrospectionGrpc
    from aiocontainerd.serve.snapshots import SnapshotsGrpc

    of_kind = {kind: [plugin for plugin in chosen if plugin.kind == kind] for kind in target.SERVED_KINDS}
    introspection = DaemonIntrospection(lambda: registry.plugins, state / "uuid", _NoDeprecations())
    served: list[Service] = [HealthGrpc(), IntrospectionGrpc(introspection)]
    if of_kind[kinds.SNAPSHOTTER]:
        served.append(SnapshotsGrpc(Snapshotters(of_kind[kinds.SNAPSHOTTER])))
    content = target.sole(of_kind[kinds.CONTENT], "content")
    if content is not None:
        served.append(ContentGrpc(content.instance))
    differ = target.sole(of_kind[kinds.DIFFER], "diff")
    if differ is not None:
        served.append(DiffGrpc(differ.instance))
    return served


class Snapshotters:
    """Snapshotters by the name in a request. A single one answers to any name, as the daemon's config chooses it."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._by_id = {plugin.id: plugin for plugin in plugins}

    def snapshotter(self, name: str) -> Snapshotter:
        """Return a snapshotter. Raises InvalidArgument for a name that could mean any of several."""
        alone = next(iter(self._by_id.values())) if len(self._by_id) == 1 else None
        snapshotter: Snapshotter = (alone or named(name, self._by_id)).instance
        return snapshotter


class _NoDeprecations:
    """A DeprecationLog that is always empty."""

    def emit(self, deprecation: str) -> None:
        raise InvalidArgument(f"unknown deprecation {deprecation}")

    def warnings(self) -> list[Deprecation]:
        return []


class ContentOfDaemon(msgspec.Struct, frozen=True):
    """The part of a metadata store that a differ uses."""

    content: Any


def _stand_ins(options: ServeOptions, config: Config, chosen: Sequence[Plugin]) -> list[Registration]:
    """Return what plugins require of a daemon: the event exchange, and the content behind `content`."""
    limit_s = config.timeout_s(f"{PLUGIN_CONTENT.key}.{chosen[0].uri}") or _UNLIMITED_S

    async def content_of_daemon(context: InitContext[PluginConfig]) -> object:
        if not options.content:
            raise PluginError("it needs the content of a daemon: name its socket with --content")
        from aiocontainerd.client.connection import CallerConnection
        from aiocontainerd.client.content import Content
        from aiocontainerd.rpc.grpc_client import GrpcClient

        client = GrpcClient(options.content)

        async def close() -> None:
            client.close()

        context.on_stop(close)
        store = Content(CallerConnection(client, namespace=options.namespace, timeout_s=limit_s))
        return ContentOfDaemon(store) if context.uri.startswith(kinds.METADATA) else store

    from aiocontainerd.daemon.servers import init_exchange

    found = [
        Registration(kind=kinds.EVENT, id="exchange", init=init_exchange),
        Registration(kind=kinds.METADATA, id="bolt", init=content_of_daemon),
    ]
    if all(plugin.kind != kinds.CONTENT for plugin in chosen):
        found.append(Registration(kind=kinds.CONTENT, id="content", init=content_of_daemon))
    return found


def _programs(target_object: object, config: Config, chosen: Iterable[Plugin]) -> list[Registration]:
    """Return the stream processors of the config if the module of a served differ can run them."""
    register = getattr(target_object, "register_stream_processor", None)
    if register is None or kinds.DIFFER not in {plugin.kind for plugin in chosen}:
        return []
    return [register(name, settings) for name, settings in config.stream_processors.items()]


def _daemon(options: ServeOptions, registry: Registry, config: Config) -> DaemonInfo:
    from aiocontainerd.wire.events import message_bus

    return DaemonInfo(
        root=_made(options.root),
        state=_made(options.state),
        temp=Path(tempfile.gettempdir()),
        grpc_address=options.content,
        ttrpc_address="",
        bus=message_bus(),
        plugins=lambda: registry.plugins,
        timeout_s=config.timeout_s,
        debug=log.isEnabledFor(logging.DEBUG),
    )


async def _handle_signals(stop: anyio.Event, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Handle signals until cancelled. It has started when it does: plugins must not be blamed for the handlers."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            log.info("stopping on %s", signal.Signals(number).name)
            stop.set()


def _write_line(descriptor: int) -> None:
    """Write a line to a descriptor and close it, which says that the socket serves."""
    if descriptor >= 0:
        os.write(descriptor, b"\n")
        os.close(descriptor)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory
