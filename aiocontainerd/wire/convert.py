"""Between messages of the API and domain records, both ways, shared by everything that speaks the API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aiocontainerd import api, timestamps, typeurl
from aiocontainerd.oci.descriptor import Descriptor

if TYPE_CHECKING:
    from aiocontainerd.interfaces import content, metadata, runtime, snapshotter
    from aiocontainerd.interfaces.services import PluginStatus
    from aiocontainerd.sys.mount import Mount


def mask(paths: Sequence[str]) -> api.protobuf.FieldMask | None:
    """The mask of an update; no paths leave the field out."""
    return api.protobuf.FieldMask(paths=list(paths)) if paths else None


def descriptor_from_wire(message: api.types.Descriptor) -> Descriptor:
    """The record of a descriptor."""
    return Descriptor(message.media_type, message.digest, message.size, message.annotations)


def descriptor_to_wire(descriptor: Descriptor) -> api.types.Descriptor:
    """The message of a descriptor."""
    return api.types.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def mounts_from_wire(messages: Iterable[api.types.Mount]) -> list[Mount]:
    """The records of mounts."""
    from aiocontainerd.sys.mount import Mount

    return [Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages]


def mounts_to_wire(mounts: Iterable[Mount]) -> list[api.types.Mount]:
    """The messages of mounts."""
    return [api.types.Mount(type=m.type, source=m.source, target=m.target, options=list(m.options)) for m in mounts]


def image_from_wire(message: api.images.Image) -> metadata.Image:
    """The record of an image."""
    from aiocontainerd.interfaces.metadata import Image

    target = message.target
    return Image(
        name=message.name,
        target=Descriptor("", "", 0) if target is None else descriptor_from_wire(target),
        labels=message.labels,
        created_at_ns=timestamps.from_wire(message.created_at),
        updated_at_ns=timestamps.from_wire(message.updated_at),
    )


def image_to_wire(image: metadata.Image) -> api.images.Image:
    """The message of an image, without the times: the daemon sets them."""
    return api.images.Image(name=image.name, labels=dict(image.labels), target=descriptor_to_wire(image.target))


def container_from_wire(message: api.containers.Container) -> metadata.Container:
    """The record of a container."""
    from aiocontainerd.interfaces.metadata import Container

    runtime = message.runtime
    return Container(
        id=message.id,
        labels=message.labels,
        image=message.image,
        runtime_name="" if runtime is None else runtime.name,
        runtime_options=None if runtime is None else typeurl.from_wire(runtime.options),
        spec=typeurl.from_wire(message.spec),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        created_at_ns=timestamps.from_wire(message.created_at),
        updated_at_ns=timestamps.from_wire(message.updated_at),
        extensions={key: typeurl.Any(value.type_url, value.value) for key, value in message.extensions.items()},
        sandbox_id=message.sandbox,
    )


def container_to_wire(container: metadata.Container) -> api.containers.Container:
    """The message of a container, without the times: the daemon sets them."""
    return api.containers.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=api.containers.ContainerRuntime(
            name=container.runtime_name, options=typeurl.to_wire(container.runtime_options)
        ),
        spec=typeurl.to_wire(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        extensions={
            key: api.protobuf.Any(type_url=value.type_url, value=value.value)
            for key, value in container.extensions.items()
        },
        sandbox=container.sandbox_id,
    )


def lease_from_wire(message: api.leases.Lease) -> metadata.Lease:
    """The record of a lease."""
    from aiocontainerd.interfaces.metadata import Lease

    return Lease(id=message.id, created_at_ns=timestamps.from_wire(message.created_at), labels=message.labels)


def content_info_from_wire(message: api.content.Info) -> content.Info:
    """What is known of a blob."""
    from aiocontainerd.interfaces.content import Info

    return Info(
        digest=message.digest,
        size=message.size,
        created_at_ns=timestamps.from_wire(message.created_at),
        updated_at_ns=timestamps.from_wire(message.updated_at),
        labels=message.labels,
    )


def content_info_to_wire(info: content.Info) -> api.content.Info:
    """The message of what is known of a blob."""
    return api.content.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamps.to_wire(info.created_at_ns),
        updated_at=timestamps.to_wire(info.updated_at_ns),
        labels=dict(info.labels),
    )


def ingest_status_from_wire(message: api.content.Status) -> content.Status:
    """What is known of an ingest."""
    from aiocontainerd.interfaces.content import Status

    return Status(
        ref=message.ref,
        offset=message.offset,
        total=message.total,
        started_at_ns=timestamps.from_wire(message.started_at),
        updated_at_ns=timestamps.from_wire(message.updated_at),
        expected=message.expected,
    )


def ingest_status_to_wire(status: content.Status) -> api.content.Status:
    """The message of what is known of an ingest."""
    return api.content.Status(
        started_at=timestamps.to_wire(status.started_at_ns),
        updated_at=timestamps.to_wire(status.updated_at_ns),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )


def snapshot_info_from_wire(message: api.snapshots.Info) -> snapshotter.Info:
    """What is known of a snapshot."""
    from aiocontainerd.interfaces.snapshotter import Info, Kind

    return Info(
        kind=Kind(int(message.kind)),
        name=message.name,
        parent=message.parent,
        labels=message.labels,
        created_at_ns=timestamps.from_wire(message.created_at),
        updated_at_ns=timestamps.from_wire(message.updated_at),
    )


def snapshot_info_to_wire(info: snapshotter.Info) -> api.snapshots.Info:
    """The message of what is known of a snapshot."""
    return api.snapshots.Info(
        name=info.name,
        parent=info.parent,
        kind=api.snapshots.Kind(info.kind.value),
        created_at=timestamps.to_wire(info.created_at_ns),
        updated_at=timestamps.to_wire(info.updated_at_ns),
        labels=dict(info.labels),
    )


def process_from_wire(message: api.task_types.Process) -> runtime.ProcessState:
    """The state of a process. Daemons of before 2.0 tell the container in another field; both are read."""
    from aiocontainerd.interfaces.runtime import IO, ProcessState, Status

    return ProcessState(
        id=message.id or message.container_id,
        pid=message.pid,
        status=Status(int(message.status)),
        io=IO(stdin=message.stdin, stdout=message.stdout, stderr=message.stderr, terminal=message.terminal),
        exit_status=message.exit_status,
        exited_at_ns=timestamps.from_wire(message.exited_at),
    )


def plugin_from_wire(message: api.introspection.Plugin) -> PluginStatus:
    """A plugin as introspection shows it."""
    from aiocontainerd.interfaces.services import PluginStatus

    failure = message.init_err
    return PluginStatus(
        kind=message.type,
        id=message.id,
        requires=tuple(message.requires),
        platforms=tuple("/".join(p for p in (x.os, x.architecture, x.variant) if p) for x in message.platforms),
        exports=message.exports,
        capabilities=tuple(message.capabilities),
        code=0 if failure is None else failure.code,
        message="" if failure is None else failure.message,
    )
