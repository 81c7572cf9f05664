"""A connected shim as one task sees it: calls of the task API within their limits (facts/runtime 3.2, 4.1)."""

from __future__ import annotations

import math
from typing import Any as Untyped

import anyio

from aiocontainerd.errors import ContainerdError, DeadlineExceeded, LocalDeadline, Unavailable, Unimplemented, os_text
from aiocontainerd.interfaces.runtime import UNKNOWN_EXIT_STATUS, Exit
from aiocontainerd.interfaces.shim import ShimLauncher
from aiocontainerd.rpc import binding
from aiocontainerd.rpc.ttrpc.client import TtrpcClient, TtrpcClosed
from aiocontainerd.timestamps import now_ns
from aiocontainerd_runtime_v2.bootstrap import TTRPC, Endpoint
from aiocontainerd_runtime_v2.bundle import Bundle

_SERVICE = "containerd.task.v{}.Task"
_NEW_API = 3
_OLD_API = 2
UNIX = ("unix://", "/")
FOREVER_S = 10 * 365 * 86_400.0
"""For calls that end with what they wait for; the wire has no infinite deadline."""


class Shim:
    """The connection to a task's shim, and how the shim ended.

    Without a `client` the shim is connected to by the first call, or by `dial`. `launcher` cleans up after the shim.
    `joined` means that the shim was started for another task, which owns it. `ended` is set when the task and its
    bundle are dealt with for good; `exit` is then the exit of the init.
    """

    def __init__(
        self,
        bundle: Bundle,
        endpoint: Endpoint,
        client: TtrpcClient | None,
        launcher: ShimLauncher,
        *,
        joined: bool = False,
    ) -> None:
        self.bundle = bundle
        self.endpoint = endpoint
        self.launcher = launcher
        self.joined = joined
        self.version = _NEW_API if endpoint.version >= _NEW_API else _OLD_API
        self.pid = 0
        self.exit: Exit | None = None
        self.ended = anyio.Event()
        self._client = client
        self._dialling = anyio.Lock()
        self._dialled = anyio.Event()
        self._let_go = False
        if client is not None:
            self._dialled.set()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"task API v{self.version}"
        if self._client is None:
            state = "not connected"
        return f"<Shim {self.bundle.namespace}/{self.bundle.id} {self.endpoint.address} {state}>"

    async def call(self, method: str, *, limit_s: float, **fields: object) -> Untyped:
        """Call a method of the task API with `id` and the given fields; returns the response message.

        Raises what the shim answers, DeadlineExceeded naming the task and our limit, TtrpcClosed. The shim is told
        our limit; what it answers at that limit counts as ours.
        """
        service = _SERVICE.format(self.version)
        request = binding.signature(service, method).request_class(id=self.bundle.id, **fields)  # type: ignore[call-arg] # the generated classes take their fields
        timeout_s = FOREVER_S if math.isinf(limit_s) else limit_s
        began = anyio.current_time()
        try:
            client = self._client or await self.dial(limit_s=limit_s)
            return await client.call(service, method, request, timeout_s=timeout_s, namespace=self.bundle.namespace)
        except DeadlineExceeded as late:
            if not isinstance(late, LocalDeadline) and anyio.current_time() - began < limit_s:
                raise  # it is a limit of the shim's own
            raise DeadlineExceeded(
                f'the shim of task "{self.bundle.id}" ({self.endpoint.address}) did not answer {method} '
                f"within {limit_s:g}s"
            ) from late

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone. A shim that was not connected to yet counts as there."""
        return self._let_go if self._client is None else self._client.closed

    async def dial(self, *, limit_s: float) -> TtrpcClient:
        """Connect, unless connected. Raises TtrpcClosed if nobody listens any more, Unavailable for other failures."""
        async with self._dialling:
            if self._client is None and not self._let_go:
                try:
                    self._client = await open_client(self.bundle.id, self.endpoint, timeout_s=limit_s)
                except NobodyListensError:
                    self._let_go = True
                self._dialled.set()
        if self._client is None:
            raise TtrpcClosed("ttrpc: closed")
        return self._client

    async def call_either(self, method: str, *, limit_s: float, **fields: object) -> Untyped:
        """Call as `call` does. If the shim does not know version 3 of the API, use version 2 from here on."""
        try:
            return await self.call(method, limit_s=limit_s, **fields)
        except Unimplemented:
            if self.version == _OLD_API:
                raise
            self.version = _OLD_API
            return await self.call(method, limit_s=limit_s, **fields)

    async def connect(self, *, limit_s: float) -> int:
        """Return the pid of the task's init, 0 if there is none. This also settles the version of the API."""
        response = await self.call_either("Connect", limit_s=limit_s)
        self.pid = response.task_pid
        return self.pid

    async def shut_down(self, *, limit_s: float) -> bool:
        """Ask the shim to end, which it does unless it has other tasks. Return whether it agreed or is gone."""
        try:
            await self.call("Shutdown", limit_s=limit_s)
        except Unavailable:
            return self.is_closed
        except ContainerdError:
            return False
        return True

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        await self._dialled.wait()
        if self._client is not None:
            await self._client.wait_closed()

    async def aclose(self) -> None:
        """Close the connection; the shim lives on."""
        self._let_go = True
        if self._client is not None:
            await self._client.aclose()

    def end(self, exit: Exit) -> None:  # noqa: A002 - the field's own term
        """Record the exit of the init, and let everyone know who waits for it."""
        self.exit = self.exit or exit
        self.ended.set()

    async def recorded_exit(self) -> Exit:
        """Return the exit of a task whose shim is lost, once the clean-up knows it."""
        await self.ended.wait()
        return self.exit or lost_exit()


class NobodyListensError(Unavailable):
    """Raised when nobody listens at the address of a shim, so it has ended."""


def lost_exit() -> Exit:
    """Return the exit of a process about which nothing is known any more: status 255, now."""
    return Exit(status=UNKNOWN_EXIT_STATUS, exited_at_ns=now_ns())


async def open_client(task_id: str, endpoint: Endpoint, *, timeout_s: float) -> TtrpcClient:
    """Connect to a shim.

    Raises Unimplemented for an unknown protocol or address, NobodyListensError if the shim is gone, Unavailable or
    LocalDeadline for any other failure, which says nothing about the shim.
    """
    if endpoint.protocol != TTRPC:
        raise Unimplemented(f'unexpected protocol: "{endpoint.protocol}" of the shim of task "{task_id}"')
    if not endpoint.address.startswith(UNIX):
        raise Unimplemented(f'the shim of task "{task_id}" listens on "{endpoint.address}", only unix:// is known')
    try:
        return await TtrpcClient.connect(endpoint.address, timeout_s=min(timeout_s, FOREVER_S))
    except OSError as error:
        path = endpoint.address.removeprefix("unix://")
        kind = NobodyListensError if isinstance(error, ConnectionRefusedError | FileNotFoundError) else Unavailable
        raise kind(f"dial unix {path}: connect: {os_text(error)}") from error
