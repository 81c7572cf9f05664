"""Look at a task from outside: is it in a shielded part, and at which line does it wait.

anyio tells the first only of the current task, so this reads state that anyio keeps for itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
from anyio._backends import _asyncio as anyio_state

_WAITING_CODE = frozenset({"anyio", "asyncio"})
"""Packages whose frames are not the place where a plugin waits."""


def is_shielded(task: asyncio.Task[Any]) -> bool:
    """Return whether a task is in a part that anyio shields from cancellation."""
    state = anyio_state._task_states.get(task)
    scope = state.cancel_scope if state is not None else None
    while scope is not None:
        if scope.shield:
            return True
        scope = scope._parent_scope
    return False


def stop_repeating(scope: anyio.CancelScope | None) -> None:
    """Keep anyio from cancelling a task again in every turn of the loop, if the task takes no notice."""
    handle = getattr(scope, "_cancel_handle", None)
    if handle is not None:
        handle.cancel()


def waits_at(task: asyncio.Task[Any]) -> str:
    """Return `file:line` of the innermost code of a plugin that a task waits in."""
    where = "an unknown place"
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] not in _WAITING_CODE:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return where
