"""Registrations of content, snapshots and diff: what images and containers are made of.

A service to which nothing is left to add is the metadata store or its part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, kinds

if TYPE_CHECKING:
    from aiocontainerd.interfaces.differ import Differ

Context = InitContext[PluginConfig]


class DiffConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins."io.containerd.service.v1.diff-service"]` (facts/core 8)."""

    default: tuple[str, ...] = ("walking",)
    """Ids of differs, each asked where the one before it does not know the layer, the mounts or the media type."""
    sync_fs: bool = False
    """Sync the file system after every layer, whether the client asks for it or not."""


def registrations() -> Iterable[Registration]:
    """Return the registrations of this module."""
    return [
        Registration(kind=kinds.SERVICE, id="content-service", requires=(kinds.METADATA,), init=_content),
        Registration(kind=kinds.GRPC, id="content", requires=(kinds.SERVICE,), init=_content_grpc),
        Registration(kind=kinds.SERVICE, id="snapshots-service", requires=(kinds.METADATA,), init=_snapshots),
        Registration(kind=kinds.GRPC, id="snapshots", requires=(kinds.SERVICE,), init=_snapshots_grpc),
        Registration(kind=kinds.SERVICE, id="diff-service", requires=(kinds.DIFFER,), config=DiffConfig, init=_diff),
        Registration(kind=kinds.GRPC, id="diff", requires=(kinds.SERVICE,), init=_diff_grpc),
    ]


async def _content(context: Context) -> object:
    return context.get_single(kinds.METADATA).content


async def _content_grpc(context: Context) -> object:
    from aiocontainerd.serve.content import ContentGrpc

    return ContentGrpc(context.get(kinds.SERVICE, "content-service"))


async def _snapshots(context: Context) -> object:
    return context.get_single(kinds.METADATA)


async def _snapshots_grpc(context: Context) -> object:
    from aiocontainerd.serve.snapshots import SnapshotsGrpc

    return SnapshotsGrpc(context.get(kinds.SERVICE, "snapshots-service"))


async def _diff(context: InitContext[DiffConfig]) -> object:
    from aiocontainerd_services.diff import DiffService, choose

    names, loaded = context.config.default, context.get_all(kinds.DIFFER)
    service = DiffService(choose(names, loaded), sync_fs=context.config.sync_fs)

    def follow(name: str, differ: Differ | None) -> None:
        if differ is None:
            loaded.pop(name, None)
        else:
            loaded[name] = differ
        service.use(choose([name for name in names if name in loaded], loaded))

    context.watch(kinds.DIFFER, follow)
    return service


async def _diff_grpc(context: Context) -> object:
    from aiocontainerd.serve.diff import DiffGrpc

    return DiffGrpc(context.get(kinds.SERVICE, "diff-service"))
