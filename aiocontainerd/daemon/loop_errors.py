"""Log errors that nobody waits for, such as that of a task which was left alone, with the plugin that they are of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiocontainerd.guard import diagnosis
from aiocontainerd.guard.owners import Owners

log = logging.getLogger(__name__)


def handler(owners: Callable[[], Owners]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return an exception handler of a loop. What is no plugin's is left to the loop's own."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task, error = context.get("task") or context.get("future"), context.get("exception")
        uri = _owner(owners(), task, error) if error is not None else ""
        if not uri or error is None:
            loop.default_exception_handler(context)
            return
        who = f"task {task.get_name()}" if isinstance(task, asyncio.Task) else "a callback"
        told = diagnosis.describe(error, _module(task))
        log.error("plugin %s: %s, which nobody waits for, failed: %s", uri, who, told)
        log.debug("%s failed here", who, exc_info=error)

    return handle


def _owner(owners: Owners, task: object, error: BaseException) -> str:
    """Return the plugin that a task ran for, or whose code raised the error."""
    if isinstance(task, asyncio.Task):
        owner = owners.of_task(task)
        if owner is not None:
            return owner
    trace = error.__traceback__
    found = ""
    while trace is not None:
        of_frame = owners.of_module(trace.tb_frame.f_globals.get("__name__", ""))
        found = of_frame[0] if of_frame else found
        trace = trace.tb_next
    return found


def _module(task: object) -> str:
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    frame = getattr(coroutine, "cr_frame", None)
    return frame.f_globals.get("__name__", "") if frame is not None else ""
