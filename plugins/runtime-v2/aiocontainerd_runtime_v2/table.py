"""The table of tasks: which tasks exist, and which ids are taken although there is no task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import anyio

from aiocontainerd.errors import AlreadyExists, NotFound
from aiocontainerd_runtime_v2.task import ShimTask

Key = tuple[str, str]
"""Namespace and id."""


def key_of(task: ShimTask) -> Key:
    """Return the key of a task in the table."""
    return task.namespace, task.id


class Table:
    """Tasks by namespace and id. No method waits in the middle of a change, so every change is whole."""

    def __init__(self) -> None:
        self._tasks: dict[Key, ShimTask] = {}
        self._creating: set[Key] = set()
        self._loading: dict[Key, anyio.Event] = {}
        self._removing: dict[Key, anyio.Event] = {}

    def __repr__(self) -> str:
        return f"<Table {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many ids are in each state."""
        return {
            "tasks": len(self._tasks),
            "creating": len(self._creating),
            "loading": len(self._loading),
            "removing": len(self._removing),
        }

    @property
    def tasks(self) -> list[ShimTask]:
        """The tasks that are known now."""
        return list(self._tasks.values())

    async def get(self, key: Key) -> ShimTask:
        """Return the task, once its bundle has been looked at. Raises NotFound."""
        await self._loaded(key)
        task = self._tasks.get(key)
        if task is None:
            raise NotFound(f"task {key[1]} not found", complete=True)
        return task

    async def select(self, namespace: str | None) -> list[ShimTask]:
        """Return the tasks of one namespace or of all, sorted, once their bundles have been looked at."""
        for key in [key for key in self._loading if namespace in (None, key[0])]:
            await self._loaded(key)
        return [self._tasks[key] for key in sorted(self._tasks) if namespace in (None, key[0])]

    async def reserve(self, key: Key) -> None:
        """Take a free id for a create, until `release`. Raises AlreadyExists."""
        while (busy := self._loading.get(key) or self._removing.get(key)) is not None:
            await busy.wait()
        if key in self._tasks or key in self._creating:
            raise AlreadyExists(f"task {key[1]}")
        self._creating.add(key)

    def release(self, key: Key) -> None:
        """End a reservation."""
        self._creating.discard(key)

    def add(self, task: ShimTask) -> None:
        """Make a task known."""
        self._tasks[key_of(task)] = task

    def holds(self, task: ShimTask) -> bool:
        """Return whether this very task is known."""
        return self._tasks.get(key_of(task)) is task

    @contextmanager
    def loading(self, keys: Iterable[Key]) -> Iterator[None]:
        """Mark ids whose bundles are still being looked at: each until `loaded`, all until the block ends."""
        mine = {key: anyio.Event() for key in keys}
        self._loading.update(mine)
        try:
            yield
        finally:
            for key in mine:
                self.loaded(key)

    def loaded(self, key: Key) -> None:
        """Mark the bundle of an id as looked at."""
        event = self._loading.pop(key, None)
        if event is not None:
            event.set()

    def begin_removal(self, task: ShimTask) -> bool:
        """Forget a task, and keep its id until `end_removal`. Return False if somebody else has done so."""
        if not self.holds(task):
            return False
        key = key_of(task)
        del self._tasks[key]
        self._removing[key] = anyio.Event()
        return True

    def end_removal(self, task: ShimTask) -> None:
        """Free the id of a task whose bundle is gone."""
        event = self._removing.pop(key_of(task), None)
        if event is not None:
            event.set()

    @contextmanager
    def removing(self, key: Key) -> Iterator[bool]:
        """Keep a free id from being taken until the block ends. Yield False, and keep nothing, if it is not free."""
        if key in self._tasks or key in self._creating or key in self._loading or key in self._removing:
            yield False
            return
        event = self._removing[key] = anyio.Event()
        try:
            yield True
        finally:
            del self._removing[key]
            event.set()

    async def removed(self) -> None:
        """Wait for the end of every removal that has begun."""
        for event in [*self._removing.values()]:
            await event.wait()

    async def _loaded(self, key: Key) -> None:
        event = self._loading.get(key)
        if event is not None:
            await event.wait()
