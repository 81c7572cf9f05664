"""Call a proxy plugin: in the namespace and lease of the caller, with a deadline, with errors that name the plugin."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio

from aiocontainerd import context, durations
from aiocontainerd.client.connection import Connection
from aiocontainerd.config.timeouts import PLUGIN_LONG, PLUGIN_QUICK, PLUGIN_WORK
from aiocontainerd.errors import DeadlineExceeded, LocalDeadline, Unavailable
from aiocontainerd.rpc.grpc_client import Unreachable
from aiocontainerd_proxy.limits import Limits
from aiocontainerd_proxy.link import Link
from aiocontainerd_proxy.peer import Peer, namespaces

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.rpc.grpc_client import GrpcCall

MessageT = TypeVar("MessageT")

_WORK = (
    "Abort", "Cleanup", "Commit", "Delete", "ListStatuses", "Prepare", "Remove", "Update", "Usage", "View", "Write",
)  # fmt: skip
_CLASSES = {**dict.fromkeys(_WORK, PLUGIN_WORK), **dict.fromkeys(("Apply", "Diff", "List", "Read"), PLUGIN_LONG)}
"""Deadline classes of gRPC methods by name; the others are quick."""
MARGIN_S = 0.5
"""How much later than the daemon's guard this connection gives up: the guard counts the calls that took too long."""


class ProxyConnection(Connection):
    """The connection that the typed clients of one proxy plugin share. `namespace` replaces that of the caller."""

    def __init__(self, link: Link, limits: Limits, *, namespace: str = "") -> None:
        super().__init__(link.transport, namespace=namespace, timeout_s=limits(PLUGIN_WORK))
        self.link = link
        self._limits = limits

    @property
    def _margin_s(self) -> float:
        return self.link.slack_s + MARGIN_S

    def within(self, namespace: str) -> ProxyConnection:
        """Return a connection to the same plugin that calls in another namespace than the caller's."""
        return ProxyConnection(self.link, self._limits, namespace=namespace)

    async def peer(self) -> Peer:
        """Return what is on the other side. Raise Unavailable if there is no usable connection."""
        async with self._named("Connect"):
            await self._ready(self._limits(PLUGIN_QUICK))
        return self.link.peer

    async def namespaces(self, *, everywhere: bool = False) -> list[str]:
        """Return the caller's namespace; with `everywhere`, or for a call without one, every namespace of the peer."""
        called = context.current().namespace
        if called and not everywhere:
            return [called]
        peer = await self.peer()
        if not peer.namespaced:
            return [called]
        limit_s = self._limits(PLUGIN_QUICK)
        return await namespaces(self.link.transport, timeout_s=None if math.isinf(limit_s) else limit_s) or []

    async def call(
        self,
        service: str,
        method: str,
        request: betterproto2.Message,
        answer: type[MessageT],
        *,
        timeout_s: float | None = None,  # noqa: ARG002 - the deadline is that of the method
        unlimited: bool = False,  # noqa: ARG002 - as above
    ) -> MessageT:
        """Make a unary call. Raise what the plugin answered, or Unavailable or DeadlineExceeded naming it."""
        async with self._named(method) as limit_s:
            ready = await self._ready(limit_s)
            return await ready.call(
                service, method, request, answer, timeout_s=limit_s + self._margin_s, unlimited=math.isinf(limit_s)
            )

    async def messages(
        self,
        service: str,
        method: str,
        request: betterproto2.Message,
        answer: type[MessageT],
        *,
        unlimited: bool = False,  # noqa: ARG002 - as in `call`
    ) -> AsyncGenerator[MessageT, None]:
        """Yield the messages of a server stream. The deadline is for all of them together."""
        async with self._named(method) as limit_s:
            ready = await self._ready(limit_s)
            ready.timeout_s = limit_s + self._margin_s
            received = ready.messages(service, method, request, answer, unlimited=math.isinf(limit_s))
            async with aclosing(received):
                async for message in received:
                    yield message

    def stream(self, service: str, method: str) -> AbstractAsyncContextManager[GrpcCall]:
        """Open a call with streams both ways. Its user sets a limit for every step."""
        return self._stream(service, method)

    @asynccontextmanager
    async def _stream(self, service: str, method: str) -> AsyncIterator[GrpcCall]:
        async with self._named(method) as limit_s:
            ready = await self._ready(limit_s)
            async with ready.stream(service, method) as call:
                yield call

    async def _ready(self, limit_s: float) -> Connection:
        """Return the plain connection to make a call on."""
        with anyio.move_on_after(limit_s + self._margin_s) as waiting:
            transport = await self.link.ready()
        if waiting.cancelled_caught:
            raise self.link.not_ready()
        called = context.current()
        namespace = self.namespace or called.namespace
        lease = "" if self.link.peer.namespaced else called.lease
        return Connection(transport, namespace=namespace, lease=lease)

    @asynccontextmanager
    async def _named(self, method: str) -> AsyncIterator[float]:
        """Give the deadline of a method in seconds, and name the plugin in what fails in the block."""
        timeout = _CLASSES.get(method, PLUGIN_QUICK)
        limit_s = self._limits(timeout)
        began = anyio.current_time()
        try:
            yield limit_s
        except Unreachable as error:
            ending = await self.link.fate()
            if ending:
                raise Unavailable(f"plugin {self.link.uri}: {method} failed, its process {ending}") from error
            raise Unavailable(f"plugin {self.link.uri} at {self.address}: {error.message}") from error
        except DeadlineExceeded as error:
            in_time = anyio.current_time() - began < limit_s
            if not isinstance(error, LocalDeadline) and (in_time or error.message.startswith("plugin ")):
                raise  # it is a limit of the plugin's own, or the guard there tells more
            raise DeadlineExceeded(
                f"plugin {self.link.uri}: {method} took longer than {durations.render(limit_s)} ({timeout.key})"
            ) from error
