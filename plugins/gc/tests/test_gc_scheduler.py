"""When collections happen: start-up, timer, thresholds, requests, failures (facts/core 10)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from aiocontainerd_gc import plan
from aiocontainerd_gc.plan import Changes, Thresholds
from aiocontainerd_gc.plugin import Config, register_plugins
from aiocontainerd_gc.scheduler import Scheduler

from aiocontainerd.config.values import Duration
from aiocontainerd.errors import ReadOnlyFileSystem, Unknown
from aiocontainerd.interfaces.metadata import Collected

pytestmark = pytest.mark.anyio
DEFAULTS = Thresholds(pause=0.02, deletions=0, mutations=100)
NEVER_S = 1000.0


class Collector:
    """Counts sweeps and reclaims; `during` runs in each sweep, `reclaiming` in each reclaim."""

    def __init__(self) -> None:
        self.count = self.reclaims = 0
        self.during: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint
        self.reclaiming: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint

    async def sweep(self) -> Collected:
        self.count += 1
        await self.during()
        return Collected(removed={"content": self.count}, duration_s=0.0)

    async def reclaim(self) -> None:
        self.reclaims += 1
        await self.reclaiming()


@pytest.fixture
def collector() -> Collector:
    return Collector()


Running = Callable[[Thresholds], AbstractAsyncContextManager[Scheduler]]


@pytest.fixture
def running(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr(plan, "FIRST_INTERVAL_S", 0.02)
    monkeypatch.setattr(plan, "interval_s", lambda _average, _pause: 0.02)

    @asynccontextmanager
    async def run(thresholds: Thresholds, startup_delay_s: float = 0.0) -> AsyncIterator[Scheduler]:
        scheduler = Scheduler(collector.sweep, collector.reclaim, thresholds, startup_delay_s=startup_delay_s)
        async with anyio.create_task_group() as group:
            group.start_soon(scheduler.run)
            yield scheduler
            group.cancel_scope.cancel()

    return run


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - what a scheduler did is seen from outside
            await anyio.sleep(0.001)


async def test_first_collection_follows_the_start(collector: Collector, running: Running) -> None:
    async with running(DEFAULTS):
        await until(lambda: collector.count == 1)


async def test_idle_scheduler_arms_no_timer(collector: Collector, running: Running) -> None:
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        scheduler.note(False)
        await anyio.sleep(0.1)
        assert collector.count == 1


async def test_deletion_is_collected_after_the_interval(collector: Collector, running: Running) -> None:
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        scheduler.note(True)
        await anyio.lowlevel.checkpoint()
        assert collector.count == 1
        await until(lambda: collector.count == 2)
        assert scheduler.statistics().deletions == 0


async def test_enough_mutations_are_collected(collector: Collector, running: Running) -> None:
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        for _ in range(100):
            scheduler.note(False)
        await until(lambda: collector.count == 2)


async def test_deletion_threshold_collects_at_once(
    collector: Collector, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "interval_s", lambda _average, _pause: NEVER_S)
    async with running(Thresholds(pause=0.02, deletions=2, mutations=100)) as scheduler:
        await until(lambda: collector.count == 1)
        scheduler.note(True)
        await anyio.sleep(0.02)
        assert collector.count == 1
        scheduler.note(True)
        await until(lambda: collector.count == 2)


async def test_requests_that_wait_together_share_one_collection(collector: Collector, running: Running) -> None:
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        results: list[Collected] = []

        async def ask() -> None:
            results.append(await scheduler.schedule_and_wait())

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
        assert collector.count == 2
        assert [r.removed for r in results] == [{"content": 2}] * 5


async def test_request_during_a_collection_gets_one_that_begins_after_it(
    collector: Collector, running: Running
) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def hold() -> None:
        begun.set()
        await go_on.wait()

    collector.during = hold
    async with running(DEFAULTS) as scheduler, anyio.create_task_group() as group:
        await begun.wait()
        group.start_soon(scheduler.schedule_and_wait)
        await anyio.lowlevel.checkpoint()
        go_on.set()
        await until(lambda: collector.count == 2)


async def test_request_waits_for_the_schedule_delay_and_not_for_the_timer(
    collector: Collector, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "interval_s", lambda _average, _pause: NEVER_S)
    async with running(Thresholds(pause=0.02, deletions=0, mutations=100, delay_s=0.03)) as scheduler:
        await until(lambda: collector.count == 1)
        started = anyio.current_time()
        await scheduler.schedule_and_wait()
        assert anyio.current_time() - started >= 0.03


async def test_failure_is_told_as_gc_failed_and_tried_again(collector: Collector, running: Running) -> None:
    async def fail() -> None:
        if collector.count == 2:
            raise OSError("disk")

    collector.during = fail
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        scheduler.note(True)
        with pytest.raises(Unknown, match=r"\Agc failed\Z"):
            await scheduler.schedule_and_wait()
        assert scheduler.statistics().failures == 1
        await until(lambda: collector.count == 3)


async def test_a_read_only_file_system_is_told_once_and_what_was_due_is_collected_afterwards(
    collector: Collector, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        if 2 <= collector.count < 5:
            raise ReadOnlyFileSystem("meta.db: read-only file system")

    collector.during = fail
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        scheduler.note(True)
        with pytest.raises(ReadOnlyFileSystem):
            await scheduler.schedule_and_wait()
        await until(lambda: collector.count == 5)
        await until(lambda: scheduler.statistics().deletions == 0)
    assert caplog.messages == ["garbage collection is put off: meta.db: read-only file system"]


async def test_sweeps_go_on_while_files_are_deleted(collector: Collector, running: Running) -> None:
    deleted = anyio.Event()
    collector.reclaiming = deleted.wait
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.reclaims == 1)
        scheduler.note(True)
        await until(lambda: collector.count == 2)
        assert collector.reclaims == 1
        deleted.set()
        await until(lambda: collector.reclaims == 2)


async def test_request_waits_until_the_files_are_deleted(collector: Collector, running: Running) -> None:
    deleted, answered = anyio.Event(), anyio.Event()
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.reclaims == 1)
        collector.reclaiming = deleted.wait

        async def ask() -> None:
            await scheduler.schedule_and_wait()
            answered.set()

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(lambda: collector.reclaims == 2)
            assert (answered.is_set(), scheduler.statistics().waiting) == (False, 1)
            deleted.set()
        assert answered.is_set()


async def test_files_that_cannot_be_deleted_fail_who_waits_and_nothing_else(
    collector: Collector, running: Running
) -> None:
    async def fail() -> None:
        if collector.reclaims == 2:
            raise OSError("disk")

    collector.reclaiming = fail
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.reclaims == 1)
        with pytest.raises(Unknown, match=r"\Agc failed\Z"):
            await scheduler.schedule_and_wait()
        await scheduler.schedule_and_wait()
        assert scheduler.statistics().failures == 1


async def test_request_to_a_scheduler_that_stops_fails(collector: Collector, running: Running) -> None:
    collector.during = anyio.sleep_forever
    failures: list[str] = []

    async def ask(scheduler: Scheduler) -> None:
        try:
            await scheduler.schedule_and_wait()
        except Unknown as error:
            failures.append(error.message)

    async with anyio.create_task_group() as group:
        async with running(DEFAULTS) as scheduler:
            group.start_soon(ask, scheduler)
            await until(lambda: collector.count == 1)
        await ask(scheduler)
    assert failures == ["gc failed"] * 2


async def test_cancelled_request_leaves_nothing(collector: Collector, running: Running) -> None:
    collector.during = anyio.sleep_forever
    async with running(DEFAULTS) as scheduler:
        await until(lambda: collector.count == 1)
        with anyio.move_on_after(0.01):
            await scheduler.schedule_and_wait()
        assert scheduler.statistics().waiting == 0
        assert "waiting=0" in repr(scheduler)


def test_interval_follows_the_average_and_the_pause_threshold() -> None:
    assert plan.interval_s(0.0, 0.02) == pytest.approx(0.245)
    assert plan.interval_s(0.1, 0.02) == pytest.approx(4.9)
    assert plan.interval_s(0.1, 0.0) == plan.FIRST_INTERVAL_S
    assert [plan.clamped_pause(p) for p in (-1, 0.3, 2)] == [0.0, 0.3, 0.5]


def test_due_and_urgent() -> None:
    assert not plan.is_due(Changes(99, 0), DEFAULTS)
    assert plan.is_due(Changes(100, 0), DEFAULTS)
    assert plan.is_due(Changes(1, 1), DEFAULTS)
    assert not plan.is_urgent(Changes(1000, 1000), DEFAULTS)
    assert plan.is_urgent(Changes(2, 2), Thresholds(pause=0, deletions=2, mutations=100))


async def test_registration_has_containerds_id_and_keys() -> None:
    (registration,) = register_plugins()
    assert registration.uri == "io.containerd.gc.v1.scheduler"
    config = Config()
    assert (config.pause_threshold, config.deletion_threshold, config.mutation_threshold) == (0.02, 0, 100)
    assert (config.schedule_delay, config.startup_delay) == (Duration("0s"), Duration("100ms"))
