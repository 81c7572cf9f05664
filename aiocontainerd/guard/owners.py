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
        """Return the plugin that a task runs for, by its name or else by the code it began with.

        A task that a plugin made without its context, out of a library's coroutine, belongs to nobody.
        """
        name = task.get_name()
        for uris in self._packages.values():
            for uri in uris:
                if name.startswith(f"{uri}:"):
                    return uri
        frame = getattr(task.get_coro(), "cr_frame", None)
        uris = self.of_module(frame.f_globals.get("__name__", "")) if frame is not None else ()
        return _chosen(uris, name) if uris else None


def package_of(module: str) -> str:
    """Return the package that a plugin's module stands for, or the module itself at the top; "" for the core."""
    if module == _CORE or module.startswith((f"{_CORE}.", "builtins")):
        return ""
    return module.rpartition(".")[0] or module


def _chosen(uris: tuple[str, ...], task_name: str) -> str:
    """Return the one of a package's plugins that the running task is named after; else the first."""
    return next((uri for uri in uris if task_name.startswith(f"{uri}:")), uris[0])
