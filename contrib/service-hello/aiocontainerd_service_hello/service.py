"""The service of `proto/example/hello/v1/hello.proto`: a method is the Python method of its name in snake case."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import ClassVar

import anyio

from aiocontainerd.plugin import Method, call, errors
from aiocontainerd_service_hello.gen.example.hello import v1 as api

MOST_GREETINGS = 1000


class Hello:
    """Greets in the namespace of the call; a call without one fails, as those of containerd's services do."""

    service_name: ClassVar[str] = "example.hello.v1.Hello"
    methods: ClassVar[Mapping[str, Method]] = MappingProxyType(
        {
            "SayHello": Method(api.SayHelloRequest, api.SayHelloResponse),
            "WatchHello": Method(api.WatchHelloRequest, api.SayHelloResponse, server_streams=True),
        }
    )

    def __init__(self, greeting: str) -> None:
        self._greeting = greeting

    async def say_hello(self, request: api.SayHelloRequest) -> api.SayHelloResponse:
        """Greet once. Raise InvalidArgument where there is no name."""
        if not request.name:
            raise errors.InvalidArgument("name must not be empty")
        return api.SayHelloResponse(message=f"{self._greeting}, {request.name}!", namespace=call.namespace())

    async def watch_hello(self, request: api.WatchHelloRequest) -> AsyncIterator[api.SayHelloResponse]:
        """Greet `count` times. It ends by itself where the caller goes away, like every call."""
        if request.count > MOST_GREETINGS:
            raise errors.InvalidArgument(f"count is {request.count}, it must be at most {MOST_GREETINGS}")
        for number in range(request.count):
            if number:
                await anyio.sleep(request.interval_ms / 1000)
            yield await self.say_hello(api.SayHelloRequest(name=request.name))
