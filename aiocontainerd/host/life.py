"""The life of one plugin, in a task of its own: init, tasks, clean-up, each under a deadline.

Each plugin has its own task. So the cancel scopes that it opens nest in that task alone, and whoever starts or stops it
can stop waiting. A plugin that ignores even its cancellation is left behind and reported; the others go on.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
import msgspec

from aiocontainerd import durations
from aiocontainerd.config.timeouts import PLUGIN_INIT, PLUGIN_STOP
from aiocontainerd.errors import is_ordered
from aiocontainerd.guard import diagnosis
from aiocontainerd.guard.clock import Clock, running
from aiocontainerd.host.conformance import awaited_problem
from aiocontainerd.host.registration import PluginError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

log = logging.getLogger(__name__)

INIT_TIMEOUT = PLUGIN_INIT.key
STOP_TIMEOUT = PLUGIN_STOP.key
_UNWIND_S = 1.0
"""Seconds that a cancelled plugin has to unwind."""


def require_async(function: object, used_by: str) -> None:
    """Raise PluginError, which says what to write, for what cannot be called and awaited."""
    if inspect.isawaitable(function):
        name = getattr(function, "__name__", "function")
        if inspect.iscoroutine(function):
            function.close()
        raise PluginError(f"{used_by} is given what {name}(...) returned; write {used_by}({name}), without calling it")
    if not callable(function):
        raise PluginError(f"{used_by} is given {type(function).__name__}, not an async function")
    name = getattr(function, "__qualname__", type(function).__name__)
    problem = awaited_problem(function, name.rpartition(".")[2])
    if problem:
        raise PluginError(f"{name}, which {used_by} is given, {problem}")


def _module(function: object) -> str:
    return getattr(function, "__module__", None) or ""


class PluginTimeoutError(Exception):
    """Raised for an init that did not end in time."""


class Limits(msgspec.Struct, frozen=True):
    """Seconds that an init and a stop may take; 0 means no limit."""

    init_s: float
    stop_s: float

    @classmethod
    def of(cls, timeout_s: Callable[[str], float], uri: str) -> Limits:
        """Return the limits that `[timeouts]` sets for the plugin `uri`."""
        return cls(timeout_s(f"{INIT_TIMEOUT}.{uri}"), timeout_s(f"{STOP_TIMEOUT}.{uri}"))


class PluginTasks:
    """Tasks that end with their plugin. A failure is logged under the plugin's name and harms nothing else."""

    def __init__(self, uri: str, group: TaskGroup) -> None:
        self._uri = uri
        self._group = group
        self.running: set[str] = set()

    def __repr__(self) -> str:
        return f"<PluginTasks of {self._uri}: {len(self.running)} running>"

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object, name: str = "") -> None:
        """Start `function(*args)` as a task. Logs and dumps call it `name`.

        Raises PluginError for what is not async.
        """
        require_async(function, "context.tasks.start_soon")
        label = f"{self._uri}:{name or getattr(function, '__name__', 'task')}"
        self._group.start_soon(self._guarded, function, args, label, name=label)

    async def _guarded(self, function: Callable[..., Awaitable[object]], args: tuple[object, ...], label: str) -> None:
        self.running.add(label)
        running.set(Clock(self._uri))
        try:
            await function(*args)
        except BaseException as error:  # the edge of a task: a plugin's failure is its own
            if is_ordered(error):
                raise
            log.error("task %s of plugin %s failed: %s", label, self._uri, diagnosis.describe(error, _module(function)))
            log.debug("task %s failed here", label, exc_info=error)
        finally:
            self.running.discard(label)


class PluginLife:
    """One plugin from its init to its end. `run` is its task; other tasks call `begun` and `stop`.

    `init` takes the plugin's tasks and the stack of its clean-up. `limits` may be changed at any time. `module` is that
    of the plugin's code. After `begun`, either `failure` says why the plugin did not load, or `instance` is what init
    returned.
    """

    def __init__(
        self,
        uri: str,
        init: Callable[[PluginTasks, AsyncExitStack], Awaitable[object]],
        limits: Limits,
        module: str = "",
    ) -> None:
        self.uri = uri
        self.module = module
        self.instance: object = None
        self.failure: BaseException | None = None
        self._init = init
        self.limits = limits
        self._at_end = AsyncExitStack()
        self._whole = anyio.CancelScope(shield=True)  # ended in order by `stop_at_once`, not all at once from above
        self._begun, self._leave, self._ended = anyio.Event(), anyio.Event(), anyio.Event()

    def __repr__(self) -> str:
        state = "ended" if self.ended else "running" if self._begun.is_set() else "starting"
        return f"<PluginLife {self.uri} {state}>"

    @property
    def ended(self) -> bool:
        """Whether the plugin's task has ended, and with it every task it started."""
        return self._ended.is_set()

    async def run(self) -> None:
        """Run init, wait for `stop`, clean up, end the plugin's tasks."""
        running.set(Clock(self.uri))
        try:
            with self._whole:
                async with anyio.create_task_group() as group:
                    try:
                        async with self._at_end:
                            await self._live(PluginTasks(self.uri, group))
                    except BaseException as error:  # the edge of a plugin: what its clean-up raises ends nothing else
                        if is_ordered(error):
                            raise
                        log.error("plugin %s failed to stop: %s", self.uri, diagnosis.describe(error, self.module))
                        log.debug("plugin %s failed here", self.uri, exc_info=error)
                    finally:
                        group.cancel_scope.cancel()
        finally:
            self._begun.set()
            self._ended.set()

    async def _live(self, tasks: PluginTasks) -> None:
        try:
            with anyio.move_on_after(self.limits.init_s or None) as scope:
                self.instance = await self._init(tasks, self._at_end)
            if scope.cancel_called:
                raise PluginTimeoutError(self._too_slow())
        except BaseException as error:  # the edge of a plugin: what it raises is its outcome
            if is_ordered(error):
                raise
            self.failure = error
        else:
            self._begun.set()
            await self._leave.wait()

    async def begun(self) -> None:
        """Wait until the plugin is loaded, or has failed and cleaned up."""
        limits = self.limits
        longest = limits.init_s + (limits.stop_s or math.inf) + _UNWIND_S if limits.init_s else math.inf
        with anyio.move_on_after(longest):
            await self._begun.wait()
            return
        self.failure = PluginTimeoutError(f"{self._too_slow()}, and it cannot be cancelled")
        self._whole.cancel()

    async def stop(self) -> None:
        """End the plugin. Cancel it at the limit; if it ignores that, log it and leave it behind."""
        self._leave.set()
        if await self._ends_within(self.limits.stop_s or math.inf):
            return
        limit = durations.render(self.limits.stop_s)
        log.error("plugin %s did not stop within %s (%s); given up", self.uri, limit, STOP_TIMEOUT)
        await self.stop_at_once()

    async def stop_at_once(self) -> None:
        """Cancel the plugin at once, whatever it does."""
        self._leave.set()
        self._whole.cancel()
        await self._ends_within(_UNWIND_S)

    async def _ends_within(self, limit_s: float) -> bool:
        with anyio.move_on_after(limit_s):
            await self._ended.wait()
        return self.ended

    def _too_slow(self) -> str:
        return f"init of {self.uri} did not end within {durations.render(self.limits.init_s)} ({INIT_TIMEOUT})"
