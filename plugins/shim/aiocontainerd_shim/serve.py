"""The shim's own life: from a listening socket to the end of its last container."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, NoReturn

from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd.sys import prctl
from aiocontainerd_shim import oci_choice, placement
from aiocontainerd_shim.bootstrap import set_oom_score_adj
from aiocontainerd_shim.container import Surroundings
from aiocontainerd_shim.publisher import Forwarder, Publisher
from aiocontainerd_shim.reaper import Reaper
from aiocontainerd_shim.service import TaskService, TaskServiceV2

if TYPE_CHECKING:
    from aiocontainerd_shim.bootstrap import Identity, Params

log = logging.getLogger(__name__)

COMMAND_NAME = "containerd-shim"
SHUTDOWN_TIMEOUT_S = 5.0
_SERVER_GRACE_S = 1.0


def become_shim(listener: socket.socket, identity: Identity, params: Params, oom_score_adj: int | None) -> NoReturn:
    """Go on as the shim in a freshly forked child; never returns.

    Whoever started it may read its standard streams until nobody can write there, so they go first.
    """
    status = 1
    try:
        os.chdir(identity.bundle)
        detach_stdio()
        set_oom_score_adj(oom_score_adj)
        if params.options.shim_cgroup:
            placement.join(params.options.shim_cgroup, os.getpid())
        run(listener, identity)
        status = 0
    except Exception:  # the edge of the process
        log.exception("the shim failed")
    finally:
        os._exit(status)


def run(listener: socket.socket, identity: Identity) -> None:
    """Be the shim of `identity` until it is shut down. The socket's file is removed at the end."""
    path = listener.getsockname()
    prctl.set_child_subreaper()
    prctl.set_name(COMMAND_NAME)
    open_log(identity)
    try:
        asyncio.run(serve(listener, identity))
    finally:
        _remove_socket(path)


def open_log(identity: Identity) -> None:
    """Write the log into the daemon's fifo, and nothing anywhere else; a daemon that does not read loses it."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    logging.raiseExceptions = False
    _redirect_stderr(os.path.join(identity.bundle, "log"))
    logging.basicConfig(level=logging.DEBUG if identity.debug else logging.INFO, force=True)
    faulthandler.register(signal.SIGUSR1)


async def serve(listener: socket.socket, identity: Identity) -> None:
    """Serve the task API on `listener` until Shutdown, SIGTERM or SIGINT."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    forwarder = Forwarder(identity.ttrpc_address, identity.namespace)
    publisher = Publisher(forwarder.send if identity.ttrpc_address else _discard, identity.namespace)
    reaper = Reaper()
    reaper.start()
    async with asyncio.TaskGroup() as tasks:
        sender = tasks.create_task(publisher.run())
        around = Surroundings(reaper, publisher.publish, lambda work: tasks.create_task(_guarded(work)))
        service = TaskService(identity.namespace, around, choose_runtime=oci_choice.choose, shut_down=ending.set)
        server = TtrpcServer([service, TaskServiceV2(service)])
        await server.start(listener)
        await ending.wait()
        await server.aclose(_SERVER_GRACE_S)
        await publisher.drained(SHUTDOWN_TIMEOUT_S - _SERVER_GRACE_S)
        sender.cancel()
    await forwarder.aclose()
    reaper.stop()


async def _guarded(work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except Exception:  # the edge of a task: one container's failure must not end the others
        log.exception("a task of the shim failed")


async def _discard(_event: object) -> None:
    return


def detach_stdio() -> None:
    """Put the standard streams on /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


def _redirect_stderr(fifo: str) -> None:
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    os.dup2(fd, 2)
    os.close(fd)


def _remove_socket(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
