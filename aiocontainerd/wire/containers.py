"""Container records."""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.wire.anys import any_from_wire, any_to_wire, anys_from_wire, anys_to_wire
from aiocontainerd.wire.times import time_from_wire, time_to_wire


def container_from_wire(message: api.containers.Container) -> Container:
    """Return the record of a container."""
    runtime = message.runtime
    return Container(
        id=message.id,
        labels=message.labels,
        image=message.image,
        runtime_name="" if runtime is None else runtime.name,
        runtime_options=None if runtime is None else any_from_wire(runtime.options),
        spec=any_from_wire(message.spec),
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        created_at_ns=time_from_wire(message.created_at),
        updated_at_ns=time_from_wire(message.updated_at),
        extensions=anys_from_wire(message.extensions),
        sandbox_id=message.sandbox,
    )


def container_to_wire(container: Container) -> api.containers.Container:
    """Return the message of a container. Its opaque values stay byte for byte."""
    return api.containers.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=api.containers.ContainerRuntime(
            name=container.runtime_name, options=any_to_wire(container.runtime_options)
        ),
        spec=any_to_wire(container.spec),
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=time_to_wire(container.created_at_ns),
        updated_at=time_to_wire(container.updated_at_ns),
        extensions=anys_to_wire(container.extensions),
        sandbox=container.sandbox_id,
    )
