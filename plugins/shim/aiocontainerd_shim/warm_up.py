"""Work a fork server does before it serves, so that no shim does it again in memory of its own.

Imports that happen inside functions, the codec's tables of every message a shim meets, and the specialised instructions
the interpreter writes into code that has run a few times.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aiocontainerd import timestamps, typeurl
from aiocontainerd.api.services import SERVICES
from aiocontainerd.errors import ContainerdError
from aiocontainerd.rpc import codec
from aiocontainerd.rpc.ttrpc.client import TtrpcClient
from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd_shim import bootstrap
from aiocontainerd_shim.container import Surroundings
from aiocontainerd_shim.publisher import Publisher
from aiocontainerd_shim.reaper import Reaper
from aiocontainerd_shim.service import TaskService, TaskServiceV2

if TYPE_CHECKING:
    import betterproto2

_ROUNDS = 10
_CALL_TIMEOUT_S = 5.0
_SERVICES = ("containerd.task.v3.Task", "containerd.task.v2.Task", "containerd.services.events.ttrpc.v1.Events")
_LIFE = ("Connect", "State", "Start", "Wait", "Kill", "Delete")


def run() -> None:
    """Warm up. Nothing outside the process changes."""
    for message in _messages():
        for _ in range(_ROUNDS):
            codec.decode(type(message), codec.encode(message))
    asyncio.run(_serve_a_little())


def _messages() -> Iterator[betterproto2.Message]:
    from aiocontainerd import api

    for service in _SERVICES:
        for request, response, _, _ in SERVICES[service].values():
            yield _filled(codec.resolve(request))
            yield _filled(codec.resolve(response))
    yield from map(_filled, _event_types())
    yield _filled(api.runc.Options)
    yield api.bootstrap.BootstrapResult(version=3, address="unix:///", protocol="ttrpc")


def _event_types() -> Iterable[type[betterproto2.Message]]:
    from aiocontainerd import api

    names = (name for name in api.event_types.__all__ if name.startswith("Task"))
    return (getattr(api.event_types, name) for name in names)


def _filled(cls: type[betterproto2.Message]) -> betterproto2.Message:
    """A message with values in its commonest fields, so that more than the empty case is warm."""
    from aiocontainerd import api

    value = typeurl.to_wire(typeurl.marshal(api.runc.Options(binary_name="x")))
    samples: dict[str, object] = {
        "id": "x",
        "container_id": "x",
        "exec_id": "x",
        "pid": 1,
        "bundle": "/",
        "options": value,
        "spec": value,
        "exited_at": timestamps.to_wire(1),
        "rootfs": [api.types.Mount(type="overlay", source="overlay", options=["x"])],
    }
    fields = getattr(cls, "__dataclass_fields__", {})
    return cls(
        **{name: sample for name, sample in samples.items() if name in fields and "dict" not in fields[name].type}
    )


async def _serve_a_little() -> None:
    identity = bootstrap.Identity(namespace="warm-up", id="warm-up", bundle=Path("/"))
    publisher = Publisher(_discard, "warm-up")
    reaper = Reaper()
    reaper.start()
    async with asyncio.TaskGroup() as tasks:
        sender = tasks.create_task(publisher.run())
        around = Surroundings(reaper, publisher.publish, tasks.create_task)
        service = TaskService(identity, around, shut_down=reaper.reap)
        with tempfile.TemporaryDirectory() as directory:
            await _converse(service, publisher, reaper, f"{directory}/s")
        sender.cancel()
    reaper.stop()


async def _converse(service: TaskService, publisher: Publisher, reaper: Reaper, path: str) -> None:
    from aiocontainerd import api

    listener = bootstrap.listen(path)
    assert listener is not None
    server = TtrpcServer([service, TaskServiceV2(service)])
    await server.start(listener)
    async with await TtrpcClient.connect(path, timeout_s=_CALL_TIMEOUT_S) as client:
        for _ in range(_ROUNDS):
            for method in _LIFE:
                request = _filled(codec.resolve(SERVICES[_SERVICES[0]][method][0]))
                try:
                    await client.call(_SERVICES[0], method, request, timeout_s=_CALL_TIMEOUT_S)
                except ContainerdError:
                    continue  # there is no such container; the way there and back is what counts
            publisher.publish("/tasks/exit", api.event_types.TaskExit(container_id="x"))
            await reaper.run(["true"], env=os.environ)
    await server.aclose(1.0)


async def _discard(request: betterproto2.Message) -> None:
    codec.encode(request)
