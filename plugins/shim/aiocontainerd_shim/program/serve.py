"""The shim's own life: from a listening socket to the end of its last container."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, NoReturn, ParamSpec

from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd.sys import prctl
from aiocontainerd_shim.program import placement
from aiocontainerd_shim.program.bootstrap import set_oom_score_adj
from aiocontainerd_shim.rest.resident import Resident
from aiocontainerd_shim.rest.worker import Spawned, Worker
from aiocontainerd_shim.task.container import Surroundings
from aiocontainerd_shim.task.publisher import Forwarder, Publisher
from aiocontainerd_shim.task.reaper import Reaper
from aiocontainerd_shim.task.service import TaskService, TaskServiceV2

if TYPE_CHECKING:
    from aiocontainerd_shim.program.bootstrap import Identity
    from aiocontainerd_shim.rest.memory import Duty

P = ParamSpec("P")

log = logging.getLogger(__name__)

COMMAND_NAME = "containerd-shim"
SHUTDOWN_TIMEOUT_S = 5.0
_SERVER_GRACE_S = 1.0


def become_shim(listener: socket.socket, identity: Identity, shim_cgroup: str, oom_score_adj: int | None) -> NoReturn:
    """Go on as the shim in a freshly forked child; never returns."""
    end(lambda: _settle_and_run(listener, identity, shim_cgroup, oom_score_adj))


def _settle_and_run(listener: socket.socket, identity: Identity, shim_cgroup: str, oom_score_adj: int | None) -> int:
    settle(str(identity.bundle), shim_cgroup, oom_score_adj)
    return run(listener, identity)


def end(life: Callable[[], int]) -> NoReturn:
    """End this process with the status that `life` gives, with 1 and a line in the log where it fails."""
    status = 1
    try:
        status = life()
    except Exception:  # the edge of the process
        log.exception("the shim failed")
    finally:
        os._exit(status)


def settle(bundle: str, shim_cgroup: str, oom_score_adj: int | None) -> None:
    """Leave the place of whoever forked this process.

    The starter may read the standard streams until nobody can write there, so they go first.
    """
    os.chdir(bundle)
    detach_stdio()
    set_oom_score_adj(oom_score_adj)
    if shim_cgroup:
        placement.join(shim_cgroup, os.getpid())


def run(listener: socket.socket, identity: Identity) -> int:
    """Be the shim of `identity` until it is shut down, in this process alone; returns the exit status."""
    life = partial(_run_loop, serve, listener, identity)
    return _listening(listener, str(identity.bundle), life, debug=identity.debug)


def rest(listener: socket.socket, bundle: str, do: Callable[[Duty], None], *, debug: bool) -> int:
    """Be a shim that leaves its work to workers, of which `do` is the life; returns the exit status.

    That pays where everything a worker needs was loaded before the fork.
    """
    return _listening(listener, bundle, lambda: Resident(listener, do).run(), debug=debug)


def _listening(listener: socket.socket, bundle: str, life: Callable[[], int], *, debug: bool) -> int:
    path = listener.getsockname()
    prctl.set_child_subreaper()
    prctl.set_name(COMMAND_NAME)
    open_log(bundle, debug=debug)
    try:
        return life()
    finally:
        _remove_socket(path)


def work(identity: Identity, duty: Duty) -> None:
    """Be a worker of the shim of `identity`; returns where the shim is to end, and not at all after a hand-over."""
    try:
        _run_loop(serve, socket.socket(fileno=duty.fds[0]), identity, duty)
    except Exception:  # the edge of the process
        log.exception("the shim failed")
        raise


def _run_loop(life: Callable[P, Coroutine[object, object, None]], *args: P.args, **kwargs: P.kwargs) -> int:
    """Drive a loop by hand: `asyncio.run` does more than a process needs that ends with its loop."""
    asyncio.new_event_loop().run_until_complete(life(*args, **kwargs))
    return 0


def prepare_log() -> None:
    """What a fork server can do ahead for the logs of its shims: they all go to stderr, wherever that leads then."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.INFO)
    faulthandler.register(signal.SIGUSR1, file=2)


def open_log(bundle: str, *, debug: bool) -> None:
    """Write the log into the daemon's fifo, and nothing anywhere else; a daemon that does not read loses it."""
    if not logging.root.handlers:
        prepare_log()
    if debug:
        logging.root.setLevel(logging.DEBUG)
    _redirect_stderr(f"{bundle}/log")


async def serve(listener: socket.socket, identity: Identity, duty: Duty | None = None) -> None:
    """Serve the task API on `listener` until Shutdown, SIGTERM or SIGINT; with a duty, until there is none."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    forwarder = Forwarder(identity.ttrpc_address, identity.namespace)
    publisher = Publisher(forwarder.send if identity.ttrpc_address else _discard, identity.namespace)
    reaper = Reaper()
    reaper.start()
    async with asyncio.TaskGroup() as tasks:
        helpers = [tasks.create_task(publisher.run())]
        spawned = Spawned(tasks)
        around = Surroundings(reaper, publisher.publish, spawned.start)
        service = TaskService(identity, around, shut_down=ending.set, shim_pid=duty.shim_pid if duty else 0)
        server = TtrpcServer([service, TaskServiceV2(service)])
        if duty is not None:
            worker = Worker(duty, server, service, publisher, reaper, spawned)
            await worker.take_over()
            helpers.append(tasks.create_task(worker.hand_over_when_quiet()))
            worker.accept(listener)
            await ending.wait()
            worker.refuse(listener)
        else:
            await server.start(listener)
            await ending.wait()
        await server.aclose(_SERVER_GRACE_S)
        await service.settled(SHUTDOWN_TIMEOUT_S)
        await publisher.drained(SHUTDOWN_TIMEOUT_S - _SERVER_GRACE_S)
        for helper in helpers:
            helper.cancel()
    await forwarder.aclose()
    reaper.stop()


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
