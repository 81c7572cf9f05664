"""The fork server: a small process with the shim's code imported, which forks a shim within milliseconds.

It has one thread and no event loop, so a fork is safe and cheap. It freezes its heap before it serves: the garbage
collections of its shims then do not write to the pages they share with it. It lives in a session of its own and, where
possible, in a cgroup of its own. It is the parent of its shims and a subreaper. When a shim dies, its containers become
children of the server, which writes their exits to their bundles.

A daemon that stops tells the server to retire. A retired server stops listening, and ends when its last shim has ended.
A daemon that is killed tells nothing, but its `attend` connection ends. Then the server waits a while for the next
daemon, or as long as it has shims, and retires by itself after that.
"""

from __future__ import annotations

import argparse
import math
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec

from aiocontainerd.errors import ContainerdError
from aiocontainerd.sys import prctl
from aiocontainerd.sys.pidfd import wait_status_to_exit_status
from aiocontainerd_shim.cgroups import placement
from aiocontainerd_shim.children import sealed
from aiocontainerd_shim.fork import child, heap, protocol, warm_up
from aiocontainerd_shim.fork.protocol import Reply, Request, Verb
from aiocontainerd_shim.fork.received import Received
from aiocontainerd_shim.oci import choice, tries, versions
from aiocontainerd_shim.program import bootstrap, serve
from aiocontainerd_shim.task import records

CLIENT_TIMEOUT_S = 2.0
COMMAND_NAME = "aio-fork-server"
_UCRED = struct.Struct("3i")
_FD_LIMIT = 1 << 16
_NICE = -10
IDLE_S = 5.0
"""How long a server without daemon and shim waits by default: somewhat longer than a service manager takes."""


class ForkServer:
    """Serves requests on a listening socket, one after the other. Only forks take time, and they take little."""

    def __init__(self, listener: socket.socket, path: str, fingerprint: str, idle_s: float = IDLE_S) -> None:
        """`idle_s` is how long to wait for the next daemon, without a daemon and without a shim."""
        self._listener = listener
        self._path = path
        self._fingerprint = fingerprint
        self._idle_s = idle_s
        self._retired = False
        self._bundles: dict[int, Path] = {}
        self._deletes: set[int] = set()
        self._daemons: set[socket.socket] = set()
        self._alone_since = time.monotonic()
        self._orphaned: set[Path] = set()
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._name = _identity(path)

    def __repr__(self) -> str:
        return f"<ForkServer {self._path} shims={len(self._bundles)}{' retired' if self._retired else ''}>"

    def serve(self) -> None:
        """Serve until retired and without children."""
        self._take_signals()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._reap)
        try:
            while not self._retired or self._has_children():
                for key, _ in self._selector.select(self._patience_s()):
                    key.data()
                if self._patience_s() == 0:
                    self._retire()
        finally:
            self._retire()

    def _has_children(self) -> bool:
        """Return whether there is a shim, a clean-up, or a container of a dead shim, whose exit comes here."""
        return bool(self._bundles or self._deletes or (self._orphaned and _is_parent()))

    def _patience_s(self) -> float | None:
        """Return how long to go on without a daemon; None if there is a daemon, or a child whose end comes first."""
        if self._retired or self._daemons or self._has_children() or math.isinf(self._idle_s):
            return None
        return max(0.0, self._alone_since + self._idle_s - time.monotonic())

    def _take_signals(self) -> None:
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._retire())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(CLIENT_TIMEOUT_S)
            _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid != os.geteuid():
                return
            try:
                self._answer(connection)
            except OSError:
                return  # the client has gone; its daemon cleans up a shim that was forked for it

    def _attend(self, connection: socket.socket) -> None:
        daemon = connection.dup()
        self._daemons.add(daemon)
        self._selector.register(daemon, selectors.EVENT_READ, partial(self._lose, daemon))

    def _lose(self, daemon: socket.socket) -> None:
        self._selector.unregister(daemon)
        self._daemons.discard(daemon)
        daemon.close()
        self._alone_since = time.monotonic()

    def _answer(self, connection: socket.socket) -> None:
        with Received(connection) as received:
            try:
                reply = self._carry_out(received, connection)
            except ContainerdError as failure:
                reply = protocol.failed(failure)
            if reply is not None:
                connection.sendall(protocol.frame(reply))

    def _carry_out(self, received: Received, connection: socket.socket) -> Reply | None:
        """Carry out a request; return None if a child answers, or nobody."""
        request = received.request()
        self._alone_since = time.monotonic()
        if request.verb == Verb.ATTEND:
            self._attend(connection)
            return None
        if request.verb == Verb.START:
            self._start(request, received.listener())
            return Reply()
        if request.verb == Verb.DELETE:
            pid = self._fork(connection.fileno(), request)
            if not pid:
                child.delete(request, connection)
            self._deletes.add(pid)
            return None
        if request.verb == Verb.FINDINGS:
            return Reply(result=msgspec.json.encode(choice.findings()))
        if request.verb == Verb.RETIRE:
            self._retire()
        return Reply(result=self._fingerprint.encode())

    def _start(self, request: Request, listener: socket.socket) -> None:
        pid = self._fork(listener.fileno(), request)
        if not pid:
            child.start(request, listener)
        self._bundles[pid] = Path(request.bundle)

    def _fork(self, kept_fd: int, request: Request) -> int:
        """Fork. The child has a session of its own and default signals.

        Of the descriptors it keeps only `kept_fd` and the sealed copies.
        """
        pid = os.fork()
        if pid:
            return pid
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _close_all_but(kept_fd)
        if request.core_scheduling:
            prctl.create_core_scheduling_group()
        return 0

    def _retire(self) -> None:
        if self._retired:
            return
        self._retired = True
        versions.forget()
        self._selector.unregister(self._listener)
        self._listener.close()
        if _identity(self._path) == self._name:
            os.unlink(self._path)

    def _reap(self) -> None:
        try:
            self._wake_in.recv(4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._exited(pid, wait_status_to_exit_status(status))

    def _exited(self, pid: int, status: int) -> None:
        self._deletes.discard(pid)
        bundle = self._bundles.pop(pid, None)
        if bundle is not None:
            if status:
                self._orphaned.add(bundle.parent)
            return
        for directory in self._orphaned:
            record_orphan_exit(directory, pid, status)


def _is_parent() -> bool:
    """Return whether this process has any child, its own or an orphan that fell to it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _identity(path: str) -> tuple[int, int, int] | None:
    """Return what tells the file of this socket from that of the next server; None where there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def record_orphan_exit(directory: Path, pid: int, status: int) -> bool:
    """Write the exit of a process whose shim is dead into its record, in one of the bundles of `directory`."""
    if not directory.is_dir():
        return False
    for bundle in directory.iterdir():
        for record in records.read_processes(bundle):
            if record.pid == pid and record.exited_at_ns is None:
                ended = msgspec.structs.replace(record, exit_status=status, exited_at_ns=time.time_ns())
                records.write_process(bundle, ended)
                return True
    return False


def main(argv: Sequence[str] | None = None) -> None:
    """Start a fork server in the background; return when it listens."""
    parser = argparse.ArgumentParser(prog="aiocontainerd-fork-server")
    parser.add_argument("--socket", required=True, help="where to listen")
    parser.add_argument("--fingerprint", required=True, help="what to answer to hello")
    parser.add_argument("--cgroup", default="", help="cgroup to move into; empty stays")
    parser.add_argument(
        "--idle", type=float, default=IDLE_S, help="seconds to wait for the next daemon, without daemon and shims"
    )
    args = parser.parse_args(argv)
    ready, writer = os.pipe()
    if os.fork():
        os.close(writer)
        sys.exit(0 if os.read(ready, 1) else 1)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(ready)
    _run(args, writer)


def _run(args: argparse.Namespace, ready: int) -> NoReturn:
    """Prepare, listen, tell the waiting parent, serve. Errors before that go to the starter's stderr."""
    path, own_cgroup = args.socket, args.cgroup
    _unwind_on_term()
    tries.happen_in(Path(path).parent)
    try:
        os.chdir("/")
        prctl.set_name(COMMAND_NAME)
        prctl.set_child_subreaper()
        if own_cgroup:
            placement.join(own_cgroup, os.getpid())
            placement.prefer(own_cgroup)
        _prepare()
        _go_first()
        listener = bootstrap.listen(path)
        if listener is not None and _announced(path, ready):
            _close_all_but(listener.fileno())
            serve.detach_stdio()
            ForkServer(listener, path, args.fingerprint, args.idle).serve()
    except Exception:  # noqa: BLE001 - the edge of the process
        traceback.print_exc()
    finally:
        if own_cgroup:
            placement.leave(own_cgroup, os.getpid())
        os._exit(0)


def _go_first() -> None:
    """Let this process run before others that want a processor: whoever starts a container waits for it.

    On a busy host it would wait for its turn forty times as long as it works, once for each shim. What it forks has the
    usual priority (sched(7), SCHED_RESET_ON_FORK). An operator who gave the daemon another priority decides.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) != 0:
        return
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _unwind_on_term() -> None:
    """On SIGTERM, undo what is under way, such as a probe, and end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def _announced(path: str, ready: int) -> bool:
    """Tell the starter that the server listens; return False if it has given up, so that nobody will ever ask."""
    try:
        os.write(ready, b"1")
    except BrokenPipeError:
        os.unlink(path)
        return False
    return True


def _prepare() -> None:
    """Do once what every shim would do anew, then prepare the heap."""
    try:
        warm_up.run()
    except Exception:  # noqa: BLE001 - a server that is not warm also serves, only slower
        traceback.print_exc()
    _unwind_on_term()  # again, since an event loop that ends resets its signals
    choice.findings()  # whoever creates a container without naming an OCI runtime is told what is wrong with each
    sealed.keep(choice.CANDIDATES)
    serve.prepare_log()
    heap.prepare()


def _close_all_but(kept_fd: int) -> None:
    low = 3
    for kept in sorted({kept_fd, *sealed.descriptors()}):
        os.closerange(low, kept)
        low = kept + 1
    os.closerange(low, _FD_LIMIT)
