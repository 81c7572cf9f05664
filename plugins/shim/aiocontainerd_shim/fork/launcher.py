"""The daemon's side of the fork server (`interfaces/shim.py`): starts it, finds it again, asks it, does without it.

A running server is used if it was started from the same code and settings. Any other server is told to retire: it stays
the parent of its shims, and a new server takes its place. While there is no server, shims are started by executing the
binary.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import msgspec

from aiocontainerd import typeurl
from aiocontainerd.errors import ContainerdError, DeadlineExceeded, Unavailable, Unknown
from aiocontainerd.interfaces.shim import ShimCommand
from aiocontainerd.sys import programs
from aiocontainerd.sys.cgroup import remove_empty
from aiocontainerd_shim.cgroups.own import measure
from aiocontainerd_shim.fork import protocol
from aiocontainerd_shim.fork.limits import Limits
from aiocontainerd_shim.fork.protocol import Request, Verb, request_of
from aiocontainerd_shim.oci.choice import CONFIGURED_ENV, Findings
from aiocontainerd_shim.oci.spec import KNOWN
from aiocontainerd_shim.oci.tries import LIMIT_ENV
from aiocontainerd_shim.program import bootstrap

log = logging.getLogger(__name__)

PROGRAM = "containerd-shim-aio-v2"
RUNTIMES = ("io.containerd.runc.v2", "io.containerd.aio.v2")
_SERVER = ("-m", "aiocontainerd_shim")
_AGAIN_S = 1.0
"""Pause after a fork server has ended by itself, before the next one is started."""
_RETRY_S = 60.0
"""Pause after a fork server could not be started, before another one is tried. Shims are executed meanwhile."""


def _discard(_told: dict[str, str]) -> None:
    return


class AioLauncher:
    """Starts and cleans up shims through the fork server, or through the binary while there is no server."""

    runtimes: Sequence[str] = RUNTIMES
    cleans_up = True
    rests = True

    def __init__(
        self,
        state: Path,
        *,
        fork_server: bool = True,
        oci_runtime: str = "",
        cgroup: str = "",
        limits: Limits | None = None,
        tell: Callable[[dict[str, str]], None] = _discard,
    ) -> None:
        """`limits` may be replaced later. A server that was started with other limits is replaced then, too.

        `tell` takes what operators want to know of the OCI runtimes, once a server has found it out.
        """
        self.binary = program_path()
        self.limits = limits or Limits()
        self.socket_path = state / "fork-server.sock"
        self._fork_server = fork_server
        self._oci_runtime = oci_runtime
        self._tell = tell
        self._cgroup = cgroup
        self._starting = anyio.Lock()
        self._retry_at = 0.0
        self._attending: anyio.CancelScope | None = None
        self._attended = anyio.Event()
        self._closed = False
        self.attends = False
        self.forked = 0
        self.executed = 0

    def __repr__(self) -> str:
        return f"<AioLauncher {self.socket_path} {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many actions went through the fork server, and how many through the binary."""
        return {"forked": self.forked, "executed": self.executed}

    async def start(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """Start a shim; return the BootstrapResult. Raises the shim's error, DeadlineExceeded."""
        prepared = await anyio.to_thread.run_sync(self._prepare, command)
        if prepared is None:
            await self.ensure_server()
            prepared = await anyio.to_thread.run_sync(self._prepare, command)
        if prepared is None:
            return await self._execute(Verb.START, command, timeout_s)
        planned, listener, score = prepared
        if listener is None:
            return planned.result()
        with listener:
            env = self._environ(command)
            request = request_of(Verb.START, command, env, shim_cgroup=planned.shim_cgroup, oom_score_adj=score)
            try:
                await self._ask(request, timeout_s, listener)
            except (OSError, Unavailable) as gone:
                log.debug("no fork server answers at %s: %s", self.socket_path, gone)
            except BaseException:
                await _unlink(planned.path)
                raise
            else:
                self.forked += 1
                return planned.result()
        await _unlink(planned.path)
        return await self._execute(Verb.START, command, timeout_s)

    def _prepare(self, command: ShimCommand) -> tuple[bootstrap.Plan, socket.socket | None, int | None] | None:
        """Return where the shim will listen, its listener, its OOM score adjustment; None while there is no server."""
        if not self.socket_path.exists():
            return None
        planned, listener = _open_listener(command)
        return planned, listener, bootstrap.oom_score_adj_for_child_of("self")

    async def delete(self, command: ShimCommand, *, timeout_s: float) -> bytes:
        """Remove what a dead shim left behind; return the DeleteResponse. Raises the shim's error, DeadlineExceeded."""
        try:
            result = await self._ask(request_of(Verb.DELETE, command, self._environ(command)), timeout_s)
        except (OSError, Unavailable) as gone:
            log.debug("no fork server answers at %s: %s", self.socket_path, gone)
            return await self._execute(Verb.DELETE, command, timeout_s)
        self.forked += 1
        return result

    async def stats(self, bundle: Path, pid: int) -> typeurl.Any:
        """Return the cgroup metrics of a container without its shim. Raises NotFound if the cgroup is gone."""
        return await anyio.to_thread.run_sync(measure, bundle, pid)

    async def ensure_server(self) -> None:
        """Have a fork server of this code running. A failure is logged only: shims can still be executed."""
        if not self._fork_server:
            return
        async with self._starting:
            if anyio.current_time() < self._retry_at:
                return
            fingerprint = f"{await anyio.to_thread.run_sync(code_fingerprint)} {self.limits.idle_s:g}"
            try:
                running = await self._running_fingerprint()
                if running == fingerprint:
                    return
                if running:
                    await self.retire()
                await self._start_server(fingerprint)
            except (OSError, Unavailable, DeadlineExceeded, Unknown) as failure:
                self._retry_at = anyio.current_time() + _RETRY_S
                log.warning("there is no fork server, so shims are executed instead: %s", failure)

    async def attend(self) -> None:
        """Keep a server running, and hold a connection to it until `aclose`.

        If the daemon dies, the connection ends, and the server knows.
        """
        if not self._fork_server or self._closed:
            return
        try:
            with anyio.CancelScope() as self._attending:
                while True:
                    await self.ensure_server()
                    await self._learn()
                    await self._hold()
                    await anyio.sleep(max(_AGAIN_S, self._retry_at - anyio.current_time()))
        finally:
            self._attended.set()

    async def _learn(self) -> None:
        """Tell what the server knows of the OCI runtimes. Without a server each shim finds it out by itself."""
        try:
            answer = await self._ask(Request(verb=Verb.FINDINGS), self.limits.answer_s)
        except (OSError, ContainerdError) as gone:
            log.debug("no fork server answers at %s: %s", self.socket_path, gone)
            return
        self._tell(told(msgspec.json.decode(answer, type=Findings), self._oci_runtime))

    async def _hold(self) -> None:
        """Hold a connection until the server ends; return at once if there is no server."""
        try:
            async with await anyio.connect_unix(self.socket_path) as stream:
                await stream.send(protocol.frame(Request(verb=Verb.ATTEND)))
                self.attends = True
                while True:
                    await stream.receive()
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as gone:
            log.debug("no fork server answers at %s: %s", self.socket_path, gone)
        finally:
            self.attends = False

    async def aclose(self) -> None:
        """Tell the server to end with its last shim, and remove the cgroup if nobody is left in it.

        A start of a server that is under way is cancelled first, so that no server comes after this.
        """
        self._closed = True
        if self._attending is not None:
            self._attending.cancel()
            await self._attended.wait()
        if self._fork_server:
            try:
                await self.retire()
            except (OSError, ContainerdError) as gone:
                log.debug("no fork server answers at %s: %s", self.socket_path, gone)
        if self._cgroup:
            await anyio.to_thread.run_sync(remove_empty, self._cgroup)

    async def retire(self) -> None:
        """Tell the running server to end once its last shim has ended. Raises OSError where no server runs."""
        await self._ask(Request(verb=Verb.RETIRE), self.limits.answer_s)

    async def _ask(self, request: Request, timeout_s: float, listener: socket.socket | None = None) -> bytes:
        header, body = protocol.split_frame(request)
        try:
            with anyio.fail_after(timeout_s):
                async with await anyio.connect_unix(self.socket_path) as stream:
                    await (stream.send(header) if listener is None else stream.send_fds(header, [listener.fileno()]))
                    await stream.send(body)
                    return protocol.parse_reply(await _receive_frame(stream)).unwrap()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as lost:
            raise Unavailable(f"fork server at {self.socket_path}: the connection was lost") from lost
        except TimeoutError:
            raise DeadlineExceeded(f"fork server: {request.verb} {request.id}") from None

    async def _execute(self, verb: Verb, command: ShimCommand, timeout_s: float) -> bytes:
        self.executed += 1
        argv = argv_of(self.binary, verb, command)
        env = self._environ(command)
        done = await programs.run(argv, stdin=command.stdin, cwd=command.bundle, env=env, timeout_s=timeout_s)
        if done.status:
            raise Unknown(f"{self.binary.name} {verb}: {done.text()}: {done.ending}")
        return done.stdout

    async def _running_fingerprint(self) -> str:
        try:
            return (await self._ask(Request(verb=Verb.HELLO), self.limits.answer_s)).decode()
        except (FileNotFoundError, ConnectionRefusedError):
            return ""

    async def _start_server(self, fingerprint: str) -> None:
        argv = [sys.executable, *_SERVER, "--socket", str(self.socket_path)]
        argv += ["--fingerprint", fingerprint, "--cgroup", self._cgroup, "--idle", str(self.limits.idle_s)]
        env = {**os.environ, LIMIT_ENV: str(self.limits.probe_s)}
        done = await programs.run(argv, env=env, timeout_s=self.limits.start_s)
        if done.status:
            raise Unknown(f"fork server: {done.text()}: {done.ending}")

    def _environ(self, command: ShimCommand) -> dict[str, str]:
        """Return the environment that the binary would have (facts/runtime 3.1)."""
        own = {
            "TTRPC_ADDRESS": command.ttrpc_address,
            "GRPC_ADDRESS": command.grpc_address,
            "NAMESPACE": command.namespace,
        }
        configured = {CONFIGURED_ENV: self._oci_runtime} if self._oci_runtime else {}
        limit = {LIMIT_ENV: str(self.limits.probe_s)}
        return {**os.environ, **limit, **configured, **own, **command.env}


def told(found: Findings, configured: str = "") -> dict[str, str]:
    """Return what `plugins ls -d` shows: the OCI runtime for containers that name none, and what each one takes."""
    chosen = configured or found.chosen or f"none: {found.complaint}"
    return {
        "oci-runtime": chosen,
        **{
            f"oci-runtime.{name}": "takes every ociVersion" if highest == KNOWN[0] else f"takes ociVersion <= {highest}"
            for name, highest in found.highest.items()
        },
    }


def _open_listener(command: ShimCommand) -> tuple[bootstrap.Plan, socket.socket | None]:
    identity = bootstrap.Identity(
        namespace=command.namespace, id=command.id, bundle=command.bundle, grpc_address=command.grpc_address
    )
    planned = bootstrap.plan(command.stdin, identity)
    return planned, bootstrap.open_listener(planned, command.bundle)


def argv_of(binary: Path, verb: Verb, command: ShimCommand) -> list[str]:
    """Return the command line of the shim binary for an action (facts/runtime 3.1)."""
    argv = [str(binary), "-namespace", command.namespace, "-address", command.grpc_address]
    argv += ["-publish-binary", command.publish_binary, "-id", command.id]
    argv += ["-bundle", str(command.bundle)] if verb == Verb.DELETE else []
    return [*argv, *(["-debug"] if command.debug else []), verb.value]


def program_path() -> Path:
    """Return the shim program: beside the interpreter, where installers put it, else found by PATH."""
    import shutil

    beside = Path(sys.executable).parent / PROGRAM
    return beside if beside.exists() else Path(shutil.which(PROGRAM) or PROGRAM)


def code_fingerprint() -> str:
    """Return a digest of the shim's code: names, sizes and times of the source files, and the version of Python."""
    import aiocontainerd

    digest = hashlib.sha256(sys.version.encode())
    for package in (Path(aiocontainerd.__file__).parent, Path(__file__).parents[1]):
        for path in sorted(package.rglob("*.py")):
            status = path.stat()
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


async def _unlink(path: str) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(partial(Path(path).unlink, missing_ok=True))


async def _receive_frame(stream: anyio.abc.ByteReceiveStream) -> bytes:
    header = await _receive_exactly(stream, protocol.HEADER.size)
    return await _receive_exactly(stream, protocol.body_length(header))


async def _receive_exactly(stream: anyio.abc.ByteReceiveStream, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        parts += await stream.receive(count - len(parts))
    return bytes(parts)
