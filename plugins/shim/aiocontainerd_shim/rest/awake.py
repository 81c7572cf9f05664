"""A shim that never rests: one process serves until the shim ends.

The shim that was executed lives like this. Resting pays only where all code was loaded before the fork.
"""

from __future__ import annotations

import os
import socket

from aiocontainerd_shim.rest.interface import Parts


class AlwaysAwake:
    """Serves a listening socket; implements `Rest`."""

    def __init__(self, listener: socket.socket) -> None:
        self.shim_pid = os.getpid()
        self._listener = listener

    def __repr__(self) -> str:
        return f"<AlwaysAwake {self.shim_pid}>"

    async def begin(self, parts: Parts) -> None:
        """Accept connections."""
        await parts.server.start(self._listener)

    async def hand_over_when_idle(self) -> None:
        """Return at once: this shim never hands over."""

    def refuse_connections(self) -> None:
        """Do nothing: the server closes the listener with itself."""
