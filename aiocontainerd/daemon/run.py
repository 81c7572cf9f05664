"""The daemon: start-up and shut-down order, signals, readiness (facts/core 16).

Start: config, directories, lock, old temporary mounts, plugins in dependency order, servers, `READY=1`.
Stop, on SIGTERM or SIGINT: `STOPPING=1`, servers, plugins in reverse order. Containers run on.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from aiocontainerd import api, durations, kinds
from aiocontainerd.config import Config, ConfigError
from aiocontainerd.config.timeouts import NOTIFY, SERVER_STOP
from aiocontainerd.daemon import dump, lock
from aiocontainerd.daemon.reload import Reloader, plan_of
from aiocontainerd.errors import ContainerdError
from aiocontainerd.guard.health import Block
from aiocontainerd.guard.watchdog import Watchdog
from aiocontainerd.host import conformance, discovery
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.placement import Placement
from aiocontainerd.host.registration import PluginError
from aiocontainerd.host.registry import Registry
from aiocontainerd.host.state import Plugin, State
from aiocontainerd.sys import cgroup, systemd

log = logging.getLogger(__name__)

GRPC_SERVER = f"{kinds.SERVER}.grpc"
TTRPC_SERVER = f"{kinds.SERVER}.ttrpc"
_ROOT_MODE, _STATE_MODE, _TEMP_MODE = 0o700, 0o711, 0o700
_SERVICE_MANAGERS_OWN = ("systemd", "unified")
"""Hierarchies of a version 1 host in which systemd keeps track of the daemon: it stays where it was started."""


class StartError(Exception):
    """The daemon cannot start here; the text names the thing and what to do."""


def run(
    config: Config,
    *,
    load: Callable[[], Config] | None = None,
    serving: Callable[[], object] = lambda: None,
) -> None:
    """Run until a signal stops it. `load` reads the config again, for a reload; `serving` is called when it serves.

    Raises StartError, ConfigError, PluginError or RootLockedError before it serves.
    """
    started = time.perf_counter()
    for warning in config.warnings:
        log.warning("%s", warning)
    shown = len(config.warnings)
    registry = Registry(config.settings.plugin_policy.replace)
    settings = config.settings
    placement = Placement(settings.proxy_plugins, settings.plugin_isolation, config.stream_processors)
    discovery.discover(registry, settings.python_plugins, settings.plugin_policy, placement)
    discovery.check_config(registry, config)
    for warning in config.warnings[shown:]:
        log.warning("%s", warning)
    started_by = plan_of(registry, placement, config)
    registry.disable(config.settings.disabled_plugins)
    reloader = Reloader(registry, config, load, started_by)
    with ExitStack() as stack:
        root, state, temp = stack.enter_context(_directories(config))
        stack.enter_context(lock.hold(root))
        _drop_old_mounts(root)
        _join_cgroup(config.settings.cgroup.path)
        _set_oom_score(config.settings.oom_score)
        from aiocontainerd.wire.events import message_bus  # needs the messages, which `--version` must not wait for

        daemon = DaemonInfo(
            root=root,
            state=state,
            temp=temp,
            grpc_address=_configured_address(config, registry, GRPC_SERVER),
            ttrpc_address=_configured_address(config, registry, TTRPC_SERVER),
            bus=message_bus(),
            plugins=lambda: registry.plugins,
            timeout_s=reloader.timeout_s,
            debug=logging.getLogger().isEnabledFor(logging.DEBUG),
            owners=registry.owners,
            reload=reloader.reload,
        )
        serve = partial(_serve, registry, daemon, reloader, config, started=started, serving=serving)
        try:
            anyio.run(serve, backend_options={"use_uvloop": True})
        except BaseExceptionGroup as group:
            raise _root_cause(group) from group


def _configured_address(config: Config, registry: Registry, uri: str) -> str:
    """Where a server will listen; plugins that start before it, such as the shim manager, tell others."""
    plugin = registry.get(uri)
    if plugin is None or plugin.state != State.REGISTERED:
        return ""
    address: str = getattr(config.plugin_config(plugin.registration), "address", "")
    return address


async def _serve(
    registry: Registry,
    daemon: DaemonInfo,
    reloader: Reloader,
    config: Config,
    *,
    started: float,
    serving: Callable[[], object],
) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as signals:
        signals.start_soon(_handle_signals, stop, registry, reloader, signals, name="signals")
        required = config.settings.required_plugins
        async with registry.run(
            daemon, reloader.config_of, required, last_resort=_end_process, check=conformance.check
        ):
            log_table(registry)
            await _start_servers(registry)
            registry.serves()
            await _tell_service_manager(systemd.READY, daemon.timeout_s(NOTIFY.key))
            log.info("containerd successfully booted in %.6fs", time.perf_counter() - started)
            await anyio.to_thread.run_sync(_load_messages)
            serving()
            async with _watchdog(registry, config):
                await stop.wait()
            await _tell_service_manager(systemd.STOPPING, daemon.timeout_s(NOTIFY.key))
            await _stop_servers(registry, daemon.timeout_s(SERVER_STOP.key) or math.inf)
        signals.cancel_scope.cancel()


def _load_messages() -> None:
    """Messages of events are made on the event loop, where the first import of them would block it.

    Nobody waits for this: it is done once the daemon serves.
    """
    api.images.ImageDelete()
    api.event_types.SnapshotRemove()


@asynccontextmanager
async def _watchdog(registry: Registry, config: Config) -> AsyncIterator[None]:
    """Watch the event loop while it serves; what plugins do when they start and stop has deadlines of its own."""

    def note(block: Block) -> None:
        health = registry.health(block.plugin)
        if health is not None:
            health.note_block(block)

    watchdog = Watchdog(durations.parse(config.settings.debug.block_threshold), registry.owners, note)
    await watchdog.start()
    try:
        yield
    finally:
        await watchdog.stop()


def _root_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error inside nested groups; the group itself where there are several."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    return cause


async def _start_servers(registry: Registry) -> None:
    """Begin to accept on every server that loaded. Without the gRPC socket there is no daemon."""
    main = registry.get(GRPC_SERVER)
    if main is None:
        broken = "; ".join(
            f"{plugin.id}: {plugin.reason}" for plugin in registry.plugins if plugin.state == State.FAILED
        )
        raise StartError(f"there is no gRPC server, its module could not be loaded: {broken}")
    if main.state == State.FAILED:
        raise StartError(f"failed to get listener for main endpoint: {main.reason}")
    for plugin in _servers(registry):
        await plugin.instance.start()
        log.info("serving %s on %s", plugin.id, plugin.instance.address)


async def _stop_servers(registry: Registry, grace_s: float) -> None:
    async with anyio.create_task_group() as stopping:
        for plugin in _servers(registry):
            stopping.start_soon(plugin.instance.stop, grace_s, name=f"stop {plugin.id}")


def _servers(registry: Registry) -> list[Plugin]:
    return [plugin for plugin in registry.plugins if plugin.kind == kinds.SERVER and plugin.state == State.LOADED]


async def _handle_signals(stop: anyio.Event, registry: Registry, reloader: Reloader, everything: TaskGroup) -> None:
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    with anyio.open_signal_receiver(*wanted) as received:
        async for number in received:
            if number == signal.SIGUSR1:
                await _dump(registry)
            elif number == signal.SIGHUP:
                everything.start_soon(_reload, reloader, name="reload")
            elif stop.is_set():
                log.warning("stopping at once on a second %s", signal.Signals(number).name)
                everything.cancel_scope.cancel()
            else:
                log.info("stopping on %s; containers run on", signal.Signals(number).name)
                stop.set()


async def _reload(reloader: Reloader) -> None:
    try:
        changes = await reloader.reload()
    except ContainerdError as error:
        log.error("%s", error)
    else:
        log.info("reloaded the config: %d changes", len(changes))


async def _dump(registry: Registry) -> None:
    text = dump.render(registry.plugins)
    log.info("%s", text)
    try:
        log.info("stacks are in %s", await anyio.to_thread.run_sync(dump.write, text))
    except OSError as error:
        log.warning("stacks are in this log only: %s", error)


async def _tell_service_manager(state: str, limit_s: float) -> None:
    """Tell the service manager; one that cannot be told is no reason not to serve, or not to stop."""
    try:
        await anyio.to_thread.run_sync(systemd.notify, state, limit_s)
    except OSError as error:
        log.warning("cannot tell the service manager %s: %s", state, error)


def _end_process(stuck: list[str], failure: Exception | None) -> None:
    """The last resort at the end of the daemon: leave at once what ignores even its cancellation."""
    if failure is not None:
        log.critical("%s", failure)
    log.critical("ending without plugins that cannot be stopped: %s", ", ".join(stuck))
    logging.shutdown()
    os._exit(1)


def log_table(registry: Registry) -> None:
    """What became of the plugins: a summary, and a line for each one that is not loaded; all of them at debug."""
    levels = {State.FAILED: logging.ERROR, State.SKIPPED: logging.INFO, State.DISABLED: logging.INFO}
    for plugin in registry.plugins:
        fields = {"plugin": plugin.uri, "state": plugin.state.value, "ms": round(plugin.init_s * 1000, 1)}
        if plugin.reason:
            fields["reason"] = plugin.reason
        if plugin.caused_by:
            fields["caused_by"] = plugin.caused_by
        log.log(levels.get(plugin.state, logging.DEBUG), "plugin", extra={"fields": fields})
    counts = registry.statistics()
    log.info("plugins: %s", ", ".join(f"{counts[state]} {state}" for state in State if state in counts))


@contextmanager
def _directories(config: Config) -> Iterator[tuple[Path, Path, Path]]:
    """Make root, state and temp; temp becomes the directory for temporary files of this process and its children."""
    settings = config.settings
    root = _made(settings.root, _ROOT_MODE, "root")
    state = _made(settings.state, _STATE_MODE, "state")
    if not settings.temp:
        yield root, state, Path(tempfile.gettempdir())
        return
    temp = _made(settings.temp, _TEMP_MODE, "temp")
    os.environ["TMPDIR"] = tempfile.tempdir = str(temp)
    yield root, state, temp


def _made(path: str, mode: int, name: str) -> Path:
    directory = Path(path).absolute()
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        directory.chmod(mode)
        probe = directory / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartError(
            f"{name} directory {directory} cannot be used: {error.strerror}; choose another with --{name}"
        ) from error
    return directory


def _drop_old_mounts(root: Path) -> None:
    """Unmount and remove what a killed daemon left below `<root>/tmpmounts`; what stays is logged."""
    from aiocontainerd.sys import mount

    directory = root / "tmpmounts"
    if not directory.is_dir():
        return
    try:
        mount.unmount_recursive(str(directory))
        for left in directory.iterdir():
            left.rmdir()
    except OSError as error:
        log.warning("an old temporary mount stays: %s", error)


def _join_cgroup(path: str) -> None:
    if not path:
        return
    try:
        for directory in _cgroup_directories(path):
            (directory / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise StartError(f"cannot join cgroup {path} (cgroup.path): {error}") from error


def _cgroup_directories(path: str) -> Iterator[Path]:
    """The directories of a cgroup, made where they are missing: one, or one for each version 1 controller."""
    base = Path(cgroup.ROOT)
    if (base / "cgroup.controllers").exists():
        hierarchies = [base]
    else:
        entries = (d for d in base.iterdir() if d.is_dir() and not d.is_symlink())
        hierarchies = [d for d in entries if d.name not in _SERVICE_MANAGERS_OWN]
    for hierarchy in hierarchies:
        directory = hierarchy
        for part in Path(path.lstrip("/")).parts:
            directory /= part
            directory.mkdir(exist_ok=True)
            _inherit_cpuset(directory)
        yield directory


def _inherit_cpuset(directory: Path) -> None:
    """A new version 1 cpuset is empty and takes no process until it has its parent's processors and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = directory / name
        if file.exists() and not file.read_text().strip() and (directory.parent / name).exists():
            file.write_text((directory.parent / name).read_text())


def _set_oom_score(score: int) -> None:
    """Set the daemon's oom_score_adj; without the right to lower it the kernel's value stays, as in containerd."""
    if not score:
        return
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except PermissionError:
        log.warning("oom_score = %d needs CAP_SYS_RESOURCE; left as it is", score)
    except OSError as error:
        raise StartError(f"oom_score = {score} cannot be set (-1000 to 1000): {error.strerror}") from error


EXPECTED_ERRORS = (StartError, ConfigError, PluginError, lock.RootLockedError)
"""What `run` raises for reasons an operator can mend: printed as one line, without a traceback."""
