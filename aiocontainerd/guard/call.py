"""One guarded call: in a task of its own, under a deadline, and left behind where it ignores its cancellation.

The task is the price of not hanging: only what runs in another task can be walked away from. It is a bare one, for a
task group would have to wait for it; whoever made the call waits on a future. Cancellation, by the caller or the
deadline, is delivered once and is given `GRACE_S` to be answered: work that finished in this time counts as done. A
part of the plugin that anyio shields is not interrupted; a thread that it waits for may look whether it is cancelled
(`from_thread.check_cancelled`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

import anyio
from anyio._backends import _asyncio as anyio_state

from aiocontainerd import durations
from aiocontainerd.errors import Cancelled, ContainerdError, DeadlineExceeded, Unknown
from aiocontainerd.guard.clock import Clock, running
from aiocontainerd.guard.deadlines import Deadlines
from aiocontainerd.guard.health import MethodRecord

log = logging.getLogger(__name__)

GRACE_S = 1.0
"""What a cancelled call has to clean up after itself, or to finish."""
_MORE_GRACES = 3
"""How often the grace begins anew for a call that waits for another plugin, which has a grace itself."""
_LEFT_POLL_S = 1.0
_TOLD = "__told_of_plugin__"
_CAUSES = 10
"""How many causes of an error are looked at; they may lead in a circle."""
_NOTHING = object()

_WAITING_CODE = frozenset({"anyio", "asyncio"})

_monotonic = time.monotonic


class Call:
    """A call under way. `waiter` is what its caller awaits."""

    __slots__ = (
        "abandoned",
        "cancelled",
        "clock",
        "deadlines",
        "done",
        "expired",
        "loop",
        "over",
        "record",
        "scope",
        "started",
        "task",
        "trial",
        "waiter",
    )

    def __init__(
        self,
        record: MethodRecord,
        deadlines: Deadlines | None,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.record = record
        self.deadlines = deadlines
        self.clock = Clock(record.plugin.uri)
        self.trial = record.trying
        self.done = self.expired = self.cancelled = self.abandoned = False
        self.over: asyncio.Event | None = None
        self.scope: anyio.CancelScope | None = None
        self.loop = loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[Any] = loop.create_future()
        record.in_flight += 1
        self.started = _monotonic()
        self.task = asyncio.Task(_attempt(self, function, args, kwargs), loop=loop, name=record.label)
        if deadlines is not None:
            deadlines.add(self)

    def __repr__(self) -> str:
        state = "abandoned" if self.abandoned else "expired" if self.expired else "running"
        return f"<Call {self.record.label} {state} for {self.elapsed_s:.3f} s>"

    @property
    def elapsed_s(self) -> float:
        """How long ago it began."""
        return _monotonic() - self.started

    def succeeded(self, result: object) -> bool:
        """Give the result to the caller; False where nobody waits for it any more."""
        record = self.record
        self._ended()
        if record.failures and not self.abandoned:
            record.succeeded()
        if self.waiter.done():
            return False
        self.waiter.set_result(result)
        return True

    def raised(self, error: BaseException) -> None:
        """Give the error to the caller, as what it means there."""
        self._ended()
        if self.abandoned:
            return
        record = self.record
        if self.expired:
            error = self._too_slow(error)
        elif self.cancelled:
            record.trying = record.trying and not self.trial
        elif isinstance(error, asyncio.CancelledError):
            error = Cancelled(f"plugin {record.plugin.uri}: {record.method} was cancelled by the plugin itself")
            record.failed(error.message, trial=self.trial)
        elif _is_answer(error, late_counts=record.late_counts) or _told_of_another(error, record.plugin.uri):
            record.note_error(_text(error))
            if record.failures:
                record.succeeded()
        else:
            record.failed(_text(error), trial=self.trial)
        if not self.waiter.done():
            self.waiter.set_exception(_told(record, error if isinstance(error, Exception) else Unknown(_text(error))))

    def _ended(self) -> None:
        self.done = True
        record, deadlines = self.record, self.deadlines
        record.latencies.observe(_monotonic() - self.started)
        record.calls += 1
        if deadlines is not None:
            deadlines.pending.pop(self, None)
        if self.abandoned:
            record.plugin.abandoned.discard(self)
            log.info("plugin %s: %s ended %.1fs after it began", record.plugin.uri, record.method, self.elapsed_s)
        else:
            record.in_flight -= 1

    def expire(self) -> None:
        """Cancel what missed its deadline. The caller is answered when it ends, or after the grace."""
        self.expired = True
        self.cancel()
        self.loop.call_later(GRACE_S, self.abandon)

    async def leave(self) -> None:
        """The caller was cancelled: cancel the call and wait for its end, but not for ever."""
        if self.deadlines is not None:
            self.deadlines.pending.pop(self, None)
        self.waiter.cancel()
        if not self.done:
            self.cancelled = True
            self.record.cancelled += 1
            self.over = asyncio.Event()
            self.cancel()
            try:
                await self._wait_for_end(self.over)
            finally:
                self.abandon(0)
        elif not self.waiter.cancelled() and self.waiter.exception() is None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(GRACE_S):
                await release(self.record, self.waiter.result())

    async def _wait_for_end(self, over: asyncio.Event) -> None:
        with anyio.CancelScope(shield=True):
            for _ in range(1 + _MORE_GRACES):
                with anyio.move_on_after(GRACE_S):
                    await over.wait()
                if self.done or not self.clock.waits:
                    return

    def cancel(self) -> None:
        """Deliver a cancellation, once, and not into a shielded part."""
        if self.done:
            return
        if self.scope is None:  # its task is about to take its first step, and would never get to say that it ended
            self.loop.call_soon(self.cancel)
        elif _is_shielded(self.task):
            self.scope.cancel()
        else:
            self.task.cancel()

    def abandon(self, more: int = _MORE_GRACES) -> None:
        """Answer the caller and leave the call to itself, where it has not ended; a call that waits has more graces."""
        if self.done or self.abandoned:
            return
        if more and self.clock.waits:
            self.loop.call_later(GRACE_S, self.abandon, more - 1)
            return
        self.abandoned = True
        record = self.record
        record.in_flight -= 1
        record.abandoned += 1
        record.plugin.abandoned.add(self)
        log.error(
            "plugin %s: %s did not end within %s of its cancellation, %.1fs after it began; left running at %s",
            record.plugin.uri,
            record.method,
            durations.render(GRACE_S),
            self.elapsed_s,
            _where(self.task),
        )
        self.loop.call_later(GRACE_S, _stop_asking, self)
        if self.expired:
            error = self._too_slow(None)
            if not self.waiter.done():
                self.waiter.set_exception(_told(record, error))
        elif self.trial:
            record.trying = False

    def _too_slow(self, cause: BaseException | None) -> DeadlineExceeded:
        record = self.record
        record.expired += 1
        left = "; it ignores its cancellation and was left running" if self.abandoned else ""
        limit_s = record.limit_s if self.deadlines is None else self.deadlines.limit_s
        error = DeadlineExceeded(
            f"plugin {record.plugin.uri}: {record.method} took longer than {durations.render(limit_s)} "
            f"({record.timeout}), given up after {durations.render(round(self.elapsed_s, 2))}{left}"
        )
        error.__cause__ = None if isinstance(cause, asyncio.CancelledError) else cause
        record.failed(error.message, trial=self.trial)
        return error


async def release(record: MethodRecord, result: Any) -> None:
    """Close a resource that reaches nobody, such as a writer that holds the lock of its ingest."""
    if not record.releases or result is None:
        return
    try:
        await result.close()
    except Exception as error:  # noqa: BLE001 - nobody is left to whom it could be told
        log.warning("plugin %s: closing what %s gave failed: %s", record.plugin.uri, record.method, error)


async def _attempt(
    call: Call, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    returned: Any = None
    result: Any = _NOTHING
    running.set(call.clock)
    try:
        with anyio.CancelScope() as call.scope:
            returned = function(*args, **kwargs)
            result = await returned
        if result is _NOTHING:
            raise asyncio.CancelledError  # the scope's own, which it keeps to itself
    except BaseException as error:  # noqa: BLE001 - whatever a plugin raises is its answer, and ends nothing else
        call.raised(_explained(call.record, error, returned))
    else:
        if not call.succeeded(result):
            await release(call.record, result)
    finally:
        if call.over is not None:
            call.over.set()
        del call  # an error keeps this frame, and the call keeps the error


def _explained(record: MethodRecord, error: BaseException, returned: object) -> BaseException:
    """The error; for a method that is not a coroutine function, one that says so."""
    if isinstance(error, TypeError) and returned is not None and not isawaitable(returned):
        return Unknown(
            f"plugin {record.plugin.uri}: {record.method} gave {type(returned).__name__}, which cannot be awaited; "
            f"declare it with async def"
        )
    return error


def _is_answer(error: BaseException, *, late_counts: bool) -> bool:
    """Whether an error is one a working plugin gives: one that travels to clients.

    A deadline that the plugin itself missed is none, unless what it works on has deadlines by itself, as a shim has.
    """
    if isinstance(error, DeadlineExceeded):
        return not late_counts
    return isinstance(error, ContainerdError | NotImplementedError)


def _told(record: MethodRecord, error: Exception) -> Exception:
    """The error, marked as one that was counted against a plugin."""
    if not hasattr(error, _TOLD):
        try:
            setattr(error, _TOLD, record.plugin.uri)
        except AttributeError:  # a class with slots: it counts against the others, too
            pass
    return error


def _told_of_another(error: BaseException | None, uri: str) -> bool:
    """Whether another plugin's guard gave the error, or what it was raised from."""
    for _ in range(_CAUSES):
        if error is None:
            return False
        if getattr(error, _TOLD, uri) != uri:
            return True
        error = error.__cause__
    return False


def _text(error: BaseException) -> str:
    if isinstance(error, ContainerdError):
        return error.message
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_shielded(task: asyncio.Task[Any]) -> bool:
    """Whether a task is in a part that anyio shields from cancellation. anyio tells that only of the current task."""
    state = anyio_state._task_states.get(task)
    scope = state.cancel_scope if state is not None else None
    while scope is not None:
        if scope.shield:
            return True
        scope = scope._parent_scope
    return False


def _stop_asking(call: Call) -> None:
    """Keep anyio from cancelling, in every turn of the loop, an abandoned task that takes no notice."""
    handle = getattr(call.scope, "_cancel_handle", None)
    if handle is not None:
        handle.cancel()
    if not call.done:
        call.loop.call_later(_LEFT_POLL_S, _stop_asking, call)


def _where(task: asyncio.Task[Any]) -> str:
    """`file:line` of the plugin's code that a task waits in, innermost."""
    where = "an unknown place"
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] not in _WAITING_CODE:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return where
