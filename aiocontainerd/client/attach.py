"""Attaching this program to a process: its streams, its terminal, its signals, and its end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from aiocontainerd.client import terminal
from aiocontainerd.client.stdio import Copier, Streams, fifos
from aiocontainerd.errors import AlreadyExists, ContainerdError
from aiocontainerd.groups import unwrapped
from aiocontainerd.interfaces.runtime import IO, Exit

if TYPE_CHECKING:
    from aiocontainerd.client.tasks import Tasks

GIVE_UP_SIGNALS = 3
"""After that many SIGINT or SIGTERM in all, the process is killed."""
DRAIN_S = 5.0
"""Wait for output once the process is deleted; another process may hold its streams for ever."""
CLEANUP_S = 40.0


class Attachment:
    """A process that this program is attached to. `exec_id` "" is the init of the container."""

    def __init__(self, tasks: Tasks, container_id: str, exec_id: str = "", *, streams: Streams | None = None) -> None:
        self._tasks = tasks
        self._container_id = container_id
        self._exec_id = exec_id
        self._streams = streams or Streams()
        self._interrupts = 0

    def __repr__(self) -> str:
        return f"<Attachment {self._container_id} {self._exec_id or 'init'}>"

    async def run(self, create: Callable[[IO], Awaitable[object]], *, tty: bool, stdin: bool = True) -> Exit:
        """Create a process by `create`, start it, stay attached until it ends, and delete it.

        A failure or a cancellation kills and deletes the process (facts/runtime 4.5). Its fifos are always removed.
        """
        with fifos(self._exec_id or self._container_id, terminal=tty, stdin=stdin) as io:
            copier = Copier(io, self._streams)
            try:
                copier.open()
                await create(io)
                return await self._stay_attached(copier, io, start=True, delete=True)
            except AlreadyExists:
                raise  # the process of that id is somebody else's
            except BaseException:
                await self._discard(copier)
                raise
            finally:
                copier.close()

    async def join(self, io: IO) -> Exit:
        """Stay attached to a running process until it ends, without deleting it."""
        copier = Copier(io, self._streams)
        try:
            copier.open()
            return await self._stay_attached(copier, io, start=False, delete=False)
        finally:
            copier.close()

    async def _stay_attached(self, copier: Copier, io: IO, *, start: bool, delete: bool) -> Exit:
        drained = anyio.Event()
        with terminal.raw(self._streams.stdin if io.terminal else -1), unwrapped():
            async with anyio.create_task_group() as group:
                group.start_soon(_outputs, copier, drained)
                group.start_soon(self._forward_signals, io.terminal)
                if start:
                    await self._tasks.start(self._container_id, self._exec_id)
                if io.terminal:
                    await self._resize()
                group.start_soon(self._input, copier, io)
                ended = await self._tasks.wait(self._container_id, self._exec_id)
                if delete:
                    with anyio.CancelScope(shield=True):  # containerd 1.6 leaves the shim of a deletion that is cut off
                        ended = await self._tasks.delete(self._container_id, self._exec_id)
                with anyio.move_on_after(DRAIN_S):
                    await drained.wait()
                group.cancel_scope.cancel()
        return ended

    async def _input(self, copier: Copier, io: IO) -> None:
        await copier.input()
        if io.stdin:
            await self._ignoring_errors(self._tasks.close_stdin(self._container_id, self._exec_id))

    async def _forward_signals(self, tty: bool) -> None:
        with terminal.received(terminal.FORWARDED) as signals:
            while True:
                number = await signals.get()
                if number != signal.SIGWINCH:
                    await self._forward(number)
                elif tty:
                    await self._resize()

    async def _forward(self, number: signal.Signals) -> None:
        self._interrupts += number in (signal.SIGINT, signal.SIGTERM)
        sent = signal.SIGKILL if self._interrupts >= GIVE_UP_SIGNALS else number
        await self._ignoring_errors(self._tasks.kill(self._container_id, sent, self._exec_id))

    async def _resize(self) -> None:
        size = terminal.size(self._streams.stdin)
        if size is not None:
            await self._ignoring_errors(self._tasks.resize_pty(self._container_id, *size, self._exec_id))

    async def _ignoring_errors(self, call: Awaitable[object]) -> None:
        """Await a call and ignore its error, as the process may have ended meanwhile."""
        try:
            await call
        except ContainerdError:
            pass

    async def _discard(self, copier: Copier) -> None:
        """Kill and delete the process. Raises nothing, as the failure that led here is what counts."""
        with anyio.move_on_after(CLEANUP_S, shield=True):
            async with anyio.create_task_group() as group:
                group.start_soon(copier.drop_outputs)
                try:
                    await self._tasks.delete(self._container_id, self._exec_id, force=True)
                except (ContainerdError, TimeoutError):
                    pass
                group.cancel_scope.cancel()


async def _outputs(copier: Copier, drained: anyio.Event) -> None:
    await copier.outputs()
    drained.set()
