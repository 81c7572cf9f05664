"""Show what the daemon does right now: the state of every plugin, the stack of every task and thread (SIGUSR1)."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiocontainerd.host.state import Plugin


def render(plugins: Iterable[Plugin]) -> str:
    """Return the dump as text. Must be called on the event loop."""
    out = io.StringIO()
    out.write("=== plugins\n")
    for plugin in plugins:
        out.write(f"{plugin!r} {_shown(plugin.instance)}\n")
    out.write("=== tasks\n")
    for task in sorted(asyncio.all_tasks(), key=lambda t: t.get_name()):
        out.write(f"--- {task.get_name()}\n")
        out.writelines(traceback.format_list(_awaits(task.get_coro())))
    out.write("=== threads\n")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"--- {names.get(ident, ident)}\n")
        traceback.print_stack(frame, file=out)
    return out.getvalue()


def _awaits(awaited: Any) -> traceback.StackSummary:
    """Return every frame from a task's coroutine to what it waits for. `Task.get_stack` has only the outermost."""
    frames = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return traceback.StackSummary.extract(iter(frames))


def _shown(instance: object) -> str:
    if instance is None:
        return ""
    try:
        return repr(instance)
    except Exception as error:  # noqa: BLE001 - a plugin's broken repr must not cost the rest of the dump
        return f"<{type(instance).__name__}, whose repr raises {type(error).__name__}: {error}>"


def write(text: str) -> Path:
    """Write a dump to `containerd.<pid>.stacks.log` in the directory for temporary files. Return its path.

    Raises OSError, also if somebody put a link in its place.
    """
    path = Path(tempfile.gettempdir()) / f"containerd.{os.getpid()}.stacks.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w") as file:
        file.write(text)
    return path
