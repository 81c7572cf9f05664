"""Services of the gRPC and ttrpc front ends (kinds `io.containerd.grpc.v1` and `io.containerd.ttrpc.v1`).

An instance serves one service of the API, named by `service_name` (a key of `aiocontainerd.api.services.SERVICES`).
A method of the service is the Python method of the same name in snake case, taking and giving generated messages:

    unary             async def get(self, request: GetRequest) -> GetResponse
    server streams    def list(self, request: ListRequest) -> AsyncIterator[ListResponse]     (an async generator)
    client streams    async def put(self, requests: AsyncIterator[PutRequest]) -> PutResponse
    both stream       def write(self, requests: AsyncIterator[WriteRequest]) -> AsyncIterator[WriteResponse]

A method that is missing answers UNIMPLEMENTED. A request's namespace and lease are in `aiocontainerd.context`.
An error is raised as one of `aiocontainerd.errors`; any other exception is UNKNOWN with its text and is logged.
A call's task is cancelled when its client goes away or its deadline passes: whatever a method took, it gives back
in `finally`.
"""

from __future__ import annotations

from typing import ClassVar, Protocol


class Service(Protocol):
    """One service of the API."""

    service_name: ClassVar[str]
