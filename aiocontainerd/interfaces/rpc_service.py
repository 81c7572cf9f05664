"""Services of the gRPC and ttrpc front ends (kinds `io.containerd.grpc.v1` and `io.containerd.ttrpc.v1`).

An instance serves one service, named by `service_name`: one of containerd's API (a key of
`aiocontainerd.api.services.SERVICES`), or one of an API that the plugin brings, which then lists its `methods`:

    class Hello:
        service_name = "acme.hello.v1.Hello"
        methods = {"SayHello": Method(HelloRequest, HelloResponse)}

A method of the service is the Python method of the same name in snake case, taking and giving generated messages
(classes of betterproto2; `SayHello` is `say_hello`):

    unary             async def get(self, request: GetRequest) -> GetResponse
    server streams    def list(self, request: ListRequest) -> AsyncIterator[ListResponse]     (an async generator)
    client streams    async def put(self, requests: AsyncIterator[PutRequest]) -> PutResponse
    both stream       def write(self, requests: AsyncIterator[WriteRequest]) -> AsyncIterator[WriteResponse]

A method that is missing answers UNIMPLEMENTED. A request's namespace and lease are in `aiocontainerd.context`.
An error is raised as one of `aiocontainerd.errors`; any other exception is UNKNOWN with its text and is logged.
A call's task is cancelled when its client goes away or its deadline passes: whatever a method took, it gives back
in `finally`.

What must fail and how. A service without a name or with an unknown name and no `methods`, and one that is served
already by another plugin, is not served: that is an error in the log and in the plugin's row, and the others are
served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

from aiocontainerd.interfaces.rules import unguarded

if TYPE_CHECKING:
    import betterproto2


class Method(msgspec.Struct, frozen=True):
    """One method of a service that a plugin brings: its message classes, and which side may send several messages."""

    request: type[betterproto2.Message]
    response: type[betterproto2.Message]
    client_streams: bool = False
    server_streams: bool = False


@unguarded("no plugin calls it: the front end does, under its client's deadline, and counts its calls")
class Service(Protocol):
    """One service. `methods: ClassVar[Mapping[str, Method]]` comes with a service that is not containerd's.

    `open_ended: ClassVar[Collection[str]]` names unary methods that wait for something outside the daemon. A daemon
    that stops ends their calls at once, and all streams; other calls have a while to end by themselves.
    """

    service_name: ClassVar[str]
