"""Stand-ins for the plugins that a plugin under test requires: fakes in memory under containerd's own ids.

    async with host.running(tmp_path, Acme, others=stand_ins.needed_by(Acme)) as daemon: ...

The contract suites use them by themselves. Content, snapshotters, metadata, leases, and the services over them work in
memory, all on the same records. Plugins of the other kinds are there, and each of their methods raises Unimplemented,
naming itself. `--target-needs MODULE[:NAME]` of the suites, or `others` of a host, bring a real one instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from aiocontainerd import kinds
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.errors import Unimplemented
from aiocontainerd.host import authoring, conformance
from aiocontainerd.host.init_context import InitContext
from aiocontainerd.host.registration import Registration
from aiocontainerd.interfaces import SERVICES, protocol_of
from aiocontainerd.testing.fake_records import FakeMetadata

IDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        kinds.CONTENT: ("content",),
        kinds.DIFFER: ("walking",),
        kinds.EVENT: ("exchange",),
        kinds.GC: ("scheduler",),
        kinds.LEASE: ("manager",),
        kinds.METADATA: ("bolt",),
        kinds.RUNTIME: ("task",),
        kinds.SERVICE: tuple(SERVICES),
        kinds.SHIM: ("manager",),
        kinds.SHIM_LAUNCHER: ("aio",),
        kinds.SNAPSHOTTER: ("overlayfs", "native"),
        kinds.WARNING: ("deprecations",),
    }
)
"""Ids under which a daemon has plugins of a kind. Those of any other kind are called `stand-in`."""
_NOT_REQUIRED = (kinds.ALL, kinds.GRPC, kinds.TTRPC, kinds.SERVER)
_BY_SERVICE: Mapping[str, Callable[[FakeMetadata], object]] = MappingProxyType(
    {
        "containers-service": lambda metadata: metadata.containers,
        "content-service": lambda metadata: metadata.content,
        "images-service": lambda metadata: metadata.images,
        "namespaces-service": lambda metadata: metadata.namespaces,
        "snapshots-service": lambda metadata: metadata,
    }
)


class FakeDeprecations:
    """A `DeprecationLog` that remembers the ids that were emitted."""

    def __init__(self) -> None:
        self.emitted: list[str] = []

    def emit(self, deprecation: str) -> None:
        self.emitted.append(deprecation)

    def warnings(self) -> list[Any]:
        return []


def needed_by(
    target: object, *, without: Iterable[str] = (), metadata: FakeMetadata | None = None
) -> list[Registration]:
    """Return a stand-in for each kind that a decorated class or a Registration requires or wants.

    `without` names kinds that the test brings itself. `metadata` are the records to work on.
    """
    registrations = [target] if isinstance(target, Registration) else authoring.carried(target)
    wanted = {kind for one in registrations for kind in (*one.requires, *one.wants)}
    return of_kinds(sorted(wanted - {*without}), FakeMetadata() if metadata is None else metadata)


def of_kinds(names: Iterable[str], metadata: FakeMetadata) -> list[Registration]:
    """Return the stand-ins of kinds, all of them over the same records."""
    return [
        Registration(kind=kind, id=plugin_id, init=_init_of(kind, plugin_id, metadata))
        for kind in names
        if kind not in _NOT_REQUIRED
        for plugin_id in IDS.get(kind, ("stand-in",))
    ]


def _init_of(kind: str, plugin_id: str, metadata: FakeMetadata) -> Callable[[InitContext[PluginConfig]], Any]:
    async def init(context: InitContext[PluginConfig]) -> object:
        return context.bus if kind == kinds.EVENT else _instance(kind, plugin_id, metadata)

    return init


def _instance(kind: str, plugin_id: str, metadata: FakeMetadata) -> object:
    if kind == kinds.SERVICE and plugin_id in _BY_SERVICE:
        return _BY_SERVICE[plugin_id](metadata)
    if kind in (kinds.METADATA, kinds.GC):
        return metadata
    if kind == kinds.CONTENT:
        return metadata.content
    if kind == kinds.SNAPSHOTTER:
        return metadata.backends[plugin_id]
    if kind == kinds.LEASE:
        return metadata.leases
    if kind == kinds.WARNING:
        return FakeDeprecations()
    protocol = protocol_of(kind, plugin_id)
    return object() if protocol is None else unimplemented(protocol)()


@cache
def unimplemented(protocol: type) -> type:
    """Return a class with every member of a Protocol. Its methods raise Unimplemented; its attributes are empty."""
    members: dict[str, object] = {}
    for member in conformance.members(protocol):
        if not member.is_method:
            members[member.name] = member.empty
        elif member.is_stream:
            members[member.name] = _raising_stream(protocol.__name__, member.name)
        else:
            members[member.name] = _raising(protocol.__name__, member.name, awaited=member.is_awaited)
    return type(f"StandIn{protocol.__name__}", (), members)


def _error(protocol: str, name: str) -> Unimplemented:
    return Unimplemented(f"the stand-in of {protocol} has no {name}; bring a plugin that has: --target-needs, others=")


def _raising(protocol: str, name: str, *, awaited: bool) -> Callable[..., Any]:
    def method(_self: object, *_args: object, **_kwargs: object) -> Any:
        raise _error(protocol, name)

    async def coroutine(_self: object, *_args: object, **_kwargs: object) -> Any:
        raise _error(protocol, name)

    return coroutine if awaited else method


def _raising_stream(protocol: str, name: str) -> Callable[..., AsyncIterator[Any]]:
    async def stream(_self: object, *_args: object, **_kwargs: object) -> AsyncIterator[Any]:
        raise _error(protocol, name)
        yield

    return stream
