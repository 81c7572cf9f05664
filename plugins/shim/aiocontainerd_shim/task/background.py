"""Work of the shim beside the calls: handling exits, accepting connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger(__name__)


class Background:
    """Tasks that live at most as long as the shim. It is true while any of them runs."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Background running={len(self._running)}>"

    def __bool__(self) -> bool:
        return bool(self._running)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Start a task. Its failure is logged and ends nothing else."""
        task = self._tasks.create_task(_guarded(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _guarded(work: Coroutine[object, object, None]) -> None:
    try:
        await work
    except Exception:  # the edge of a task: one container's failure must not end the others
        log.exception("a task of the shim failed")
