"""Waits for exits with one call to the shim per process, however many clients wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from aiocontainerd.errors import ContainerdError, Unavailable
from aiocontainerd.interfaces.runtime import Exit


class Spawn(Protocol):
    """Starts a task that lives no longer than its plugin."""

    def __call__(self, function: Callable[..., Awaitable[object]], *args: object, name: str = "") -> None: ...


class _Wait:
    def __init__(self) -> None:
        self.done = anyio.Event()
        self.exit: Exit | None = None
        self.error: ContainerdError = Unavailable("the daemon is stopping")


class Waits:
    """Waits for the processes of one task, keyed by exec id ("" for the init).

    The protocol cannot cancel a wait in the shim. So there is one wait per process, and it goes on when its callers
    give up. A known exit is kept until `forget`.
    """

    def __init__(self, fetch: Callable[[str], Awaitable[Exit]], spawn: Spawn) -> None:
        self._fetch = fetch
        self._spawn = spawn
        self._waits: dict[str, _Wait] = {}

    def __repr__(self) -> str:
        return f"<Waits for {len(self._waits)} processes>"

    async def wait(self, exec_id: str) -> Exit:
        """Return the exit of a process. Raises what the shim answers."""
        wait = self._waits.get(exec_id)
        if wait is None:
            wait = self._waits[exec_id] = _Wait()
            self._spawn(self._run, exec_id, wait, name=f"wait {exec_id}")
        await wait.done.wait()
        if wait.exit is None:
            raise type(wait.error)(*wait.error.args) from wait.error
        return wait.exit

    def forget(self, exec_id: str) -> None:
        """Drop what is known of a process, whose id may be used again."""
        self._waits.pop(exec_id, None)

    async def _run(self, exec_id: str, wait: _Wait) -> None:
        try:
            wait.exit = await self._fetch(exec_id)
        except ContainerdError as error:
            wait.error = error
        finally:
            wait.done.set()
            if wait.exit is None and self._waits.get(exec_id) is wait:
                self.forget(exec_id)
