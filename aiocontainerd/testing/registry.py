"""A registry on a loopback port whose answers a test writes, honest or hostile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ScriptedRegistry:
    """A registry that answers by `handler` and keeps what it was asked. `url` is its `host:port`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[web.Request] = []
        self.url = ""

    def __repr__(self) -> str:
        return f"<ScriptedRegistry {self.url} {len(self.requests)} requests>"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Keep the request and answer it."""
        self.requests.append(request)
        return await self.handler(request)

    @property
    def asked(self) -> list[str]:
        """`METHOD /path` of every request."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def header(self, name: str) -> list[str | None]:
        """Return the value of a header in every request, None where a request had none."""
        return [request.headers.get(name) for request in self.requests]


@asynccontextmanager
async def scripted_registry(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedRegistry]:
    """Serve `handler` for the length of a block, over plain http unless there is a TLS context."""
    script = ScriptedRegistry(handler)
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", script.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    script.url = f"{host}:{port}"
    try:
        yield script
    finally:
        await runner.cleanup()
