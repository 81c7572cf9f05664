"""Say which plugin a module, a stack frame or a task belongs to.

Code belongs to a plugin by the package of its module. If a package brings several plugins, the name of the task says
which of them it is: the names of guarded calls, and of tasks that `InitContext.tasks` starts, begin with a plugin's
URI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

from aiocontainerd.guard import task_state
from aiocontainerd.guard.clock import running

_CORE = "aiocontainerd"


class Owners:
    """Which plugins a module belongs to. `packages` maps a package to the URIs it registered."""

    def __init__(self, packages: Mapping[str, Iterable[str]]) -> None:
        self._packages = {package: tuple(uris) for package, uris in packages.items()}

    def __repr__(self) -> str:
        return f"<Owners of {len(self._packages)} packages>"

    @classmethod
    def nobody(cls) -> Owners:
        """Return the owners of a process without plugins."""
        return cls({})

    def of_module(self, module: str) -> tuple[str, ...]:
        """Return the URIs whose package a module is in; empty for code of the core and of libraries."""
        name = module
        while name:
            found = self._packages.get(name)
            if found is not None:
                return found
            name = name.rpartition(".")[0]
        return ()

    def of_frame(self, frame: FrameType | None, task_name: str = "") -> tuple[str, str] | None:
        """Return the plugin of the innermost frame that belongs to one, and the frame's `file:line`."""
        while frame is not None:
            uris = self.of_module(frame.f_globals.get("__name__", ""))
            if uris:
                return _chosen(uris, task_name), f"{frame.f_code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    def of_task(self, task: asyncio.Task[Any]) -> str | None:
        """Return the plugin that a task runs for: by its name, else by the code it began with, else by who made it.

        The last is for the coroutine of a library. It belongs to the plugin that was at work when the task was made.
        """
        name = task.get_name()
        for uris in self._packages.values():
            for uri in uris:
                if name.startswith(f"{uri}:"):
                    return uri
        frame = getattr(task.get_coro(), "cr_frame", None)
        uris = self.of_module(frame.f_globals.get("__name__", "")) if frame is not None else ()
        if uris:
            return _chosen(uris, name)
        module = frame.f_globals.get("__name__", "") if frame is not None else _CORE
        return None if is_core(module) else maker_of(task)


def maker_of(task: asyncio.Task[Any]) -> str | None:
    """Return the plugin that was at work when a task was made, None for one of the daemon's own."""
    context = task_state.context_of(task)
    clock = context.get(running) if context is not None else None
    return clock.uri or None if clock is not None else None


def is_core(module: str) -> bool:
    """Return whether a module is the daemon's own."""
    return module == _CORE or module.startswith(f"{_CORE}.")


def package_of(module: str) -> str:
    """Return the package that a plugin's module stands for, or the module itself at the top; "" for the core."""
    if is_core(module) or module.startswith("builtins"):
        return ""
    return module.rpartition(".")[0] or module


def _chosen(uris: tuple[str, ...], task_name: str) -> str:
    """Return the one of a package's plugins that the running task is named after; else the first."""
    return next((uri for uri in uris if task_name.startswith(f"{uri}:")), uris[0])
