"""Servers (kind `io.containerd.server.v1`): the sockets that others reach the daemon by.

Vocabulary. A server *binds* an address, *starts* to accept on it, and *stops*.

Life cycle. Its registration requires `kinds.ALL`, so that its init runs after every other plugin; there it binds, so
that an address in use fails the plugin, and accepts nothing. When all plugins are loaded the daemon starts every
server, then it is ready. At the end `stop` comes before any other plugin stops: it ends accepting at once, lets
running calls end for `grace_s` seconds, closes what is left and removes its socket file.

What must fail and how. A socket that cannot be bound raises in init. When the main gRPC server fails the daemon does
not start; any other server that fails is a failed plugin. `stop` may be called again, and on a server that never
started.
"""

from __future__ import annotations

from typing import Protocol

from aiocontainerd.interfaces.rules import unguarded


@unguarded("no plugin calls it: the daemon does, when it starts and when it ends")
class Server(Protocol):
    """A socket that is served."""

    @property
    def address(self) -> str:
        """Socket path, or host:port."""
        ...

    async def start(self) -> None:
        """Begin to accept."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Stop accepting, let calls end for `grace_s`, close, remove the socket. May be called again."""
        ...
