"""What is each plugin's doing: which code is whose, and a record per plugin of what it did to the daemon.

Code belongs to a plugin by the package of its module. Where a package brings several plugins, the name of the task
says which one of them it was: tasks of guarded calls and of `InitContext.tasks` begin with the plugin's URI. A task
that runs none but a library's code belongs to the plugin in whose call, or life, it was made; where a front end
called, to the one whose code made it.
"""

from __future__ import annotations

import asyncio
import builtins
import gc
import logging
import operator
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from aiocontainerd.guard.clock import running
from aiocontainerd.guard.health import PluginHealth

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator


log = logging.getLogger(__name__)

_CORE = "aiocontainerd"
_SHARED = (builtins, os, socket, asyncio, signal, subprocess, sys, threading)
"""Modules whose attributes everybody relies on."""
_CHANGES_BY_ITSELF = frozenset({"_", "last_exc", "last_type", "last_value", "last_traceback", "environ"})
_MISSING = object()
_MAKER = "__made_for_plugin__"
_MAKER_DEPTH = 4
"""How many frames of who makes a task are looked through for a plugin's code."""


class Owners:
    """Which plugins a module belongs to. `packages` maps a package to the URIs it registered."""

    def __init__(self, packages: Mapping[str, Iterable[str]]) -> None:
        self._packages = {package: tuple(uris) for package, uris in packages.items()}

    def __repr__(self) -> str:
        return f"<Owners of {len(self._packages)} packages>"

    @classmethod
    def nobody(cls) -> Owners:
        """For a process without plugins."""
        return cls({})

    def of_module(self, module: str) -> tuple[str, ...]:
        """The URIs whose package a module is in; empty for code of the core and of libraries."""
        name = module
        while name:
            found = self._packages.get(name)
            if found is not None:
                return found
            name = name.rpartition(".")[0]
        return ()

    def of_frame(self, frame: FrameType | None, task_name: str = "") -> tuple[str, str] | None:
        """The plugin of the innermost frame that belongs to one, and its `file:line`."""
        while frame is not None:
            uris = self.of_module(frame.f_globals.get("__name__", ""))
            if uris:
                return _chosen(uris, task_name), f"{frame.f_code.co_filename}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    def of_task(self, task: asyncio.Task[Any]) -> str | None:
        """The plugin that a task runs for: by its name, else by the code it began with, else by who made it."""
        name = task.get_name()
        for uris in self._packages.values():
            for uri in uris:
                if name.startswith(f"{uri}:"):
                    return uri
        frame = getattr(task.get_coro(), "cr_frame", None)
        uris = self.of_module(frame.f_globals.get("__name__", "")) if frame is not None else ()
        return _chosen(uris, name) if uris else self._of_maker(getattr(task, _MAKER, ""))

    def _of_maker(self, maker: str | tuple[str, ...]) -> str | None:
        if isinstance(maker, str):
            return maker or None
        return next((uris[0] for module in maker if (uris := self.of_module(module))), None)


@contextmanager
def marking_tasks(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """While the block runs, remember for which plugin each new task of a loop is made; at most a microsecond a task."""
    before = loop.get_task_factory()

    def factory(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **kwargs: Any
    ) -> asyncio.Future[Any]:
        task = asyncio.Task(coroutine, loop=loop, **kwargs) if before is None else before(loop, coroutine, **kwargs)
        clock = running.get()
        setattr(task, _MAKER, _modules(sys._getframe(1)) if clock is None else clock.uri)
        return task

    loop.set_task_factory(factory)
    try:
        yield
    finally:
        loop.set_task_factory(before)


def _modules(frame: FrameType | None) -> tuple[str, ...]:
    """Whose code runs, innermost first."""
    names: list[str] = []
    while frame is not None and len(names) < _MAKER_DEPTH:
        names.append(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return tuple(names)


def package_of(module: str) -> str:
    """The package that a plugin's module stands for: its own, or the module where it is in none; "" for the core."""
    if module == _CORE or module.startswith((f"{_CORE}.", "builtins")):
        return ""
    return module.rpartition(".")[0] or module


@contextmanager
def changed_globals(health: PluginHealth) -> Iterator[None]:
    """Note, and log, which attributes of widely used modules a plugin's import or init replaces, adds or removes."""
    before = [(module, dict(vars(module))) for module in _SHARED]
    try:
        yield
    finally:
        changed = [name for module, attributes in before for name in _changes(module, attributes)]
        if changed:
            health.changed_globals += changed
            log.warning("plugin %s changes what everybody uses: %s", health.uri, ", ".join(changed))


@contextmanager
def noting_unclosed(owners: Callable[[], Owners], health_of: Callable[[str], PluginHealth | None]) -> Iterator[None]:
    """While the block runs, note what a plugin's code drops without closing it: files, sockets, transports.

    What only the garbage collector finds is left out: it runs in whatever code happens to be running.
    """
    collecting = False

    def collector(phase: str, _info: Mapping[str, int]) -> None:
        nonlocal collecting
        collecting = phase == "start"

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if not issubclass(category, ResourceWarning):
            before(message, category, *rest)
            return
        found = None if collecting else owners().of_frame(sys._getframe(1))
        health = health_of(found[0]) if found is not None else None
        if found is not None and health is not None:
            health.note_unclosed(found[1], str(message))

    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # the rest is what showwarning takes and passes on
        gc.callbacks.append(collector)
        try:
            yield
        finally:
            gc.callbacks.remove(collector)


def _changes(module: ModuleType, before: Mapping[str, object]) -> list[str]:
    now = vars(module)
    if len(now) == len(before) and all(map(operator.is_, now.values(), before.values())):
        return []
    names = {name for name in (*before, *now) if now.get(name, _MISSING) is not before.get(name, _MISSING)}
    return sorted(
        f"{module.__name__}.{name}"
        for name in names - _CHANGES_BY_ITSELF
        if not isinstance(now.get(name), ModuleType)  # a submodule that was imported for the first time
    )


def _chosen(uris: tuple[str, ...], task_name: str) -> str:
    """Of the plugins of one package, the one that the running task is named after; else the first."""
    return next((uri for uri in uris if task_name.startswith(f"{uri}:")), uris[0])
