"""Registration of the shim manager and the task runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import anyio

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci.platform import parse
from aiocontainerd.plugin import Checked, EnvEntry, InitContext, PluginConfig, Registration, hookimpl, kinds
from aiocontainerd_runtime_v2.deadlines import TIMEOUTS, Deadlines

_LONGEST_SOCKET_DIR = 42


def _socket_directory(text: str) -> None:
    if text and not os.path.isabs(text):
        raise ValueError(f'"{text}" is not absolute')
    if len(text) > _LONGEST_SOCKET_DIR:
        raise ValueError(f'"{text}" is longer than {_LONGEST_SOCKET_DIR} characters')


def _platform_name(text: str) -> None:
    if text != "host":
        try:
            parse(text)
        except InvalidArgument as bad:
            raise ValueError(f"{bad.message}; write it as linux/amd64, or host") from bad


class ShimConfig(PluginConfig, frozen=True):
    """How shims are started.

    `env`: variables (`NAME=value`) that every shim gets besides the daemon's own environment.
    `socket_dir`: absolute directory for shims' sockets, at most 42 characters; "" leaves it to the shim.
    """

    env: tuple[EnvEntry, ...] = ()
    socket_dir: Annotated[str, Checked(_socket_directory)] = ""


class TaskConfig(PluginConfig, frozen=True):
    """`platforms`: the platforms tasks run on; `host` is that of this host."""

    platforms: tuple[Annotated[str, Checked(_platform_name)], ...] = ("host",)


async def init_manager(context: InitContext[ShimConfig]) -> object:
    from aiocontainerd_runtime_v2.manager import ShimManager, Surroundings

    surroundings = Surroundings(
        grpc_address=context.daemon.grpc_address,
        ttrpc_address=context.daemon.ttrpc_address,
        publish_binary=os.path.join(sys.prefix, "bin", "aiocontainerd"),
        debug=context.daemon.debug,
        env=dict(entry.split("=", 1) for entry in context.config.env),
        socket_dir=context.config.socket_dir,
    )
    launchers = list(context.get_all(kinds.SHIM_LAUNCHER).values())
    deadlines = Deadlines.from_timeouts(context.timeout_s)
    context.watch_timeouts(lambda: deadlines.take(context.timeout_s))
    return ShimManager(surroundings, deadlines, launchers)


async def init_task(context: InitContext[TaskConfig]) -> object:
    from aiocontainerd.interfaces.runtime import LOG_URI_SCHEMES
    from aiocontainerd_runtime_v2.bundle import Layout
    from aiocontainerd_runtime_v2.recovery import Recovery
    from aiocontainerd_runtime_v2.runtime import ShimTaskRuntime

    layout = Layout(context.state, context.root)
    await anyio.to_thread.run_sync(layout.prepare)
    sandboxes = context.daemon.state / f"{kinds.SANDBOX_CONTROLLER}.shim"
    manager = context.get(kinds.SHIM, "manager")
    runtime = ShimTaskRuntime(layout, manager, context.bus.publish, context.tasks.start_soon, sandboxes)
    metadata = context.get(kinds.METADATA, "bolt")

    async def runtime_name(container_id: str) -> str:
        container = await metadata.containers.get(container_id)
        name: str = container.runtime_name
        return name

    async def spec(container_id: str) -> bytes:
        container = await metadata.containers.get(container_id)
        return b"" if container.spec is None else bytes(container.spec.value)

    recovery, ready = Recovery(runtime, runtime_name, spec), anyio.Event()
    context.tasks.start_soon(recovery.run, await recovery.scan(), ready, name="recovery")
    await ready.wait()
    context.on_stop(runtime.stop)
    context.exports["log-uri-schemes"] = LOG_URI_SCHEMES
    context.platforms.extend(platforms(context.config.platforms))
    return runtime


def platforms(names: Sequence[str]) -> list[str]:
    """Return the `platforms` key with `host` replaced."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    return [f"linux/{machine}" if name == "host" else name for name in names]


@hookimpl
def register_plugins() -> list[Registration]:
    return [
        Registration(
            kind=kinds.SHIM,
            id="manager",
            config=ShimConfig,
            init=init_manager,
            timeouts=TIMEOUTS,
            requires=(kinds.EVENT, kinds.METADATA, kinds.SHIM_LAUNCHER),
        ),
        Registration(
            kind=kinds.RUNTIME,
            id="task",
            config=TaskConfig,
            init=init_task,
            requires=(kinds.EVENT, kinds.METADATA, kinds.SHIM),
        ),
    ]
