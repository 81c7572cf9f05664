"""The daemon from start to exit, in order (facts/core 16).

Start: find plugins, check the config, directories, lock, cgroup, start plugins in the order of need, start servers,
`READY=1`. Stop, on SIGTERM or SIGINT (`signals.py`): `STOPPING=1`, stop servers, stop plugins in reverse order, exit.
Containers run on. A daemon that started on a read-only root stops when the root can be written, and is started anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread

from aiocontainerd import api
from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.records import DEFAULT_ADDRESS
from aiocontainerd.config.timeouts import NOTIFY, SERVER_STOP
from aiocontainerd.daemon import (
    disks,
    lock,
    loop_errors,
    plugin_output,
    service_manager,
    serving,
    signals,
    surroundings,
)
from aiocontainerd.daemon.errors import StartError
from aiocontainerd.daemon.outcomes import log_outcomes
from aiocontainerd.daemon.reload import Reloader
from aiocontainerd.daemon.wanted import plan_of
from aiocontainerd.guard.health import Block
from aiocontainerd.guard.watchdog import Watchdog, finding_of
from aiocontainerd.host import conformance, discovery
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.registration import PluginError
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import State
from aiocontainerd.sys import systemd

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long the loop waits for a thread that runs Python, such as that of big messages. A call waits several times."""
STARTING_BLOCK_S = 2.0
"""How long a plugin blocks the event loop, while it starts or stops, before the watchdog names it."""
EXPECTED_ERRORS = (StartError, ConfigError, PluginError, lock.RootLockedError)
"""What `run` raises for reasons that an operator can mend. They are printed as one line, without a traceback."""


def run(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    when_serving: Callable[[], object] = lambda: None,
) -> bool:
    """Run until a signal stops the daemon. Return True if it ended to be started anew, False after a signal.

    `load` reads the config again, for a reload. `when_serving` is called once the daemon serves.
    Raises StartError, ConfigError, PluginError or RootLockedError before it serves.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(plugin_output.tagged())
        registry, reloader = _found(config, load)
        registry.check_first(Path(config.settings.root).absolute(), reloader.config_of)
        daemon = _prepared(stack, config, registry, reloader)
        serve = partial(_serve, registry, daemon, reloader, config, started=started, when_serving=when_serving)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            return anyio.run(serve, backend_options={"use_uvloop": True})
        except BaseExceptionGroup as group:
            raise _root_cause(group) from group


async def _serve(
    registry: Registry,
    daemon: DaemonInfo,
    reloader: Reloader,
    config: Config,
    *,
    started: float,
    when_serving: Callable[[], object],
) -> bool:
    """Start plugins and servers, wait for a signal, stop servers and plugins. Return whether to start anew."""
    stop, again = anyio.Event(), anyio.Event()
    asyncio.get_running_loop().set_exception_handler(loop_errors.handler(registry.owners))
    async with anyio.create_task_group() as everything:
        everything.start_soon(signals.handle, stop, registry, reloader, everything, name="signals")
        required = config.settings.required_plugins
        async with (
            _Watch(registry, config, daemon.grpc_address) as watch,
            registry.run(daemon, reloader.config_of, required, last_resort=_end_process, check=conformance.check),
        ):
            log_outcomes(registry)
            await serving.start_servers(registry)
            await watch.closely()
            registry.serves()
            await service_manager.tell(systemd.READY, daemon.timeout_s(NOTIFY.key))
            log.info("containerd successfully booted in %.6fs", time.perf_counter() - started)
            await anyio.to_thread.run_sync(_load_messages)
            when_serving()
            everything.start_soon(disks.watch, registry, again, name="disks")
            await _first_of(stop, again)
            await watch.loosely()
            if stop.is_set():  # a service manager that is told of a stop ends the process soon
                await service_manager.tell(systemd.STOPPING, daemon.timeout_s(NOTIFY.key))
            await serving.stop_servers(registry, daemon.timeout_s(SERVER_STOP.key) or math.inf)
        everything.cancel_scope.cancel()
    return again.is_set() and not stop.is_set()


async def _first_of(*events: anyio.Event) -> None:
    """Wait for any of `events`."""
    async with anyio.create_task_group() as group:
        for event in events:
            group.start_soon(_wait_and_cancel, event, group.cancel_scope)


async def _wait_and_cancel(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _found(config: Config, load: Callable[[], Config] | None) -> tuple[Registry, Reloader]:
    """Find the plugins and check the config against them; log its warnings. Raises ConfigError."""
    settings = config.settings
    registry = Registry(settings.plugin_policy.replace)
    placement = Placement.of(config)
    _log_warnings(config.warnings)
    shown = len(config.warnings)
    discovery.discover(registry, settings.python_plugins, settings.plugin_policy, placement)
    discovery.check_config(registry, config)
    discovery.check_required(registry, config)
    _log_warnings(config.warnings[shown:])
    started_with = plan_of(registry, placement, config)
    registry.disable(settings.disabled_plugins)
    return registry, Reloader(registry, config, load, started_with)


def _log_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)


def _prepared(stack: ExitStack, config: Config, registry: Registry, reloader: Reloader) -> DaemonInfo:
    """Make directories, take the lock, join the cgroup. Return what plugins may know of the daemon."""
    from aiocontainerd.wire.events import message_bus  # needs the messages, which `--version` must not wait for

    root, state, temp = stack.enter_context(surroundings.directories(config))
    stack.enter_context(lock.hold(root))
    surroundings.drop_old_mounts(root)
    surroundings.join_cgroup(config.settings.cgroup.path)
    surroundings.set_oom_score(config.settings.oom_score)
    return DaemonInfo(
        root=root,
        state=state,
        temp=temp,
        grpc_address=_configured_address(config, registry, serving.GRPC_SERVER),
        ttrpc_address=_configured_address(config, registry, serving.TTRPC_SERVER),
        bus=message_bus(),
        plugins=lambda: registry.plugins,
        timeout_s=reloader.timeout_s,
        debug=logging.getLogger().isEnabledFor(logging.DEBUG),
        owners=registry.owners,
        reload=reloader.reload,
        explain_config=reloader.explain,
    )


def _configured_address(config: Config, registry: Registry, uri: str) -> str:
    """Return where a server will listen: plugins that start before it, such as the shim manager, pass it on."""
    plugin = registry.get(uri)
    if plugin is None or plugin.state != State.REGISTERED:
        return ""
    default = DEFAULT_ADDRESS if uri == serving.GRPC_SERVER else ""
    address: str = getattr(config.plugin_config(plugin.registration), "address", "")
    return address or default


def _load_messages() -> None:
    """Import the messages of events. Their first use is on the event loop, which the import would block."""
    api.images.ImageDelete()
    api.event_types.SnapshotRemove()


class _Watch:
    """The watchdog of the event loop: loosely while plugins start and stop, closely while the daemon serves."""

    def __init__(self, registry: Registry, config: Config, address: str) -> None:
        self._registry = registry
        self._threshold_s = config.settings.debug.block_threshold.seconds
        self._finding = finding_of(address)
        self._watchdog = Watchdog(0.0, registry.owners, self._note)

    async def closely(self) -> None:
        """Name what blocks the loop for `block_threshold`."""
        await self._begin(self._threshold_s)

    async def loosely(self) -> None:
        """Name what blocks the loop so long that an operator wonders: starts import modules, which takes its time."""
        await self._begin(max(self._threshold_s, STARTING_BLOCK_S) if self._threshold_s else 0.0)

    async def _begin(self, threshold_s: float) -> None:
        await self._watchdog.stop()
        self._watchdog = Watchdog(threshold_s, self._registry.owners, self._note, self._finding)
        await self._watchdog.start()

    def _note(self, block: Block) -> None:
        health = self._registry.health(block.plugin)
        if health is not None:
            health.note_block(block)

    async def __aenter__(self) -> Self:
        await self.loosely()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._watchdog.stop()


def _root_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error inside nested groups, or the group where there are several."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    return cause


def _end_process(stuck: list[str], failure: Exception | None) -> None:
    """Exit at once, with status 1: these plugins ignored even their cancellation."""
    if failure is not None:
        log.critical("%s", failure)
    log.critical("ending without plugins that cannot be stopped: %s", ", ".join(stuck))
    logging.shutdown()
    os._exit(1)
