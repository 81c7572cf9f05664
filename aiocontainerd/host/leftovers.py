"""What plugins leave behind when they are stopped: tasks are cancelled, threads are named."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from aiocontainerd.guard import task_state
from aiocontainerd.guard.health import PluginHealth
from aiocontainerd.guard.owners import Owners

if TYPE_CHECKING:
    from types import FrameType

log = logging.getLogger(__name__)

LEFT_TASKS_S = 1.0
"""Seconds that tasks which outlive their plugin have to end after their cancellation."""
LEFT_THREADS_S = 5.0
"""Seconds that threads have to end. They may be waiting for a disk."""
_LEFT_POLL_S = 0.01


async def end_left_tasks(owners: Owners, healths: Mapping[str, PluginHealth]) -> list[str]:
    """Cancel and log the tasks that stopped plugins left. Return the URIs of plugins whose tasks do not end."""
    left: dict[str, list[asyncio.Task[Any]]] = {}
    for task in asyncio.all_tasks():
        uri = None if task is asyncio.current_task() else owners.of_task(task)
        if uri is not None and uri in healths:
            left.setdefault(uri, []).append(task)
    for uri, tasks in sorted(left.items()):
        healths[uri].leaked = names = sorted(task_state.told(task) for task in tasks)
        log.warning("plugin %s leaves %d tasks running at its end: %s", uri, len(names), ", ".join(names))
    tasks = [task for of_plugin in left.values() for task in of_plugin]
    for task in tasks:
        task.cancel()
    if tasks:
        with anyio.CancelScope(shield=True):
            await asyncio.wait(tasks, timeout=LEFT_TASKS_S)
    return sorted(uri for uri, tasks in left.items() if not all(task.done() for task in tasks))


async def left_threads(
    owners: Owners, healths: Mapping[str, PluginHealth], before: Collection[threading.Thread]
) -> list[str]:
    """Wait for threads that would keep this process from ending, except those of `before`, and log what is left.

    Return the URIs of the plugins whose code they run, or the names of threads that run no plugin's code.
    """
    with anyio.move_on_after(LEFT_THREADS_S, shield=True):
        while holding_threads(before):  # noqa: ASYNC110 - the end of a thread sets no event
            await anyio.sleep(_LEFT_POLL_S)
    frames, left = sys._current_frames(), []
    for thread in holding_threads(before):
        uri, where = owners.of_frame(frames.get(thread.ident or 0)) or ("", "")
        if uri in healths:
            healths[uri].leaked.append(f"thread {thread.name} at {where}")
            log.warning("plugin %s leaves a thread running at its end: %s at %s", uri, thread.name, where)
        left.append(uri or f"thread {thread.name}")
    return left


def holding_threads(before: Collection[threading.Thread]) -> list[threading.Thread]:
    """Return threads that the interpreter waits for at exit, without idle ones of pools: the pool ends those."""
    frames = sys._current_frames()
    new = (thread for thread in threading.enumerate() if thread not in before and not thread.daemon)
    return [thread for thread in new if not _idles(frames.get(thread.ident or 0))]


def _idles(frame: FrameType | None) -> bool:
    """Return whether a thread has ended, or is a worker of asyncio or anyio that waits for work."""
    if frame is None:
        return True
    inner = ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == "concurrent.futures.thread":
            return frame.f_code.co_name == "_worker"
        if module == "anyio._backends._asyncio":
            return inner == "queue"
        inner, frame = module, frame.f_back
    return False
