"""The shim's own life: from a listening socket to the end of its last container.

There are two lives: `become_shim` serves in one process, `become_resting_shim` rests between its work. Which one a
shim has, `serve` does not know: it talks to a `Rest`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import msgspec

from aiocontainerd.rpc.ttrpc.server import TtrpcServer
from aiocontainerd.sys import prctl
from aiocontainerd_shim.cgroups import placement
from aiocontainerd_shim.children.reaper import Reaper
from aiocontainerd_shim.program.bootstrap import set_oom_score_adj
from aiocontainerd_shim.program.own_socket import OwnSocket
from aiocontainerd_shim.rest.awake import AlwaysAwake
from aiocontainerd_shim.rest.interface import Parts, Rest
from aiocontainerd_shim.rest.resident import Resident
from aiocontainerd_shim.task.background import Background
from aiocontainerd_shim.task.exits import Surroundings
from aiocontainerd_shim.task.publisher import Forwarder, Publisher
from aiocontainerd_shim.task.service import TaskService, TaskServiceV2

if TYPE_CHECKING:
    from aiocontainerd_shim.program.bootstrap import Identity

log = logging.getLogger(__name__)

COMMAND_NAME = "containerd-shim"
SHUTDOWN_TIMEOUT_S = 5.0
_SERVER_GRACE_S = 1.0


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a forked shim settles. An empty cgroup and no OOM score leave what it has inherited."""

    bundle: str
    cgroup: str = ""
    oom_score_adj: int | None = None
    debug: bool = False


def become_shim(listener: socket.socket, identity: Identity, place: Place) -> NoReturn:
    """Go on as the shim of `identity` in a freshly forked child."""

    def life() -> int:
        settle(place)
        return run(listener, identity)

    end(life)


def become_resting_shim(listener: socket.socket, identity_of: Callable[[], Identity], place: Place) -> NoReturn:
    """Go on as a shim that rests, in a freshly forked child.

    That pays where everything a worker needs was loaded before the fork. Only workers call `identity_of`: whatever the
    resting process executes costs memory as long as the shim lives.
    """

    def rest(own: OwnSocket) -> int:
        return Resident(listener, lambda worker: _work(worker, identity_of(), own)).run()

    def life() -> int:
        settle(place)
        return _listening(listener, place.bundle, rest, debug=place.debug)

    end(life)


def end(life: Callable[[], int]) -> NoReturn:
    """End this process with the status that `life` returns; if it raises, with 1 and a line in the log."""
    status = 1
    try:
        status = life()
    except Exception:  # the edge of the process
        log.exception("the shim failed")
    finally:
        os._exit(status)


def settle(place: Place) -> None:
    """Leave the place of the process that forked this one.

    The standard streams go first: the starter may read them until nobody can write there.
    """
    os.chdir(place.bundle)
    detach_stdio()
    set_oom_score_adj(place.oom_score_adj)
    if place.cgroup:
        placement.join(place.cgroup, os.getpid())


def run(listener: socket.socket, identity: Identity) -> int:
    """Be the shim of `identity` in this process until it is shut down; return the exit status."""

    def life(own: OwnSocket) -> int:
        return _run_loop(AlwaysAwake(listener), identity, own)

    return _listening(listener, str(identity.bundle), life, debug=identity.debug)


def _listening(listener: socket.socket, bundle: str, life: Callable[[OwnSocket], int], *, debug: bool) -> int:
    own = OwnSocket(listener)
    prctl.set_child_subreaper()
    prctl.set_name(COMMAND_NAME)
    open_log(bundle, debug=debug)
    try:
        return life(own)
    finally:
        own.remove()


def _work(rest: Rest, identity: Identity, own: OwnSocket) -> None:
    try:
        _run_loop(rest, identity, own)
    except Exception:  # the edge of the process
        log.exception("the shim failed")
        raise


def _run_loop(rest: Rest, identity: Identity, own: OwnSocket) -> int:
    """Drive a loop by hand: `asyncio.run` does more than a process needs that ends with its loop."""
    asyncio.new_event_loop().run_until_complete(serve(rest, identity, own))
    return 0


def prepare_log() -> None:
    """Set up logging to stderr. A fork server does it once for all its shims, which point stderr elsewhere."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.INFO)
    faulthandler.register(signal.SIGUSR1, file=2)


def open_log(bundle: str, *, debug: bool) -> None:
    """Log into the daemon's fifo and nowhere else. While the daemon does not read, lines are lost."""
    if not logging.root.handlers:
        prepare_log()
    if debug:
        logging.root.setLevel(logging.DEBUG)
    _redirect_stderr(f"{bundle}/log")


async def serve(rest: Rest, identity: Identity, own: OwnSocket) -> None:
    """Serve the task API until Shutdown, SIGTERM or SIGINT, or until `rest` hands over and ends the process."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def shut_down() -> None:
        own.remove()
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shut_down)
    forwarder = Forwarder(identity.ttrpc_address, identity.namespace)
    publisher = Publisher(forwarder.send if identity.ttrpc_address else _discard, identity.namespace)
    reaper = Reaper()
    reaper.start()
    async with asyncio.TaskGroup() as tasks:
        background = Background(tasks)
        around = Surroundings(reaper, publisher.publish, background.start)
        service = TaskService(identity.namespace, identity.env, around, shut_down=shut_down, shim_pid=rest.shim_pid)
        server = TtrpcServer([service, TaskServiceV2(service)])
        helpers = [tasks.create_task(publisher.run())]
        await rest.begin(
            Parts(server=server, service=service, publisher=publisher, reaper=reaper, background=background)
        )
        helpers.append(tasks.create_task(rest.hand_over_when_idle()))
        await ending.wait()
        rest.refuse_connections()
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
