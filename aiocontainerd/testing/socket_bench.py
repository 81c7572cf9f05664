"""Targets behind a socket: a daemon's services in a namespace of the test's own, held by a lease against collection."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from aiocontainerd import kinds
from aiocontainerd.client.client import Client
from aiocontainerd.client.content import Content
from aiocontainerd.client.diff import Diff
from aiocontainerd.distribution.leases import held
from aiocontainerd.errors import ContainerdError, FailedPrecondition, NotFound
from aiocontainerd.testing.target import Bench, Target, TargetError

CALL_TIMEOUT_S = 30.0
CLEANUP_S = 30.0
DELETE_TRIES = 20
DELETE_PAUSE_S = 0.1


class SocketBench:
    """What a daemon has, as the interfaces have it. See `target.Bench`."""

    remote = True

    def __init__(self, target: Target, client: Client) -> None:
        self._target = target
        self._client = client

    @asynccontextmanager
    async def open(self, kind: str, root: Path, needs: Mapping[str, Any]) -> AsyncIterator[Any]:  # noqa: ARG002
        """See `target.Bench`. Raises TargetError for a kind that has no service."""
        if kind == kinds.SNAPSHOTTER:
            yield self._client.snapshots(self._snapshotter())
        elif kind == kinds.CONTENT:
            yield Content(self._client.connection)
        elif kind == kinds.DIFFER:
            yield Diff(self._client.connection)
        else:
            raise TargetError(f"plugins of kind {kind} have no service behind a socket; name a module")

    async def capabilities(self, kind: str) -> frozenset[str]:
        """See `target.Bench`."""
        found = await self._client.introspection.plugins([f"type=={kind}"])
        own = [plugin for plugin in found if kind != kinds.SNAPSHOTTER or plugin.id == self._target.name]
        return self._target.capabilities.union(*(plugin.capabilities for plugin in own))

    def _snapshotter(self) -> str:
        if not self._target.name:
            raise TargetError(
                f"--target {self._target.text}: name the snapshotter, as in {self._target.path}#overlayfs"
            )
        return self._target.name


@asynccontextmanager
async def socket_bench(target: Target) -> AsyncIterator[Bench]:
    """Yield a bench in a namespace of its own. The namespace and everything in it are removed afterwards."""
    name = target.namespace or f"suite-{secrets.token_hex(4)}"
    async with Client(target.path, namespace=name, timeout_s=CALL_TIMEOUT_S) as client:
        await _claim(client, target.name)
        try:
            async with held(client.leases) as lease:
                view = client.under(lease=lease.id)
                try:
                    yield SocketBench(target, view)
                finally:
                    with anyio.move_on_after(CLEANUP_S, shield=True):
                        await _remove_all(view, target.name)
        finally:
            with anyio.move_on_after(CLEANUP_S, shield=True):
                await _remove_namespace(client)


async def _claim(client: Client, snapshotter: str) -> None:
    """Make the namespace. One that holds something is somebody's: everything in it would be deleted."""
    if any(space.name == client.namespace for space in await client.namespaces.list()):
        if await _holds_anything(client, snapshotter):
            raise TargetError(f"namespace {client.namespace} is not empty; the suite would delete what is in it")
    else:
        await client.namespaces.create(client.namespace)


async def _holds_anything(client: Client, snapshotter: str) -> bool:
    blobs = [info async for info in client.content.walk()]
    found: list[object] = [*blobs, *await client.images.list(), *await client.containers.list()]
    if snapshotter:
        found += [info async for info in client.snapshots(snapshotter).walk()]
    return bool(found)


async def _remove_all(client: Client, snapshotter: str) -> None:
    """Remove what a test made. The lease is still held, so that no collection does it at the same time."""
    if snapshotter:
        await _remove_snapshots(client, snapshotter)
    for status in await client.content.statuses():
        await client.content.abort(status.ref)
    for info in [info async for info in client.content.walk()]:
        await client.content.delete(info.digest)


async def _remove_snapshots(client: Client, snapshotter: str) -> None:
    """Children first."""
    snapshots = client.snapshots(snapshotter)
    while left := [info async for info in snapshots.walk()]:
        parents = {info.parent for info in left}
        for info in left:
            if info.name not in parents:
                await snapshots.remove(info.name)


async def _remove_namespace(client: Client) -> None:
    """Remove the namespace. A daemon may hold an ingest for a moment after the stream that wrote it has ended."""
    for _ in range(DELETE_TRIES):
        try:
            await client.namespaces.delete(client.namespace)
        except NotFound:
            return
        except FailedPrecondition:
            await anyio.sleep(DELETE_PAUSE_S)
        except ContainerdError as error:
            raise TargetError(f"namespace {client.namespace} cannot be removed: {error}") from error
        else:
            return
    raise TargetError(f"namespace {client.namespace} cannot be removed: something in it is not the suite's")
