"""Registration of the shim manager and the task runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import anyio

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds
from aiocontainerd_runtime_v2.deadlines import TIMEOUTS, Deadlines

_LONGEST_SOCKET_DIR = 42


class ShimConfig(PluginConfig, frozen=True):
    """How shims are started.

    `env`: variables (`NAME=value`) that every shim gets besides the daemon's own environment.
    `socket_dir`: absolute directory for shims' sockets, at most 42 characters; "" leaves it to the shim.
    """

    env: tuple[str, ...] = ()
    socket_dir: str = ""


class TaskConfig(PluginConfig, frozen=True):
    """`platforms`: the platforms tasks run on; `host` is that of this host."""

    platforms: tuple[str, ...] = ("host",)


async def init_manager(context: InitContext[ShimConfig]) -> object:
    from aiocontainerd_runtime_v2.manager import ShimManager, Surroundings

    surroundings = Surroundings(
        grpc_address=context.daemon.grpc_address,
        ttrpc_address=context.daemon.ttrpc_address,
        publish_binary=os.path.join(sys.prefix, "bin", "aiocontainerd"),
        debug=context.daemon.debug,
        env=environment(context.config.env),
        socket_dir=checked_socket_dir(context.config.socket_dir),
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

    recovery, ready = Recovery(runtime, runtime_name), anyio.Event()
    context.tasks.start_soon(recovery.run, await recovery.scan(), ready, name="recovery")
    await ready.wait()
    context.on_stop(runtime.stop)
    context.exports["log-uri-schemes"] = LOG_URI_SCHEMES
    context.platforms.extend(platforms(context.config.platforms))
    return runtime


def environment(entries: Sequence[str]) -> Mapping[str, str]:
    """Return the `env` key as a mapping. Raises ValueError with an entry that is not `NAME=value`."""
    for entry in entries:
        if entry.find("=") < 1:
            raise ValueError(f'env: "{entry}" is not NAME=value')
    return dict(entry.split("=", 1) for entry in entries)


def checked_socket_dir(directory: str) -> str:
    """Return the `socket_dir` key. Raises ValueError unless it is absolute and short enough for a socket's path."""
    if directory and not os.path.isabs(directory):
        raise ValueError(f'socket_dir: "{directory}" is not absolute')
    if len(directory) > _LONGEST_SOCKET_DIR:
        raise ValueError(f'socket_dir: "{directory}" is longer than {_LONGEST_SOCKET_DIR} characters')
    return directory


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
