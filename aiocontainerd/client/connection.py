"""Calls to one daemon: each with a namespace, a lease and a deadline."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Self, TypeVar, cast

from aiocontainerd import context

if TYPE_CHECKING:
    import betterproto2

    from aiocontainerd.rpc.grpc_client import GrpcCall, GrpcClient

MessageT = TypeVar("MessageT")

TIMEOUT_S = 60.0
"""Deadline of a call that names none of its own."""


class Connection:
    """A transport with one namespace and one lease, for the typed clients. `under` gives others on it."""

    def __init__(self, transport: GrpcClient, *, namespace: str, lease: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self._transport = transport
        self.namespace = namespace
        self.lease = lease
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<Connection {self.address} namespace={self.namespace} lease={self.lease or '-'}>"

    @property
    def address(self) -> str:
        """The daemon's socket."""
        return self._transport.address

    def under(self, *, lease: str | None = None, namespace: str | None = None) -> Connection:
        """Return a connection with another lease or namespace on the same transport."""
        return Connection(
            self._transport,
            namespace=self.namespace if namespace is None else namespace,
            lease=self.lease if lease is None else lease,
            timeout_s=self.timeout_s,
        )

    async def call(
        self,
        service: str,
        method: str,
        request: betterproto2.Message,
        answer: type[MessageT],  # noqa: ARG002 - names the type for the caller's checker; the transport decodes by method
        *,
        timeout_s: float | None = None,
        unlimited: bool = False,
    ) -> MessageT:
        """Make a unary call. `unlimited` is for waiting for an exit. Raises the error that the daemon answered."""
        limit = None if unlimited else timeout_s or self.timeout_s
        message = await self._transport.unary(
            service, method, request, namespace=self.namespace, lease=self.lease, timeout_s=limit
        )
        return cast("MessageT", message)

    async def messages(
        self,
        service: str,
        method: str,
        request: betterproto2.Message,
        answer: type[MessageT],  # noqa: ARG002 - as in `call`
        *,
        unlimited: bool = False,
    ) -> AsyncGenerator[MessageT, None]:
        """Yield the messages of a server stream. One deadline counts for all of them."""
        limit = None if unlimited else self.timeout_s
        stream = self._transport.server_stream(
            service, method, request, namespace=self.namespace, lease=self.lease, timeout_s=limit
        )
        async with aclosing(cast("AsyncGenerator[betterproto2.Message, None]", stream)) as received:
            async for message in received:
                yield cast("MessageT", message)

    def stream(self, service: str, method: str) -> AbstractAsyncContextManager[GrpcCall]:
        """Open a call of both directions. Its user sets a limit for every step, as the whole grows with the data."""
        return self._transport.stream(service, method, namespace=self.namespace, lease=self.lease)


class CallerConnection(Connection):
    """A connection that follows `aiocontainerd.context`: calls take namespace and lease of the current call.

    A call without a namespace is made in the connection's own.
    """

    @classmethod
    def of(cls, connection: Connection) -> Self:
        """Return a connection on the transport of another."""
        return cls(connection._transport, namespace=connection.namespace, timeout_s=connection.timeout_s)

    def _of_caller(self) -> Connection:
        called = context.current()
        return self.under(namespace=called.namespace or self.namespace, lease=called.lease)

    async def call(
        self,
        service: str,
        method: str,
        request: betterproto2.Message,
        answer: type[MessageT],
        *,
        timeout_s: float | None = None,
        unlimited: bool = False,
    ) -> MessageT:
        """Make a unary call, as `Connection.call`."""
        connection = self._of_caller()
        return await connection.call(service, method, request, answer, timeout_s=timeout_s, unlimited=unlimited)

    def messages(
        self,
        service: str,
        method: str,
        request: betterproto2.Message,
        answer: type[MessageT],
        *,
        unlimited: bool = False,
    ) -> AsyncGenerator[MessageT, None]:
        """Yield messages, as `Connection.messages`."""
        return self._of_caller().messages(service, method, request, answer, unlimited=unlimited)

    def stream(self, service: str, method: str) -> AbstractAsyncContextManager[GrpcCall]:
        """Open a call, as `Connection.stream`."""
        return self._of_caller().stream(service, method)
