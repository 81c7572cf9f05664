"""Calls to a proxy plugin: in the namespace and lease of the caller, each with a deadline, with errors that name it."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio

from aiocontainerd import context, durations
from aiocontainerd.client.connection import Connection
from aiocontainerd.errors import DeadlineExceeded, Unavailable
from aiocontainerd.rpc.grpc_client import Unreachable
from aiocontainerd_proxy.link import Link
from aiocontainerd_proxy.peer import Peer, namespaces

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.rpc.grpc_client import GrpcCall

MessageT = TypeVar("MessageT")

QUICK = "io.containerd.timeout.plugin.quick"
WORK = "io.containerd.timeout.plugin.work"
LONG = "io.containerd.timeout.plugin.long"
_CLASSES = {
    **dict.fromkeys(
        (
            "Prepare",
            "View",
            "Commit",
            "Remove",
            "Cleanup",
            "Usage",
            "Update",
            "Delete",
            "Write",
            "ListStatuses",
            "Abort",
        ),
        WORK,
    ),
    **dict.fromkeys(("Apply", "Diff", "List", "Read"), LONG),
}
"""Deadline classes of methods by name; the others are quick."""
MARGIN_S = 0.5
"""The daemon's dispatcher has the same deadlines and counts who misses them: the connection's come after its."""


class ProxyConnection(Connection):
    """What the typed clients of one proxy plugin share. A namespace of its own stands before that of the caller.

    `limit_s` gives the seconds of a class of `[timeouts]`; 0 is no deadline.
    """

    def __init__(self, link: Link, limit_s: Callable[[str], float], *, namespace: str = "") -> None:
        super().__init__(link.transport, namespace=namespace, timeout_s=limit_s(WORK) or math.inf)
        self.link = link
        self._limit_s = limit_s

    def within(self, namespace: str) -> ProxyConnection:
        """The same plugin in a namespace that the caller is not in."""
        return ProxyConnection(self.link, self._limit_s, namespace=namespace)

    async def peer(self) -> Peer:
        """What is on the other side. Raises Unavailable where nobody is."""
        with self._named("Connect"):
            await self._ready(self._limit_s(QUICK) or math.inf)
        return self.link.peer

    async def namespaces(self, *, everywhere: bool = False) -> list[str]:
        """The caller's namespace; `everywhere`, or for a call without one, every namespace that the peer knows."""
        called = context.current().namespace
        if called and not everywhere:
            return [called]
        peer = await self.peer()
        if not peer.namespaced:
            return [called]
        return await namespaces(self.link.transport, timeout_s=self._limit_s(QUICK) or None) or []

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
        """A unary call. Raises what the plugin answered, Unavailable and DeadlineExceeded naming it."""
        with self._named(method) as limit_s:
            ready = await self._ready(limit_s)
            return await ready.call(
                service, method, request, answer, timeout_s=limit_s + MARGIN_S, unlimited=math.isinf(limit_s)
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
        """The messages of a server stream; the deadline is for all of them."""
        with self._named(method) as limit_s:
            ready = await self._ready(limit_s)
            ready.timeout_s = limit_s + MARGIN_S
            received = ready.messages(service, method, request, answer, unlimited=math.isinf(limit_s))
            async with aclosing(received):
                async for message in received:
                    yield message

    def stream(self, service: str, method: str) -> AbstractAsyncContextManager[GrpcCall]:
        """A call of both directions. Its user bounds every step."""
        return self._stream(service, method)

    @asynccontextmanager
    async def _stream(self, service: str, method: str) -> AsyncIterator[GrpcCall]:
        with self._named(method) as limit_s:
            ready = await self._ready(limit_s)
            async with ready.stream(service, method) as call:
                yield call

    async def _ready(self, limit_s: float) -> Connection:
        """The plain connection that this call is made on."""
        with anyio.move_on_after(limit_s + MARGIN_S) as waiting:
            transport = await self.link.ready()
        if waiting.cancelled_caught:
            raise self.link.not_ready()
        called = context.current()
        namespace = self.namespace or called.namespace
        lease = "" if self.link.peer.namespaced else called.lease
        return Connection(transport, namespace=namespace, lease=lease)

    @contextmanager
    def _named(self, method: str) -> Iterator[float]:
        key = _CLASSES.get(method, QUICK)
        limit_s = self._limit_s(key) or math.inf
        began = anyio.current_time()
        try:
            yield limit_s
        except Unreachable as error:
            raise Unavailable(f"plugin {self.link.uri} at {self.address}: {error.message}") from error
        except DeadlineExceeded as error:
            if anyio.current_time() - began < limit_s:
                raise
            raise DeadlineExceeded(
                f"plugin {self.link.uri}: {method} took longer than {durations.render(limit_s)} ({key})"
            ) from error
