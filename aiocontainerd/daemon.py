"""The daemon: start-up and shut-down order, signals, readiness (facts/core 16).

Start: config, directories, lock, old temporary mounts, plugins in dependency order, servers, `READY=1`.
Stop, on SIGTERM or SIGINT: `STOPPING=1`, servers, plugins in reverse order. Containers run on.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio

from aiocontainerd import discovery, dump, kinds, lock
from aiocontainerd.config import Config, ConfigError
from aiocontainerd.events import EventBus
from aiocontainerd.registry import Daemon, Plugin, PluginError, Registry, State
from aiocontainerd.sys import systemd

log = logging.getLogger(__name__)

GRPC_SERVER = f"{kinds.SERVER}.grpc"
TTRPC_SERVER = f"{kinds.SERVER}.ttrpc"
_ROOT_MODE, _STATE_MODE, _TEMP_MODE = 0o700, 0o711, 0o700
_SERVER_GRACE_S = 5.0


class StartError(Exception):
    """The daemon cannot start here; the text names the thing and what to do."""


def run(config: Config, *, grpc_address: str = "", ttrpc_address: str = "") -> None:
    """Run until a signal stops it. Raises StartError, ConfigError, PluginError or RootLockedError before it serves."""
    started = time.perf_counter()
    for warning in config.warnings:
        log.warning("%s", warning)
    shown = len(config.warnings)
    registry = Registry()
    discovery.discover(registry, config.settings.python_plugins, config.settings.plugin_policy)
    config.check_plugins(plugin.registration for plugin in registry.plugins if plugin.state == State.REGISTERED)
    for warning in config.warnings[shown:]:
        log.warning("%s", warning)
    registry.disable(config.settings.disabled_plugins)
    with ExitStack() as stack:
        root, state, temp = stack.enter_context(_directories(config))
        stack.enter_context(lock.hold(root))
        _drop_old_mounts(root)
        _join_cgroup(config.settings.cgroup.path)
        _set_oom_score(config.settings.oom_score)
        daemon = Daemon(
            root=root,
            state=state,
            temp=temp,
            grpc_address=grpc_address or _configured_address(config, registry, GRPC_SERVER),
            ttrpc_address=ttrpc_address or _configured_address(config, registry, TTRPC_SERVER),
            bus=EventBus(),
            plugins=lambda: registry.plugins,
            timeout_s=config.timeout_s,
            debug=logging.getLogger().isEnabledFor(logging.DEBUG),
        )
        try:
            anyio.run(_serve, registry, daemon, config, started, backend_options={"use_uvloop": True})
        except BaseExceptionGroup as group:
            raise _root_cause(group) from group


def _configured_address(config: Config, registry: Registry, uri: str) -> str:
    """Where a server will listen; plugins that start before it, such as the shim manager, tell others."""
    plugin = registry.get(uri)
    if plugin is None or plugin.state != State.REGISTERED:
        return ""
    address: str = getattr(config.plugin_config(plugin.registration), "address", "")
    return address


async def _serve(registry: Registry, daemon: Daemon, config: Config, started: float) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as signals:
        signals.start_soon(_handle_signals, stop, registry, signals.cancel_scope, name="signals")
        async with registry.run(daemon, config.plugin_config, config.settings.required_plugins):
            log_table(registry)
            await _start_servers(registry)
            systemd.notify(systemd.READY)
            log.info("containerd successfully booted in %.6fs", time.perf_counter() - started)
            await stop.wait()
            systemd.notify(systemd.STOPPING)
            await _stop_servers(registry)
        signals.cancel_scope.cancel()


def _root_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error inside nested groups; the group itself where there are several."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    return cause


async def _start_servers(registry: Registry) -> None:
    """Begin to accept on every server that loaded. Without the gRPC socket there is no daemon."""
    main = registry.get(GRPC_SERVER)
    if main is not None and main.state == State.FAILED:
        raise StartError(f"failed to get listener for main endpoint: {main.reason}")
    for plugin in _servers(registry):
        await plugin.instance.start()
        log.info("serving %s on %s", plugin.id, plugin.instance.address)


async def _stop_servers(registry: Registry) -> None:
    async with anyio.create_task_group() as stopping:
        for plugin in _servers(registry):
            stopping.start_soon(plugin.instance.stop, _SERVER_GRACE_S, name=f"stop {plugin.id}")


def _servers(registry: Registry) -> list[Plugin]:
    return [plugin for plugin in registry.plugins if plugin.kind == kinds.SERVER and plugin.state == State.LOADED]


async def _handle_signals(stop: anyio.Event, registry: Registry, everything: anyio.CancelScope) -> None:
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    with anyio.open_signal_receiver(*wanted) as received:
        async for number in received:
            if number == signal.SIGUSR1:
                text = dump.render(registry.plugins)
                log.info("stacks are in %s", await anyio.to_thread.run_sync(dump.write, text))
                log.debug("%s", text)
            elif number == signal.SIGHUP:
                log.info("SIGHUP does nothing here; restart the daemon to read its config anew")
            elif stop.is_set():
                log.warning("stopping at once on a second %s", signal.Signals(number).name)
                everything.cancel()
            else:
                log.info("stopping on %s; containers run on", signal.Signals(number).name)
                stop.set()


def log_table(registry: Registry) -> None:
    """One line a plugin: state, reason and cause. What failed is an error, what was skipped or works is told."""
    for plugin in registry.plugins:
        fields = {"plugin": plugin.uri, "state": plugin.state.value, "ms": round(plugin.init_s * 1000, 1)}
        if plugin.reason:
            fields["reason"] = plugin.reason
        if plugin.caused_by:
            fields["caused_by"] = plugin.caused_by
        level = logging.ERROR if plugin.state == State.FAILED else logging.INFO
        log.log(level, "plugin", extra={"fields": fields})


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
    """Unmount and remove what a killed daemon left below `<root>/tmpmounts`."""
    from aiocontainerd.sys import mount

    directory = root / "tmpmounts"
    if not directory.is_dir():
        return
    mount.unmount_recursive(str(directory))
    for left in directory.iterdir():
        left.rmdir()


def _join_cgroup(path: str) -> None:
    if not path:
        return
    try:
        for procs in _cgroup_procs(path):
            procs.write_text(str(os.getpid()))
    except OSError as error:
        raise StartError(f"cannot join cgroup {path} (cgroup.path): {error}") from error


def _cgroup_procs(path: str) -> Iterator[Path]:
    """The `cgroup.procs` files of a cgroup in every hierarchy of this host, making the cgroup."""
    base = Path("/sys/fs/cgroup")
    hierarchies = [base] if (base / "cgroup.controllers").exists() else [d for d in base.iterdir() if d.is_dir()]
    for hierarchy in hierarchies:
        directory = hierarchy / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        yield directory / "cgroup.procs"


def _set_oom_score(score: int) -> None:
    """Set the daemon's oom_score_adj; without the right to lower it the kernel's value stays, as in containerd."""
    if not score:
        return
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except PermissionError:
        log.warning("oom_score = %d needs CAP_SYS_RESOURCE; left as it is", score)


EXPECTED_ERRORS = (StartError, ConfigError, PluginError, lock.RootLockedError)
"""What `run` raises for reasons an operator can mend: printed as one line, without a traceback."""
