"""Run one guarded call: in a task of its own, under a deadline, and left behind if it ignores its cancellation.

How a plugin that hangs is cut off:

1. `Call` starts the plugin's method in a task. Only what runs in another task can be walked away from. It is a bare
   task, because a task group would have to wait for it. The caller waits for the future `waiter`.
2. At the deadline, `Deadlines` calls `expire`. When the caller gives up, its guard calls `leave`. Both deliver one
   cancellation, and the call has `GRACE_S` to clean up or to finish. Work that is finished within the grace counts as
   done. A part that anyio shields is not interrupted; a thread that it waits for can ask whether it is cancelled
   (`from_thread.check_cancelled`).
3. If the call ends, `raised` gives the caller a DeadlineExceeded that names the plugin, the method and the limit.
4. If the call does not end, `abandon` answers the caller with the same error. The call runs on, is counted, and is
   logged with the line that it waits in.

A call that itself waits for another plugin gets a new grace a few times, because that plugin's call has a grace, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from aiocontainerd import durations
from aiocontainerd.errors import Cancelled, DeadlineExceeded, ReadOnlyFileSystem, Unknown
from aiocontainerd.guard import diagnosis, task_state
from aiocontainerd.guard.blame import explained, is_anothers, is_answer, marked, named, text_of
from aiocontainerd.guard.clock import Clock, running
from aiocontainerd.guard.deadlines import Deadlines
from aiocontainerd.guard.health import MethodRecord

log = logging.getLogger(__name__)

GRACE_S = 1.0
"""How long a cancelled call may clean up after itself, or finish."""
_MORE_GRACES = 3
"""How often the grace begins anew for a call that waits for another plugin."""
_LEFT_POLL_S = 1.0
_NOTHING = object()

_monotonic = time.monotonic


class Call:
    """A call under way. Its caller awaits `waiter`.

    `waited_at` is the line that it was at when it missed its deadline, `circle` the plugins that then waited for each
    other.
    `over` is set at its end if somebody waits for that; `trial` means that it tries an open breaker; `expired` that it
    missed its deadline, `cancelled` that its caller gave up, `abandoned` that it was left running.
    """

    __slots__ = (
        "abandoned",
        "cancelled",
        "circle",
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
        "waited_at",
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
        self.clock = Clock(record.plugin.uri, running.get())
        self.trial = record.trying
        self.done = self.expired = self.cancelled = self.abandoned = False
        self.waited_at = ""
        self.circle: list[str] = []
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
        """Seconds since it began."""
        return _monotonic() - self.started

    def succeeded(self, result: object) -> bool:
        """Give the result to the caller; return False if nobody waits for it any more."""
        record = self.record
        self._ended()
        if record.failures and not self.abandoned:
            record.succeeded()
        if self.waiter.done():
            return False
        self.waiter.set_result(result)
        return True

    def raised(self, error: BaseException) -> None:
        """Count the error, and give the caller what it means: itself, DeadlineExceeded, Cancelled or Unknown."""
        self._ended()
        if self.abandoned:
            return
        record = self.record
        if self.expired:
            error = self._too_slow(error)
        elif self.cancelled:
            record.trying = record.trying and not self.trial
        elif isinstance(error, asyncio.CancelledError):
            where = diagnosis.place(error, record.module)
            error = Cancelled(
                f"plugin {record.plugin.uri}: {record.method} was cancelled by the plugin itself"
                + (f" ({where})" if where else "")
            )
            record.failed(error.message, trial=self.trial)
        elif is_answer(error, late_counts=record.late_counts) or is_anothers(error, record.plugin.uri):
            record.note_error(text_of(record, error))
            if isinstance(error, ReadOnlyFileSystem) and not is_anothers(error, record.plugin.uri):
                record.plugin.note_read_only(error)
            if record.failures:
                record.succeeded()
        else:
            late = isinstance(error, DeadlineExceeded)
            record.expired += late
            record.failed(text_of(record, error), trial=self.trial, late=late)
        if not self.waiter.done():
            told = named(record, error) if isinstance(error, Exception) else Unknown(text_of(record, error))
            self.waiter.set_exception(marked(record, told))

    def _ended(self) -> None:
        self.done = True
        self.clock.caller = None  # tasks that the call leaves inherit its clock, and must not keep those of its callers
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
        """Cancel a call that missed its deadline. The caller is answered when the call ends, or after the grace."""
        self.expired, self.waited_at = True, task_state.waits_at(self.task, self.record.module)
        self.circle = self.clock.circle()
        self.cancel()
        self.loop.call_later(GRACE_S, self.abandon)

    async def leave(self) -> None:
        """Cancel the call because its caller was cancelled, and wait for its end, but not for ever."""
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
        elif task_state.is_shielded(self.task):
            self.scope.cancel()
        else:
            self.task.cancel()

    def abandon(self, more: int = _MORE_GRACES) -> None:
        """Answer the caller of a call that has not ended, and leave the call running.

        If it waits for another plugin it has up to `more` graces before.
        """
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
            task_state.waits_at(self.task, record.module),
        )
        self.loop.call_later(GRACE_S, _stop_repeating, self)
        if self.expired:
            error = self._too_slow(None)
            if not self.waiter.done():
                self.waiter.set_exception(marked(record, error))
        elif self.trial:
            record.trying = False

    def _too_slow(self, cause: BaseException | None) -> DeadlineExceeded:
        record = self.record
        record.expired += 1
        left = "; it ignores its cancellation and was left running" if self.abandoned else ""
        limit_s = record.limit_s if self.deadlines is None else self.deadlines.limit_s - record.plugin.slack_s
        where = f", waiting at {self.waited_at}" if self.waited_at != task_state.UNKNOWN else ""
        if self.circle:
            where += f", called in a circle ({' -> '.join(self.circle)})"
        if record.plugin.restart is not None:  # its process has the same deadline, and would have told the line
            where = ", its process answers nothing"
        error = DeadlineExceeded(
            f"plugin {record.plugin.uri}: {record.method} took longer than {durations.render(limit_s)} "
            f"({record.timeout}){where}, given up after "
            f"{durations.render(round(self.elapsed_s, 2))}{left}"
        )
        error.__cause__ = None if isinstance(cause, asyncio.CancelledError) else cause
        record.failed(error.message, trial=self.trial, late=True)
        return error


async def release(record: MethodRecord, result: Any) -> None:
    """Close a resource that reaches nobody, such as a writer that holds the lock of its ingest."""
    if not record.releases or result is None:
        return
    try:
        await result.close()
    except Exception as error:  # noqa: BLE001 - there is no caller left who could get it
        log.warning("plugin %s: closing what %s gave failed: %s", record.plugin.uri, record.method, error)


async def _attempt(
    call: Call, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run the plugin's method in the task of a call, and tell the call how it ended."""
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
        call.raised(explained(call.record, error, returned))
    else:
        if not call.succeeded(result):
            await release(call.record, result)
    finally:
        if call.over is not None:
            call.over.set()
        del call  # an error keeps this frame, and the call keeps the error


def _stop_repeating(call: Call) -> None:
    task_state.stop_repeating(call.scope)
    if not call.done:
        call.loop.call_later(_LEFT_POLL_S, _stop_repeating, call)
