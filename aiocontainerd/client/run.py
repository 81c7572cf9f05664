"""Running a container: snapshot, record, task and streams, and their removal (facts/runtime 4.5, 4.6)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from aiocontainerd import labels, typeurl
from aiocontainerd.client.attach import Attachment
from aiocontainerd.distribution.leases import held
from aiocontainerd.distribution.unpack import default_snapshotter, unpack
from aiocontainerd.distribution.walk import Chosen, choose
from aiocontainerd.errors import AlreadyExists, ContainerdError, InvalidArgument, NotFound
from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.interfaces.runtime import IO
from aiocontainerd.oci import host
from aiocontainerd.oci import spec as specs
from aiocontainerd.oci import user as users
from aiocontainerd.oci.host import HostFacts
from aiocontainerd.oci.image import ContainerConfig
from aiocontainerd.sys.mount import temp_mount

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client
    from aiocontainerd.client.stdio import Streams
    from aiocontainerd.interfaces.runtime import Exit
    from aiocontainerd.oci.platform import Ranking
    from aiocontainerd.sys.mount import Mount

_NONE: Mapping[str, str] = MappingProxyType({})
DEFAULT_RUNTIME = "io.containerd.runc.v2"
STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"
RESERVED_LABELS = ("containerd.io/", "io.cri-containerd")
"""Prefixes that labels of an image may not have, only the client's own (facts/security 2026-53488)."""
CLEANUP_S = 60.0
_NO_RUNC_OPTIONS = typeurl.Any("containerd.runc.v1.Options", b"")
"""What `ctr run` records for a runtime that it knows, also without an option."""


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to run and how. `snapshotter` and `runtime` "" are the namespace's defaults."""

    image: str
    id: str
    wishes: specs.Wishes = specs.Wishes()
    user: str = ""
    snapshotter: str = ""
    runtime: str = ""
    runtime_options: typeurl.Any | None = None
    labels: Mapping[str, str] = _NONE


async def create_container(client: Client, options: RunOptions, rank: Ranking) -> Container:
    """Unpack the image if need be, prepare a snapshot named by the container's id, and create the record.

    A failure leaves no snapshot. Raises NotFound for the image, AlreadyExists for the id.
    """
    image = await client.images.get(options.image)
    with client.stores() as stores:
        snapshotter = options.snapshotter or await default_snapshotter(stores)
        async with held(stores.leases):
            chosen = await choose(stores.content, image.target, rank)
            _check_runs(chosen)
            parent = await unpack(stores, chosen, snapshotter)
            config = chosen.config.config or ContainerConfig()
            mounts = await stores.snapshotter(snapshotter).prepare(options.id, parent)
            try:
                user = await _user(options.user, config.user, mounts)
                spec = specs.make(client.namespace, options.id, config, user, options.wishes, await _host(options))
                made = {**image_labels(config), **image.labels, **options.labels}
                record = await _record(client, options, snapshotter, spec, {**made, **_stop_signal(config)})
                return await client.containers.create(record)
            except BaseException:
                await _remove_snapshot(client, snapshotter, options.id)
                raise


def _check_runs(chosen: Chosen) -> None:
    if not chosen.is_image:
        kind = chosen.manifest.config.media_type
        raise InvalidArgument(f'{chosen.target.digest} is no image that runs: its config is of type "{kind}"')


async def _host(options: RunOptions) -> HostFacts:
    return await anyio.to_thread.run_sync(host.look) if specs.needs_host(options.wishes) else HostFacts()


def _stop_signal(config: ContainerConfig) -> Mapping[str, str]:
    return {STOP_SIGNAL_LABEL: config.stop_signal or "SIGTERM"}


async def _record(
    client: Client, options: RunOptions, snapshotter: str, spec: specs.Spec, made: Mapping[str, str]
) -> Container:
    runtime = options.runtime or await _default_runtime(client)
    return Container(
        id=options.id,
        image=options.image,
        labels=made,
        runtime_name=runtime,
        runtime_options=options.runtime_options or (_NO_RUNC_OPTIONS if runtime == DEFAULT_RUNTIME else None),
        spec=specs.to_any(spec),
        snapshotter=snapshotter,
        snapshot_key=options.id,
    )


def image_labels(config: ContainerConfig) -> dict[str, str]:
    """Return the labels that an image gives its containers, without those that daemon or plugins act on."""
    taken = {}
    for key, value in (config.labels or {}).items():
        short = len(key.encode()) + len(value.encode()) <= labels.MAX_SIZE_BYTES
        if short and not key.startswith(RESERVED_LABELS):
            taken[key] = value
    return taken


async def run(client: Client, options: RunOptions, rank: Ranking, *, streams: Streams, remove: bool) -> Exit:
    """Run a container attached to this program until it ends. `remove` removes it then, whatever happens."""
    container = await create_container(client, options, rank)
    try:
        rootfs = await client.snapshots(container.snapshotter).mounts(container.snapshot_key)
        return await Attachment(client.tasks, container.id, streams=streams).run(
            lambda io: client.tasks.create(container.id, rootfs=rootfs, io=io), tty=options.wishes.tty
        )
    finally:
        if remove:
            await remove_container(client, container, force=True)


async def run_detached(client: Client, options: RunOptions, rank: Ranking, io: IO | None = None) -> int:
    """Run a container in the background and return its pid. One that does not start keeps its record but no task."""
    container = await create_container(client, options, rank)
    rootfs = await client.snapshots(container.snapshotter).mounts(container.snapshot_key)
    async with _undone(client, container.id):
        pid = await client.tasks.create(container.id, rootfs=rootfs, io=io or detached_io(tty=options.wishes.tty))
        await client.tasks.start(container.id)
    return pid


def detached_io(*, tty: bool) -> IO:
    """Return the streams of a process whose output is dropped. A terminal is read all the same, as it would fill up."""
    return IO(stdout=os.devnull, terminal=True) if tty else IO()


@asynccontextmanager
async def _undone(client: Client, container_id: str, exec_id: str = "") -> AsyncIterator[None]:
    """Delete the process that the block makes if the block fails or is cancelled."""
    try:
        yield
    except AlreadyExists:
        raise  # the process of that id is somebody else's
    except BaseException:
        with anyio.move_on_after(CLEANUP_S, shield=True):
            try:
                await client.tasks.delete(container_id, exec_id, force=True)
            except ContainerdError:
                pass  # there may be no process; the failure that led here is what counts
        raise


async def remove_container(client: Client, container: Container, *, force: bool = False) -> None:
    """Remove a container and its snapshot, with `force` also a running task. Missing parts are no error.

    Raises FailedPrecondition where the task runs and `force` isn't given.
    """
    with anyio.move_on_after(CLEANUP_S, shield=True):
        try:
            await client.tasks.delete(container.id, force=force)
        except NotFound:
            pass
        try:
            await client.containers.delete(container.id)
        except NotFound:
            pass
        if container.snapshot_key:
            await _remove_snapshot(client, container.snapshotter, container.snapshot_key)


async def _remove_snapshot(client: Client, snapshotter: str, key: str) -> None:
    with anyio.move_on_after(CLEANUP_S, shield=True):
        try:
            await client.snapshots(snapshotter).remove(key)
        except NotFound:
            pass


async def _user(given: str, of_image: str, mounts: Sequence[Mount]) -> users.User:
    if given:
        return await _looked_up(users.given, given, mounts)
    return await _looked_up(users.of_image, of_image, mounts)


async def _looked_up(
    rule: Callable[[str, users.ReadLines], users.User], text: str, mounts: Sequence[Mount]
) -> users.User:
    async with temp_mount(mounts, tempfile.gettempdir(), readonly=True) as root:
        return await anyio.to_thread.run_sync(rule, text, users.reader(root))


async def exec_process(
    client: Client, container_id: str, args: Sequence[str], *, tty: bool, cwd: str = "", user: str = ""
) -> typeurl.Any:
    """Return the container's process with other arguments, for an exec. Raises NotFound, InvalidArgument."""
    container = await client.containers.get(container_id)
    resolved = None
    if user:
        mounts = await client.snapshots(container.snapshotter).mounts(container.snapshot_key)
        resolved = await _looked_up(users.of_exec, user, mounts)
    return specs.exec_process(specs.from_any(container.spec), args, tty=tty, cwd=cwd, user=resolved)


async def exec_detached(client: Client, container_id: str, exec_id: str, process: typeurl.Any, *, tty: bool) -> None:
    """Run a process in the background; its output is dropped. One that does not start is removed."""
    async with _undone(client, container_id, exec_id):
        await client.tasks.exec(container_id, exec_id, process, detached_io(tty=tty))
        await client.tasks.start(container_id, exec_id)


async def _default_runtime(client: Client) -> str:
    namespace = await client.namespaces.get(client.namespace)
    return namespace.labels.get(labels.DEFAULT_RUNTIME, DEFAULT_RUNTIME)
