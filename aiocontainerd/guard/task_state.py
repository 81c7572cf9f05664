"""Look at a task from outside: is it in a shielded part, and at which line does it wait.

anyio tells the first only of the current task, so this reads state that anyio keeps for itself.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from contextvars import Context
from typing import Any

import anyio
from anyio._backends import _asyncio as anyio_state

_WAITING_CODE = frozenset({"anyio", "asyncio", "aiocontainerd", "grpclib"})
"""Packages whose frames are not the place where a plugin waits."""


UNKNOWN = "an unknown place"


def is_shielded(task: asyncio.Task[Any]) -> bool:
    """Return whether a task is in a part that anyio shields from cancellation."""
    state = anyio_state._task_states.get(task)
    scope = state.cancel_scope if state is not None else None
    while scope is not None:
        if scope.shield:
            return True
        scope = scope._parent_scope
    return False


def context_of(task: asyncio.Task[Any]) -> Context | None:
    """Return the context that a task runs in. Python 3.11 has no other way to it than its garbage collector."""
    get_context = getattr(task, "get_context", None)
    if get_context is not None:
        context: Context = get_context()
        return context
    return next((one for one in gc.get_referents(task) if isinstance(one, Context)), None)


def told(task: asyncio.Task[Any]) -> str:
    """Return a task for people: its name, its coroutine, and the line that it waits at."""
    coroutine: Any = task.get_coro()
    name = getattr(coroutine, "__qualname__", type(coroutine).__name__)
    where = waits_at(task)
    return f"{task.get_name()} ({name})" if where == UNKNOWN else f"{task.get_name()} ({name} at {where})"


def stop_repeating(scope: anyio.CancelScope | None) -> None:
    """Keep anyio from cancelling a task again in every turn of the loop, if the task takes no notice."""
    handle = getattr(scope, "_cancel_handle", None)
    if handle is not None:
        handle.cancel()


def waits_at(task: asyncio.Task[Any], module: str = "") -> str:
    """Return `file:line` of the innermost code that a task waits in: of a module's package, else of any plugin."""
    package, where = module.partition(".")[0], UNKNOWN
    inside = False
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            name = frame.f_globals.get("__name__", "").partition(".")[0]
            if name == package or (not inside and name not in _WAITING_CODE | sys.stdlib_module_names):
                where, inside = f"{frame.f_code.co_filename}:{frame.f_lineno}", name == package
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return where
