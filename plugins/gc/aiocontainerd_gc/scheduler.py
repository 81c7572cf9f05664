"""Sleep until something changes, and collect when that is due.

While nothing changes, nothing runs: after a collection no timer starts before the next change is committed. Files are
deleted by a task of their own, so that the next sweep of records does not wait for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import anyio
import msgspec

from aiocontainerd.errors import ContainerdError, ReadOnlyFileSystem, Unknown, to_status
from aiocontainerd.interfaces.metadata import Collected
from aiocontainerd_gc import plan
from aiocontainerd_gc.plan import Changes, Thresholds

log = logging.getLogger(__name__)

Waiter = asyncio.Future[Collected]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and what happened since the last sweep of records."""

    collections: int
    failures: int
    mutations: int
    deletions: int
    waiting: int
    average_s: float


class Scheduler:
    """See `aiocontainerd.interfaces.gc.GCScheduler`. `note` is for `MetadataStore.on_mutation`, `run` for a task."""

    def __init__(
        self,
        sweep: Callable[[], Awaitable[Collected]],
        reclaim: Callable[[], Awaitable[None]],
        thresholds: Thresholds,
        *,
        startup_delay_s: float = 0.0,
    ) -> None:
        self._sweep, self._reclaim = sweep, reclaim
        self._thresholds = msgspec.structs.replace(thresholds, pause=plan.clamped_pause(thresholds.pause))
        self._startup_delay_s = startup_delay_s
        self._changes = Changes()
        self._waiters: list[Waiter] = []
        self._swept: list[tuple[Collected, list[Waiter]]] = []
        self._unreclaimed = anyio.Event()
        self._due, self._hurry = anyio.Event(), anyio.Event()
        self._interval_s = plan.FIRST_INTERVAL_S
        self._spent_s = 0.0
        self._collections = self._failures = 0
        self._stopped = self._is_put_off = False

    def __repr__(self) -> str:
        return f"<Scheduler every {self._interval_s:g}s {self.statistics()}>"

    def statistics(self) -> Statistics:
        """Return the counters."""
        return Statistics(
            collections=self._collections,
            failures=self._failures,
            mutations=self._changes.mutations,
            deletions=self._changes.deletions,
            waiting=sum(not waiter.done() for waiter in self._all_waiters()),
            average_s=self._spent_s / max(self._collections, 1),
        )

    def note(self, deletion: bool) -> None:
        """Count a committed change; wakes the scheduler for the first one that matters."""
        self._changes.note(deletion)
        if plan.is_due(self._changes, self._thresholds):
            self._due.set()
        if plan.is_urgent(self._changes, self._thresholds):
            self._hurry.set()

    async def schedule_and_wait(self) -> Collected:
        """Have one collection begin after this call and wait for it; calls that wait together share one.

        Raise Unknown `gc failed`.
        """
        if self._stopped:
            raise Unknown("gc failed")
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._due.set()
        self._hurry.set()
        return await waiter

    async def run(self) -> None:
        """Collect once after the start-up delay, then whenever due, until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._run_reclaims)
                await self._sleep_unless_hurried(self._startup_delay_s)
                await self._sweep_once()
                while True:
                    await self._due.wait()
                    await self._sleep_unless_hurried(self._interval_s)
                    await self._sweep_once()
        finally:
            self._stopped = True
            _settle(self._all_waiters(), Unknown("gc failed"))
            self._waiters, self._swept = [], []

    async def _sleep_unless_hurried(self, seconds: float) -> None:
        """Sleep. A waiting call, or enough deletions, shorten the sleep to the schedule delay."""
        with anyio.move_on_after(seconds):
            await self._hurry.wait()
            await anyio.sleep(self._thresholds.delay_s)

    async def _sweep_once(self) -> None:
        waiters, self._waiters = self._waiters, []
        changes, self._changes = self._changes, Changes()
        self._due, self._hurry = anyio.Event(), anyio.Event()
        try:
            collected = await self._sweep()
        except ReadOnlyFileSystem as error:
            self._put_off(error)
            self._failed(changes)
            _settle(waiters, error)
        except Exception:
            log.exception("garbage collection failed, will try again")
            self._failed(changes)
            _settle(waiters, Unknown("gc failed"))
        except BaseException:
            self._waiters = waiters + self._waiters
            raise
        else:
            self._succeeded(collected)
            self._swept.append((collected, waiters))
            self._unreclaimed.set()

    async def _run_reclaims(self) -> None:
        """Delete the files of every sweep, as soon as those of the sweeps before it are gone. Then answer who waits."""
        while True:
            await self._unreclaimed.wait()
            self._unreclaimed = anyio.Event()
            sweeps = len(self._swept)
            outcome = await self._reclaim_now()
            for collected, waiters in self._swept[:sweeps]:
                _settle(waiters, outcome or collected)
            del self._swept[:sweeps]

    async def _reclaim_now(self) -> Unknown | None:
        try:
            await self._reclaim()
        except Exception:
            log.exception("deleting the files of collected garbage failed, will try again")
            self._failures += 1
            return Unknown("gc failed")
        return None

    def _all_waiters(self) -> list[Waiter]:
        return [*self._waiters, *(waiter for _, waiters in self._swept for waiter in waiters)]

    def _put_off(self, error: ReadOnlyFileSystem) -> None:
        """Try again more slowly. Log the reason once."""
        if not self._is_put_off:
            log.warning("garbage collection is put off: %s", to_status(error)[1])
        self._is_put_off = True
        self._interval_s = max(self._interval_s, plan.FIRST_INTERVAL_S)

    def _failed(self, changes: Changes) -> None:
        """Count a failure. The changes stay to be collected."""
        self._failures += 1
        self._changes.add(changes)
        if plan.is_due(self._changes, self._thresholds):
            self._due.set()

    def _succeeded(self, collected: Collected) -> None:
        self._is_put_off = False
        self._collections += 1
        self._spent_s += collected.duration_s
        self._interval_s = plan.interval_s(self._spent_s / self._collections, self._thresholds.pause)
        if collected.removed:
            log.info("garbage collected in %.3fs: %s", collected.duration_s, dict(collected.removed))


def _settle(waiters: Iterable[Waiter], outcome: Collected | ContainerdError) -> None:
    for waiter in waiters:
        if waiter.done():
            continue
        if isinstance(outcome, ContainerdError):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)
