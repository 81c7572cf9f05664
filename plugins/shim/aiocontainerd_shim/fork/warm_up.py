"""Work that a fork server does before it serves, so that no shim does it again in memory of its own.

That work is: imports inside functions, the codec's tables of every message a shim meets, and the specialised
instructions that the interpreter writes into code which has run a few times. So containers live whole lives here, on an
OCI runtime that is a shell script.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiocontainerd import api
from aiocontainerd.api.services import SERVICES
from aiocontainerd.errors import NotFound
from aiocontainerd.rpc.ttrpc.client import TtrpcClient
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import any_to_wire, marshal
from aiocontainerd.wire.times import time_to_wire
from aiocontainerd_shim.cgroups import cgroup
from aiocontainerd_shim.oci.choice import CONFIGURED_ENV
from aiocontainerd_shim.program import bootstrap, serve
from aiocontainerd_shim.program.own_socket import OwnSocket
from aiocontainerd_shim.rest.awake import AlwaysAwake

if TYPE_CHECKING:
    import betterproto2

_CODEC_ROUNDS = 10
_LIVES = 9
"""One more than the interpreter runs a function before it specialises it."""
_CALL_TIMEOUT_S = 5.0
_TASK = "containerd.task.v3.Task"
_SERVICES = (_TASK, "containerd.task.v2.Task", "containerd.services.events.ttrpc.v1.Events")
_RUNTIME = """#!/bin/sh
case " $* " in
*" create "*)
    while [ "$1" != --pid-file ]; do shift; done
    sleep 60 &
    echo $! > "$2"
    ;;
*" start "*) read pid < "${0%/*}/init.pid" && kill $pid
esac
"""
_SPEC = '{"linux":{"namespaces":[{"type":"pid"}]}}'


def run() -> None:
    """Warm up. The process must be a subreaper. Nothing outside the process changes for longer than this takes."""
    for message in _messages():
        for _ in range(_CODEC_ROUNDS):
            codec.decode(type(message), codec.encode(message))
    _measure()
    with tempfile.TemporaryDirectory(prefix="aiocontainerd-warm-up") as directory:
        asyncio.run(_live(Path(directory)))


def _messages() -> Iterator[betterproto2.Message]:
    for service in _SERVICES:
        for request, response, _, _ in SERVICES[service].values():
            yield _filled(codec.resolve(request))
            yield _filled(codec.resolve(response))
    yield from map(_filled, _event_types())
    yield _filled(api.runc.Options)


def _measure() -> None:
    """Measure the own cgroup: which code that imports depends on the host's version of cgroups."""
    with suppress(OSError, NotFound):
        cgroup.find(os.getpid()).stats()


def _event_types() -> Iterable[type[betterproto2.Message]]:
    names = (name for name in api.event_types.__all__ if name.startswith("Task"))
    return (getattr(api.event_types, name) for name in names)


def _filled(cls: type[betterproto2.Message]) -> betterproto2.Message:
    """Return a message with values in its commonest fields, so that not only the empty case is warm."""
    value = any_to_wire(marshal(api.runc.Options(binary_name="x")))
    samples: dict[str, object] = {
        "id": "x",
        "container_id": "x",
        "exec_id": "x",
        "pid": 1,
        "bundle": "/",
        "options": value,
        "spec": value,
        "exited_at": time_to_wire(1),
        "rootfs": [api.types.Mount(type="overlay", source="overlay", options=["x"])],
    }
    fields = getattr(cls, "__dataclass_fields__", {})
    return cls(**{name: sample for name, sample in samples.items() if name in fields})


async def _live(bundle: Path) -> None:
    runtime = bundle / "runtime.sh"
    runtime.write_text(_RUNTIME)
    runtime.chmod(0o700)
    (bundle / "config.json").write_text(_SPEC)
    env = {**os.environ, CONFIGURED_ENV: str(runtime)}
    identity = bootstrap.Identity(namespace="warm-up", id="x", bundle=bundle, env=env)
    for number in range(_LIVES):
        await _live_once(identity, str(bundle / f"socket-{number}"))


async def _live_once(identity: bootstrap.Identity, path: str) -> None:
    listener = bootstrap.listen(path)
    assert listener is not None
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve.serve(AlwaysAwake(listener), identity, OwnSocket(listener)))
        async with await TtrpcClient.connect(path, timeout_s=_CALL_TIMEOUT_S) as client:
            for method, request in _life(identity):
                await client.call(_TASK, method, request, timeout_s=_CALL_TIMEOUT_S)


def _life(identity: bootstrap.Identity) -> Iterator[tuple[str, Any]]:
    task, container = api.task_v3, identity.id
    yield "Create", task.CreateTaskRequest(id=container, bundle=str(identity.bundle))
    yield "Connect", task.ConnectRequest(id=container)
    yield "Start", task.StartRequest(id=container)
    yield "State", task.StateRequest(id=container)
    yield "Wait", task.WaitRequest(id=container)
    yield "Delete", task.DeleteRequest(id=container)
    yield "Shutdown", task.ShutdownRequest(id=container)
