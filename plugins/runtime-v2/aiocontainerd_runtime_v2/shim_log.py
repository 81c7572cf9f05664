"""Copies what shims write to the `log` fifo of their bundles into the daemon's own log."""

from __future__ import annotations

import logging
import os

import anyio

from aiocontainerd_runtime_v2.bundle import Bundle

log = logging.getLogger("aiocontainerd.shim")

_CHUNK = 65_536
_LONGEST_LINE = 1 << 20


def split(data: bytes) -> tuple[list[str], bytes]:
    """Return the complete lines of `data`, and the rest. A line longer than 1 MiB is cut."""
    *lines, rest = data.split(b"\n")
    if len(rest) > _LONGEST_LINE:
        lines, rest = [*lines, rest], b""
    return [line.decode(errors="replace").rstrip() for line in lines if line.strip()], rest


class ShimLog:
    """The reading end of one bundle's fifo. It is opened before the shim is started, so the shim never waits for it."""

    def __init__(self, bundle: Bundle) -> None:
        self._name = f"{bundle.namespace}/{bundle.id}"
        self._scope = anyio.CancelScope()
        self._descriptor = _open(bundle)

    def __repr__(self) -> str:
        return f"<ShimLog {self._name} {'absent' if self._descriptor is None else 'open'}>"

    def stop(self) -> None:
        """End `run`, which closes the fifo."""
        self._scope.cancel()

    async def run(self) -> None:
        """Log every line under the task's name until stopped."""
        if self._descriptor is None:
            return
        with self._scope:
            try:
                await self._drain(self._descriptor)
            finally:
                anyio.notify_closing(self._descriptor)
                os.close(self._descriptor)

    async def _drain(self, descriptor: int) -> None:
        rest = b""
        while True:
            await anyio.wait_readable(descriptor)
            lines, rest = split(rest + _read(descriptor))
            for line in lines:
                log.info("%s: %s", self._name, line)


def _open(bundle: Bundle) -> int | None:
    try:
        return os.open(bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return b""
