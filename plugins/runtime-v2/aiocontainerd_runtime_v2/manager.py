"""Starts, connects to and cleans up single shims. Which shims there are is not known here (facts/runtime 3)."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from aiocontainerd import api
from aiocontainerd.errors import ContainerdError, InvalidArgument, Unavailable, Unknown
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.runtime import Exit
from aiocontainerd.interfaces.shim import ShimCommand, ShimLauncher
from aiocontainerd.typeurl import Any
from aiocontainerd.wire import codec
from aiocontainerd_runtime_v2 import bootstrap, strays
from aiocontainerd_runtime_v2 import bundle as bundles
from aiocontainerd_runtime_v2.binary import BinaryLauncher
from aiocontainerd_runtime_v2.bootstrap import Endpoint
from aiocontainerd_runtime_v2.bundle import Bundle
from aiocontainerd_runtime_v2.deadlines import Deadlines
from aiocontainerd_runtime_v2.resolve import Resolver
from aiocontainerd_runtime_v2.shim import UNIX, Shim, lost_exit, open_client
from aiocontainerd_runtime_v2.task import exit_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_NO_CONNECTION = "failed to create TTRPC connection"
_SOCKET_DIR = "/run/containerd/s"
_OWN_VERSION = 3


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that every shim is told: addresses, the program that publishes events, extra environment."""

    grpc_address: str
    ttrpc_address: str
    publish_binary: str
    debug: bool = False
    env: Mapping[str, str] = {}
    socket_dir: str = ""


class ShimManager:
    """Shims by runtime name, through a launcher plugin where one serves the name, else through their programs."""

    def __init__(
        self,
        surroundings: Surroundings,
        deadlines: Deadlines,
        launchers: Sequence[ShimLauncher] = (),
        resolver: Resolver | None = None,
    ) -> None:
        self.deadlines = deadlines
        self._surroundings = surroundings
        self._launchers = launchers
        self._resolver = resolver or Resolver()
        self._binaries: dict[Path, BinaryLauncher] = {}

    def __repr__(self) -> str:
        return f"<ShimManager launchers {list(self._launchers)} programs {sorted(map(str, self._binaries))}>"

    async def launcher(self, runtime: str) -> ShimLauncher:
        """Return how to start shims of a runtime name or absolute path.

        Raises `failed to resolve runtime path: ...`.
        """
        for launcher in self._launchers:
            if runtime in launcher.runtimes:
                return launcher
        try:
            return self._binary(await to_thread(self._resolver.resolve, runtime))
        except ContainerdError as error:
            raise prefixed("failed to resolve runtime path", error) from error

    def launcher_of(self, binary: Path) -> ShimLauncher:
        """Return how to clean up after shims whose bundle names this program."""
        for launcher in self._launchers:
            if launcher.binary == binary:
                return launcher
        return self._binary(binary)

    def _binary(self, path: Path) -> BinaryLauncher:
        return self._binaries.setdefault(path, BinaryLauncher(path))

    async def start(self, bundle: Bundle, launcher: ShimLauncher, options: Any | None) -> Shim:
        """Start the shim of a bundle, or join the shim that its program names, and connect to it.

        This goes on to its end when the caller is cancelled: otherwise a shim could run that nobody knows.
        Raises `start failed: ...`.
        """
        await to_thread(bundles.write_shim_path, bundle, launcher.binary)
        with anyio.CancelScope(shield=True):
            try:
                endpoint = await self._launch(bundle, launcher, options)
                shim = await self._connect_new(bundle, endpoint, launcher)
            except ContainerdError as error:
                raise prefixed("start failed", error) from error
        return shim

    async def _launch(self, bundle: Bundle, launcher: ShimLauncher, options: Any | None) -> Endpoint:
        command = self._command(bundle, options)
        printed = await launcher.start(command, timeout_s=self.deadlines.start_s)
        try:
            endpoint = bootstrap.parse(printed)
        except InvalidArgument as bad:
            raise Unknown(_cannot_dial(printed.decode(errors="replace").strip())) from bad
        if endpoint.protocol not in bootstrap.PROTOCOLS:
            raise Unknown(f"unexpected protocol: {quoted(endpoint.protocol)}")
        await to_thread(bundles.write_endpoint, bundle, endpoint)
        return endpoint

    async def _connect_new(self, bundle: Bundle, endpoint: Endpoint, launcher: ShimLauncher) -> Shim:
        if endpoint.protocol == bootstrap.TTRPC and not endpoint.address.startswith(UNIX):
            raise Unknown(_cannot_dial(endpoint.address))
        try:
            return await self.connect(bundle, endpoint, launcher)
        except Unavailable as gone:
            raise Unknown(f"{_NO_CONNECTION}: {gone.message}") from gone

    async def connect(
        self, bundle: Bundle, endpoint: Endpoint, launcher: ShimLauncher, *, joined: bool = False
    ) -> Shim:
        """Connect to a shim. Raises Unavailable if it does not listen."""
        client = await open_client(bundle.id, endpoint, timeout_s=self.deadlines.load_s)
        return Shim(bundle, endpoint, client, launcher, joined=joined)

    async def own_endpoint(self, bundle: Bundle, named: Endpoint) -> Endpoint | None:
        """Return where a shim of ours listens that works in a bundle, if the bundle names another address.

        It is None without such a shim. Neither a connection, which wakes a shim, nor a look at every process is made
        for a bundle that names the right address.
        """
        path = _own_socket(bundle, self._surroundings)
        if named.address == f"unix://{path}" or not await to_thread(_has_own_shim, bundle, path):
            return None
        return Endpoint(version=_OWN_VERSION, address=f"unix://{path}", protocol=bootstrap.TTRPC)

    async def clean_up(self, bundle: Bundle, launcher: ShimLauncher) -> Exit:
        """Run the `delete` action for a lost shim. Never fails: an unknown exit has status 255."""
        if not await to_thread(bundle.path.is_dir):
            return lost_exit()
        try:
            printed = await launcher.delete(self._command(bundle, None), timeout_s=self.deadlines.cleanup_s)
            return exit_of(codec.decode(api.task_v3.DeleteResponse, printed))
        except ContainerdError as error:
            log.warning(
                "cleaning up after the shim of task %s/%s failed: %s", bundle.namespace, bundle.id, error.message
            )
            return lost_exit()
        finally:
            await to_thread(_unlink_dead_socket, bundle, self._surroundings)

    async def info(self, runtime: str, options: bytes) -> bytes:
        """Return the RuntimeInfo that the program of a runtime prints about itself."""
        program = BinaryLauncher((await self.launcher(runtime)).binary)
        return await program.info(options, timeout_s=self.deadlines.start_s)

    def _command(self, bundle: Bundle, options: Any | None) -> ShimCommand:
        around = self._surroundings
        stdin = bootstrap.parameters(
            instance_id=bundle.id,
            namespace=bundle.namespace,
            grpc_address=around.grpc_address,
            ttrpc_address=around.ttrpc_address,
            binary=around.publish_binary,
            debug=around.debug,
            options=options,
            socket_dir=around.socket_dir,
        )
        return ShimCommand(
            namespace=bundle.namespace,
            id=bundle.id,
            bundle=bundle.path,
            grpc_address=around.grpc_address,
            ttrpc_address=around.ttrpc_address,
            publish_binary=around.publish_binary,
            debug=around.debug,
            stdin=stdin,
            env=around.env,
        )


def _socket_of(bundle: Bundle, around: Surroundings) -> str:
    """Return where the bundle's shim listens, or would listen; "" if it is no unix socket (facts/runtime 3.4)."""
    endpoint = bundles.read_endpoint(bundle)
    if endpoint is None:
        return _own_socket(bundle, around)
    return endpoint.address.removeprefix("unix://") if endpoint.address.startswith("unix://") else ""


def _own_socket(bundle: Bundle, around: Surroundings) -> str:
    named = os.path.join(around.grpc_address, bundle.namespace, bundle.id)
    return f"{around.socket_dir or _SOCKET_DIR}/{hashlib.sha256(named.encode()).hexdigest()}"


def _has_own_shim(bundle: Bundle, path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return not probe.connect_ex(path) and bool(strays.processes_in(bundle))


def _unlink_dead_socket(bundle: Bundle, around: Surroundings) -> None:
    """Remove the socket of a shim that is gone. A shim may have printed any path: what is no socket stays."""
    path = _socket_of(bundle, around)
    if not path or not _is_socket(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)  # another task of the same shim may be cleaned up at the same time
        except OSError:
            pass  # gone already, or busy and so alive


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _cannot_dial(printed: str) -> str:
    """Return containerd's words for a shim that printed no address: it takes the text for an abstract socket's name."""
    return f"{_NO_CONNECTION}: dial unix \0{printed}: connect: {os.strerror(errno.ECONNREFUSED).lower()}"


def prefixed(text: str, error: ContainerdError) -> ContainerdError:
    """Return an error of the same class, with `text` in front of its message."""
    return type(error)(f"{text}: {error.message}")


async def to_thread(function: Callable[..., T], *args: object) -> T:
    """Run blocking file work beside the event loop. A cancelled caller waits for its end."""
    return await anyio.to_thread.run_sync(function, *args)
