"""Operations that run to their end, whatever becomes of their callers.

An OCI runtime that is killed in the middle leaves cgroups and processes of which nobody knows. So what it does to a
container goes on when the caller has gone, and the state here stays true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Operations:
    """The operations under way in a shim, and the ids for which a container may come into being."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[object]] = set()
        self._creating: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Operations under way={len(self._under_way)} creating={sorted(self._creating)}>"

    def __bool__(self) -> bool:
        return bool(self._under_way)

    async def to_the_end(self, operation: Coroutine[object, object, T]) -> T:
        """Await an operation, which goes on when the caller is cancelled."""
        return await asyncio.shield(self._begin(operation))

    def is_creating(self, container_id: str) -> bool:
        """Return whether it is still open if there is a container of this id."""
        return container_id in self._creating

    def creates(self, container_id: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Begin work that decides whether there is a container of this id."""
        task = self._creating[container_id] = self._begin(work)
        task.add_done_callback(partial(self._forget_creation, container_id))
        return task

    async def created(self, container_id: str) -> None:
        """Wait until it is decided whether there is a container of this id."""
        while (creation := self._creating.get(container_id)) is not None:
            await asyncio.wait({creation})

    async def all_created(self) -> None:
        """Wait until that is decided for every id."""
        while self._creating:
            await asyncio.wait(self._creating.values())

    async def settled(self, timeout_s: float) -> None:
        """Wait for the end of everything under way, at most `timeout_s`."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout_s)

    def _begin(self, operation: Coroutine[object, object, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(operation)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    def _forget_creation(self, container_id: str, task: asyncio.Task[None]) -> None:
        if self._creating.get(container_id) is task:
            del self._creating[container_id]
