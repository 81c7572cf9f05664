"""Guards: deadlines, cancellation, breakers, what passes through, what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Self

import anyio
import pytest
from anyio import from_thread, to_thread

from aiocontainerd import context, kinds
from aiocontainerd.errors import Cancelled, DeadlineExceeded, NotFound, ReadOnlyFileSystem, Unavailable, Unknown
from aiocontainerd.guard import call as guarded_call
from aiocontainerd.guard.dispatcher import Dispatcher
from aiocontainerd.guard.health import FIRST_PAUSE_S, OPENS_AFTER, PluginHealth
from aiocontainerd.guard.latencies import Latencies

pytestmark = pytest.mark.anyio

URI = "io.containerd.snapshotter.v1.acme"
OTHER = "io.containerd.snapshotter.v1.other"
SERVICE = "io.containerd.service.v1.acme-service"
LIMIT_S = 0.25
"""What is to be missed: shorter than any test waits, longer than a busy machine holds up the loop."""
LONG_S = 30.0
"""What is to be kept, however busy the machine."""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(autouse=True)
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_call, "GRACE_S", LONG_S)


@pytest.fixture
def short_grace(long_grace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For calls that are to be left behind."""
    monkeypatch.setattr(guarded_call, "GRACE_S", 0.1)
    monkeypatch.setattr(guarded_call, "_LEFT_POLL_S", 0.01)


class Acme:
    """A snapshotter whose calls do what a test wants."""

    colour = "green"

    def __init__(self, act: Callable[..., Awaitable[Any]] | None = None) -> None:
        self.act = act
        self.did: list[str] = []

    def __repr__(self) -> str:
        return "<Acme>"

    async def stat(self, key: str) -> Any:
        return await self.act(key) if self.act is not None else key

    async def prepare(self, key: str, parent: str = "", labels: object = None) -> Any:
        return key, parent, labels

    async def walk(self, filters: object = ()) -> AsyncIterator[int]:
        try:
            for number in range(200):
                if number == 150 and self.act is not None:
                    await self.act("walk")
                yield number
        finally:
            self.did.append("walk closed")

    async def extra(self) -> str:
        return "extra"


class Host:
    """A plugin and its guard."""

    def __init__(
        self, instance: Any, kind: str = kinds.SNAPSHOTTER, *, limit_s: float = LONG_S, uri: str = URI
    ) -> None:
        self.health = PluginHealth(uri)
        self.instance = instance
        self.guard: Any = Dispatcher(lambda _key: limit_s).guard(self.health, kind, instance)

    def method(self, name: str = "stat") -> Any:
        return self.health.methods[name]


async def ignore_cancellation(_key: str, until: anyio.Event) -> str:
    ends = anyio.current_time() + LONG_S
    while not until.is_set() and anyio.current_time() < ends:
        try:
            await until.wait()
        except asyncio.CancelledError:
            continue
    return "late"


async def hang(_key: str = "") -> None:
    await anyio.sleep_forever()


async def collect(host: Host, into: list[int]) -> None:
    async for number in host.guard.walk():
        into.append(number)  # noqa: PERF401 - what came before a failure is kept


def raising(error: BaseException) -> Callable[[str], Awaitable[Any]]:
    async def act(_key: str) -> Any:
        raise error

    return act


async def test_arguments_and_results_pass_as_they_are() -> None:
    host = Host(Acme())
    assert await host.guard.prepare("a", parent="b") == ("a", "b", None)
    assert await host.guard.stat("k") == "k"
    assert (host.method().calls, host.method().in_flight, host.method().errors) == (1, 0, 0)


async def test_what_the_interface_does_not_name_is_the_instances_own() -> None:
    host = Host(Acme())
    assert host.guard.colour == "green"
    assert await host.guard.extra() == "extra"
    assert repr(host.guard) == "<Acme>"
    assert isinstance(host.guard, Acme)
    assert not hasattr(host.guard, "commit")
    assert "extra" not in host.health.methods


@pytest.mark.parametrize("kind", [kinds.SERVICE, kinds.SNAPSHOTTER])
async def test_an_instance_with_nothing_to_guard_is_left_alone(kind: str) -> None:
    assert Dispatcher(lambda _key: LIMIT_S).guard(PluginHealth(URI), kind, "text") == "text"


async def test_namespace_lease_and_other_context_reach_the_plugin() -> None:
    colour: ContextVar[str] = ContextVar("colour", default="")

    async def act(_key: str) -> tuple[str, str]:
        return context.namespace(), colour.get()

    colour.set("red")
    with context.use(namespace="ns"):
        assert await Host(Acme(act)).guard.stat("k") == ("ns", "red")


async def test_an_error_of_a_class_passes_and_is_no_failure() -> None:
    host = Host(Acme(raising(NotFound("snapshot k does not exist"))))
    for _ in range(OPENS_AFTER + 1):
        with pytest.raises(NotFound, match="snapshot k does not exist"):
            await host.guard.stat("k")
    assert (host.method().errors, host.method().failures) == (OPENS_AFTER + 1, 0)
    assert host.health.last_error == "stat: snapshot k does not exist"


async def test_a_hang_is_told_with_plugin_method_limit_and_class() -> None:
    host = Host(Acme(hang), limit_s=LIMIT_S)
    with pytest.raises(DeadlineExceeded) as caught:
        await host.guard.stat("k")
    text = str(caught.value)
    assert text.startswith(
        f"plugin {URI}: stat took longer than 250ms (io.containerd.timeout.plugin.quick), waiting at {__file__}:"
    )
    assert ", given up after " in text
    assert (host.method().expired, host.method().in_flight, host.health.abandoned) == (1, 0, set())


async def test_plugins_that_wait_for_each_other_are_told_in_the_order_of_their_calls() -> None:
    async def of_one(key: str) -> object:
        if key == "again":
            await anyio.Event().wait()
        return await others[1].guard.stat(key)

    async def of_other(_key: str) -> object:
        return await others[0].guard.stat("again")

    others = [Host(Acme(of_one), limit_s=LIMIT_S), Host(Acme(of_other), limit_s=LIMIT_S, uri=OTHER)]
    with pytest.raises(DeadlineExceeded) as caught:
        await others[0].guard.stat("k")
    assert f", called in a circle ({URI} -> {OTHER} -> {URI}), given up after " in str(caught.value)


async def test_the_library_of_python_is_no_place_where_a_plugin_waits() -> None:
    lock = asyncio.Lock()

    async def wait(_key: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(lock)

    await lock.acquire()
    call = Host(Acme(wait), limit_s=LIMIT_S).guard.stat("k")
    with pytest.raises(DeadlineExceeded, match=rf"waiting at {__file__}:\d+, given up"):
        await call


@pytest.mark.parametrize(("error", "more"), [(TimeoutError(), ""), (TimeoutError("registry"), ": registry")])
async def test_a_deadline_of_the_plugins_own_is_called_its_own(error: TimeoutError, more: str) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await Host(Acme(raising(error))).guard.stat("k")
    assert str(caught.value) == f"plugin {URI}: stat missed a deadline of its own{more}"
    slow_disk = OSError(errno.ETIMEDOUT, "Connection timed out", "/nfs")
    with pytest.raises(TimeoutError, match="/nfs"):
        await Host(Acme(raising(slow_disk))).guard.stat("k")


async def test_calls_that_begin_later_expire_later() -> None:
    host = Host(Acme(hang), limit_s=LIMIT_S)
    took: list[float] = []

    async def call(after_s: float) -> None:
        await anyio.sleep(after_s)
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded):
            await host.guard.stat("k")
        took.append(anyio.current_time() - began)

    async with anyio.create_task_group() as group:
        for after_s in (0, 0.03, 0.06):
            group.start_soon(call, after_s)
    assert len(took) == 3
    assert min(took) >= LIMIT_S * 0.9


@pytest.mark.usefixtures("short_grace")
async def test_what_ignores_cancellation_is_left_behind_and_the_caller_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    until = anyio.Event()
    host = Host(Acme(lambda key: ignore_cancellation(key, until)), limit_s=LIMIT_S)
    with anyio.fail_after(20), pytest.raises(DeadlineExceeded, match="was left running"):
        await host.guard.stat("k")
    assert (host.method().abandoned, len(host.health.abandoned), host.method().in_flight) == (1, 1, 0)
    assert f"plugin {URI}: stat did not end within" in caplog.text
    assert __file__ in caplog.text
    until.set()
    await anyio.wait_all_tasks_blocked()
    assert host.health.abandoned == set()


async def test_a_cancelled_caller_is_free_when_the_plugin_has_cleaned_up() -> None:
    did: list[str] = []

    async def act(_key: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await asyncio.sleep(0.02)
            did.append("cleaned up")

    host = Host(Acme(act))
    with anyio.move_on_after(0.03) as scope:
        await host.guard.stat("k")
    assert scope.cancelled_caught
    assert did == ["cleaned up"]
    assert (host.method().cancelled, host.method().failures, host.method().errors) == (1, 0, 0)


@pytest.mark.usefixtures("short_grace")
async def test_a_cancelled_caller_does_not_wait_for_what_ignores_it() -> None:
    until = anyio.Event()
    host = Host(Acme(lambda key: ignore_cancellation(key, until)))
    with anyio.fail_after(20), anyio.move_on_after(0.02) as scope:
        await host.guard.stat("k")
    assert scope.cancelled_caught
    assert host.method().abandoned == 1
    until.set()
    await anyio.wait_all_tasks_blocked()


async def test_a_shielded_part_is_finished_and_its_work_counts() -> None:
    async def act(_key: str) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(LIMIT_S + 0.05)
        return "committed"

    host = Host(Acme(act), limit_s=LIMIT_S)
    assert await host.guard.stat("k") == "committed"
    assert host.method().failures == 0


async def test_a_thread_may_look_whether_its_call_is_cancelled() -> None:
    saw: list[str] = []

    def copy() -> None:
        while True:
            time.sleep(0.005)
            try:
                from_thread.check_cancelled()
            except asyncio.CancelledError:
                saw.append("cancelled")
                raise

    host = Host(Acme(lambda _key: to_thread.run_sync(copy)), limit_s=LIMIT_S)
    with pytest.raises(DeadlineExceeded):
        await host.guard.stat("k")
    assert saw == ["cancelled"]
    assert host.method().abandoned == 0


async def test_a_call_cancelled_before_it_began_ends_at_once() -> None:
    host = Host(Acme())
    began = time.monotonic()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await host.guard.stat("k")
    assert time.monotonic() - began < LONG_S / 2
    assert (host.method().in_flight, host.method().abandoned) == (0, 0)


@pytest.mark.usefixtures("short_grace")
async def test_what_ignores_cancellation_after_a_shield_does_not_busy_the_loop() -> None:
    until = anyio.Event()

    async def act(key: str) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(LIMIT_S + 0.05)
        return await ignore_cancellation(key, until)

    host = Host(Acme(act), limit_s=LIMIT_S)
    with pytest.raises(DeadlineExceeded, match="was left running"):
        await host.guard.stat("k")
    await anyio.sleep(0.15)
    used = time.process_time()
    await anyio.sleep(0.2)
    assert time.process_time() - used < 0.1
    until.set()
    await anyio.wait_all_tasks_blocked()


async def test_a_plugin_that_cancels_itself_cancels_no_caller() -> None:
    host = Host(Acme(raising(asyncio.CancelledError())))
    with pytest.raises(Cancelled, match="cancelled by the plugin itself"):
        await host.guard.stat("k")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_a_plugin_ends_nothing_but_its_call(error: BaseException) -> None:
    with pytest.raises(Unknown, match=type(error).__name__):
        await Host(Acme(raising(error))).guard.stat("k")


async def test_a_read_only_file_system_is_an_answer_that_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def make(key: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", f"/layers/{key}")

    host = Host(Acme(make))
    for _ in range(OPENS_AFTER + 1):
        with pytest.raises(ReadOnlyFileSystem, match=r"^/layers/a: read-only file system$"):
            await host.guard.stat("a")
    assert host.method().failures == 0
    assert (host.health.read_only, host.health.refused_in) == (True, {"/layers"})
    assert [record.getMessage() for record in caplog.records] == [
        f"plugin {URI} refuses changes: /layers/a: read-only file system"
    ]


async def test_five_failures_in_a_row_open_the_breaker_and_a_trial_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(Acme(raising(OSError("disk on fire"))))
    for _ in range(OPENS_AFTER):
        with pytest.raises(OSError, match="disk on fire"):
            await host.guard.stat("k")
    now = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        await host.guard.stat("k")
    refusal, _, when = str(refused.value).partition("); tried again in ")
    assert when
    assert refusal.startswith(
        f"plugin {URI}: stat is refused after 5 failures in a row (the last: OSError: disk on fire (tests/test_guard"
    )
    assert await host.guard.prepare("other") == ("other", "", None)
    host.instance.act = None
    monkeypatch.setattr("time.monotonic", lambda: now + FIRST_PAUSE_S + 1)
    assert await host.guard.stat("k") == "k"
    assert host.method().failures == 0


async def test_what_a_client_is_told_is_no_failure_whatever_its_class() -> None:
    host = Host(Acme(raising(Unknown("OCI runtime create failed: no such program"))))
    for _ in range(OPENS_AFTER + 1):
        with pytest.raises(Unknown, match="no such program"):
            await host.guard.stat("k")
    assert host.method().failures == 0


async def test_a_runtime_that_says_what_is_wrong_is_never_refused() -> None:
    host = Host(Launcher(DeadlineExceeded("the shim of c did not answer")), kinds.SHIM_LAUNCHER)
    for _ in range(OPENS_AFTER + 1):
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await host.guard.start("shim", timeout_s=1.0)
    assert (host.method("start").errors, host.method("start").failures) == (OPENS_AFTER + 1, 0)


async def test_a_runtime_that_breaks_is_refused_but_for_what_cleans_up(caplog: pytest.LogCaptureFixture) -> None:
    host = Host(Launcher(OSError("no memory")), kinds.SHIM_LAUNCHER)
    for _ in range(OPENS_AFTER + 1):
        with pytest.raises(OSError, match="no memory"):
            await host.guard.delete("shim", timeout_s=1.0)
    assert "delete failed 5 times in a row; calls go on: none is refused" in caplog.text
    for _ in range(OPENS_AFTER):
        with pytest.raises(OSError, match="no memory"):
            await host.guard.start("shim", timeout_s=1.0)
    with pytest.raises(Unavailable, match="start is refused after 5 failures in a row"):
        await host.guard.start("shim", timeout_s=1.0)
    assert (host.method("delete").retry_s, host.method("start").retry_s > 0) == (0.0, True)


class Launcher:
    """Fails at all it is asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def start(self, command: str, *, timeout_s: float) -> bytes:
        raise self.error

    async def delete(self, command: str, *, timeout_s: float) -> bytes:
        raise self.error


class View:
    """A service that is nothing but a way to a plugin."""

    def __init__(self, below: Any, own_s: float = 0.0, before_s: float = 0.0) -> None:
        self.below = below
        self.own_s, self.before_s = own_s, before_s

    async def stat(self, key: str) -> Any:
        await anyio.sleep(self.before_s)
        result = await self.below.stat(key)
        await anyio.sleep(self.own_s)
        return result

    async def items(self) -> AsyncIterator[int]:
        async for number in self.below.walk():
            yield number
            if number == 10:
                await anyio.sleep(self.own_s)


def chain(instance: Any, limits: dict[str, float], *, own_s: float = 0.0, before_s: float = 0.0) -> tuple[Host, Host]:
    """Return a plugin, and a service of another one that shows it; `limits` are of their URIs."""
    dispatcher = Dispatcher(lambda key: next(limit for uri, limit in limits.items() if key.endswith(uri)))
    below, above = Host(instance), Host(View(None))
    below.guard = dispatcher.guard(below.health, kinds.SNAPSHOTTER, instance)
    above.health = PluginHealth(SERVICE)
    above.guard = dispatcher.guard(above.health, kinds.SERVICE, View(below.guard, own_s, before_s))
    return below, above


async def test_the_one_that_hangs_is_told_and_not_who_waits_for_it() -> None:
    below, above = chain(Acme(hang), {URI: LIMIT_S, SERVICE: LIMIT_S})
    for _ in range(OPENS_AFTER):
        with pytest.raises(DeadlineExceeded, match=f"plugin {URI}: stat took longer"):
            await above.guard.stat("k")
    with pytest.raises(Unavailable, match=f"plugin {URI}: stat is refused"):
        await above.guard.stat("k")
    assert (below.method().failures, below.method().expired) == (OPENS_AFTER, OPENS_AFTER)
    assert (above.method().failures, above.method().expired, above.method().errors) == (0, 0, OPENS_AFTER + 1)


async def test_what_another_plugin_raises_counts_against_that_one_alone() -> None:
    below, above = chain(Acme(raising(OSError("disk on fire"))), {URI: LIMIT_S, SERVICE: LIMIT_S})
    with pytest.raises(OSError, match="disk on fire"):
        await above.guard.stat("k")
    assert (below.method().failures, above.method().failures) == (1, 0)


async def test_a_callers_clock_stands_still_while_another_plugin_works() -> None:
    async def slow(key: str) -> str:
        await anyio.sleep(LIMIT_S * 2)
        return key

    _, above = chain(Acme(slow), {URI: LONG_S, SERVICE: LIMIT_S})
    assert await above.guard.stat("k") == "k"
    assert above.method().expired == 0


@pytest.mark.parametrize("when", ["own_s", "before_s"])
async def test_a_callers_own_time_is_limited(when: str) -> None:
    async def slow(key: str) -> str:
        await anyio.sleep(LIMIT_S * 1.5)
        return key

    _, above = chain(Acme(slow), {URI: LONG_S, SERVICE: LIMIT_S}, **{when: LONG_S})
    began = anyio.current_time()
    with pytest.raises(DeadlineExceeded, match=f"plugin {SERVICE}: stat took longer than 250ms"):
        await above.guard.stat("k")
    assert anyio.current_time() - began < LONG_S


async def test_a_streams_clock_stands_still_while_another_plugin_works() -> None:
    async def slow(_key: str) -> None:
        await anyio.sleep(LIMIT_S * 2)

    _, above = chain(Acme(slow), {URI: LONG_S, SERVICE: LIMIT_S})
    assert [number async for number in above.guard.items()] == list(range(200))
    _, above = chain(Acme(), {URI: LONG_S, SERVICE: LIMIT_S}, own_s=LONG_S)
    with pytest.raises(DeadlineExceeded, match=f"plugin {SERVICE}: items took longer than 250ms"):
        _ = [number async for number in above.guard.items()]


@pytest.mark.usefixtures("short_grace")
async def test_who_waits_for_a_call_that_ignores_its_cancellation_is_not_left_behind_with_it() -> None:
    until = anyio.Event()
    below, above = chain(Acme(lambda key: ignore_cancellation(key, until)), {URI: LONG_S, SERVICE: LONG_S})
    with anyio.fail_after(20), anyio.move_on_after(0.02):
        await above.guard.stat("k")
    assert (below.method().abandoned, above.method().abandoned) == (1, 0)
    until.set()
    await anyio.wait_all_tasks_blocked()


async def test_deadlines_that_change_are_those_of_the_next_call() -> None:
    limits = {"quick": LIMIT_S}
    health = PluginHealth(URI)
    dispatcher = Dispatcher(lambda _key: limits["quick"])
    guard = dispatcher.guard(health, kinds.SNAPSHOTTER, Acme(hang))
    limits["quick"] = LIMIT_S / 2
    with pytest.raises(DeadlineExceeded, match="took longer than 250ms"):
        await guard.stat("k")
    dispatcher.set_deadlines()
    with pytest.raises(DeadlineExceeded, match="took longer than 125ms"):
        await guard.stat("k")
    limits["quick"] = 0.0
    dispatcher.set_deadlines()
    with anyio.move_on_after(LIMIT_S * 2) as scope:
        await guard.stat("k")
    assert scope.cancelled_caught
    assert health.methods["stat"].limit_s == 0.0


@pytest.mark.parametrize(
    ("key", "seconds", "limit_s"),
    [("", 0.0, 205.0), ("plugin.task", 1000.0, 1000.0), ("plugin.task", 0.0, 0.0), ("shim.create", 0.0, 0.0)],
)
async def test_the_deadline_of_a_task_is_above_those_of_its_shim(key: str, seconds: float, limit_s: float) -> None:
    given = {"plugin.task": 1.0, "shim.start": 30.0, "shim.load": 5.0, "shim.create": 120.0, "shim.cleanup": 5.0}
    given |= {"shim.shutdown": 5.0, **({key: seconds} if key else {})}
    health = PluginHealth(URI)
    dispatcher = Dispatcher(lambda asked: given[asked.removeprefix("io.containerd.timeout.").removesuffix(f".{URI}")])
    dispatcher.guard(health, kinds.SHIM_LAUNCHER, Launcher(OSError()))
    assert health.methods["start"].limit_s == limit_s


async def test_a_trial_that_fails_doubles_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(Acme(raising(OSError("disk on fire"))))
    for _ in range(OPENS_AFTER):
        with pytest.raises(OSError, match="disk on fire"):
            await host.guard.stat("k")
    monkeypatch.setattr(host.method(), "_reopens_at", 0.0)
    with pytest.raises(OSError, match="disk on fire"):
        await host.guard.stat("k")
    assert FIRST_PAUSE_S < host.method().retry_s <= 2 * FIRST_PAUSE_S
    with pytest.raises(Unavailable):
        await host.guard.stat("k")


async def test_only_one_call_tries_an_open_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(Acme(raising(OSError("disk on fire"))))
    for _ in range(OPENS_AFTER):
        with pytest.raises(OSError, match="disk on fire"):
            await host.guard.stat("k")
    monkeypatch.setattr(host.method(), "_reopens_at", 0.0)
    host.instance.act = hang
    async with anyio.create_task_group() as group:
        group.start_soon(host.guard.stat, "k")
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Unavailable, match="it is being tried again now"):
            await host.guard.stat("k")
        group.cancel_scope.cancel()
    host.instance.act = None
    assert await host.guard.stat("k") == "k", "a trial whose caller left is no verdict"


async def test_a_method_that_is_not_async_is_told_how_to_be() -> None:
    host = Host(Acme())
    host.instance.stat = lambda key: key  # an attribute of the instance is what is called
    with pytest.raises(Unknown, match="stat gave str, which cannot be awaited; declare it with async def"):
        await host.guard.stat("k")


async def test_a_stream_gives_every_item_in_order() -> None:
    host = Host(Acme())
    assert [number async for number in host.guard.walk()] == list(range(200))
    assert host.instance.did == ["walk closed"]


async def test_a_stream_that_hangs_expires_after_the_items_that_came() -> None:
    host = Host(Acme(hang), limit_s=LIMIT_S)
    came: list[int] = []
    with pytest.raises(DeadlineExceeded, match="walk took longer than 250ms"):
        await collect(host, came)
    assert came == list(range(150))
    assert host.instance.did == ["walk closed"]


async def test_a_stream_that_fails_says_so_after_its_items() -> None:
    host = Host(Acme(raising(OSError("disk on fire"))))
    came: list[int] = []
    with pytest.raises(OSError, match="disk on fire"):
        await collect(host, came)
    assert came == list(range(150))


async def test_a_reader_that_stops_early_ends_the_stream() -> None:
    host = Host(Acme())
    stream = host.guard.walk()
    assert await anext(stream) == 0
    await stream.aclose()
    assert host.instance.did == ["walk closed"]
    assert host.method("walk").failures == 0


async def test_a_slow_reader_is_not_the_streams_fault() -> None:
    host = Host(Acme(), limit_s=LIMIT_S)
    came = 0
    async for _ in host.guard.walk():
        came += 1
        if came == 100:
            await anyio.sleep(LIMIT_S * 1.5)
    assert came == 200


async def test_a_stream_that_is_none_is_told_how_to_be() -> None:
    class Lists:
        async def walk(self, filters: object = ()) -> list[int]:
            return [1]

    with pytest.raises(Unknown, match="walk gave coroutine, which is no asynchronous iterator"):
        _ = [item async for item in Host(Lists()).guard.walk()]


class Writer:
    """A content writer that remembers whether it was closed."""

    offset = 7

    def __init__(self) -> None:
        self.closed = 0

    async def write(self, data: bytes) -> None:
        if not data:
            await anyio.sleep_forever()

    async def close(self) -> None:
        self.closed += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


class Store:
    """A content store that opens one writer, when it is told to."""

    def __init__(self) -> None:
        self.opened = Writer()
        self.delay_s = 0.0

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> Writer:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(self.delay_s)
        return self.opened


async def test_the_resource_a_method_gives_is_guarded_too() -> None:
    host = Host(Store(), kinds.CONTENT, limit_s=LIMIT_S)
    async with await host.guard.writer("r") as writer:
        assert writer.offset == 7
        await writer.write(b"x")
        with pytest.raises(DeadlineExceeded, match=r"writer\.write took longer than 250ms"):
            await writer.write(b"")
    assert host.instance.opened.closed == 1
    assert host.method("writer.write").calls == 2


async def test_a_resource_that_reaches_nobody_is_closed() -> None:
    host = Host(Store(), kinds.CONTENT)
    host.instance.delay_s = 0.05
    with anyio.move_on_after(0.02):
        await host.guard.writer("r")
    assert host.instance.opened.closed == 1


async def test_a_caller_cancelled_as_the_result_comes_leaves_no_resource() -> None:
    host = Host(Store(), kinds.CONTENT)
    caller = asyncio.ensure_future(host.guard.writer("r"))
    while not host.health.methods["writer"].calls:  # noqa: ASYNC110 - the very iteration in which the result is set
        await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert host.instance.opened.closed == 1


class NewTasks:
    """The tasks that run inside of a plugin's method and did not run before."""

    def __init__(self) -> None:
        self._before = asyncio.all_tasks()
        self.names: list[str] = []

    async def __call__(self, _key: str = "") -> str:
        self.names = sorted(task.get_name() for task in asyncio.all_tasks() - self._before)
        return "k"


async def test_a_call_is_one_task() -> None:
    tasks = NewTasks()
    await Host(Acme(tasks)).guard.stat("k")
    assert tasks.names == [f"{URI}: stat"]


async def test_a_stream_is_one_task() -> None:
    tasks = NewTasks()
    assert [number async for number in Host(Acme(tasks)).guard.walk()] == list(range(200))
    assert tasks.names == [f"{URI}: walk"]


async def test_a_call_that_gives_a_resource_is_one_task_and_so_is_each_call_of_the_resource() -> None:
    tasks = NewTasks()

    class Noting(Store):
        async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> Writer:
            await tasks()
            return NotingWriter()

    class NotingWriter(Writer):
        async def write(self, data: bytes) -> None:
            await tasks()

    writer = await Host(Noting(), kinds.CONTENT).guard.writer("r")
    assert tasks.names == [f"{URI}: writer"]
    await writer.write(b"x")
    assert tasks.names == [f"{URI}: writer.write"]


async def test_a_call_through_two_plugins_is_two_tasks() -> None:
    tasks = NewTasks()
    _, above = chain(Acme(tasks), {URI: LONG_S, SERVICE: LONG_S})
    await above.guard.stat("k")
    assert tasks.names == [f"{SERVICE}: stat", f"{URI}: stat"]


async def test_what_another_plugins_guard_gave_is_not_guarded_again() -> None:
    dispatcher = Dispatcher(lambda _key: LONG_S)
    below = dispatcher.guard(PluginHealth(URI), kinds.SNAPSHOTTER, Acme())
    assert dispatcher.guard(PluginHealth(SERVICE), kinds.SERVICE, below) is below


def test_quantiles_are_within_a_quarter() -> None:
    latencies = Latencies()
    for microseconds in range(1, 1001):
        latencies.observe(microseconds / 1e6)
    assert latencies.quantile_s(0.5) == pytest.approx(500e-6, rel=0.25)
    assert latencies.quantile_s(0.99) == pytest.approx(990e-6, rel=0.25)
    assert Latencies().quantile_s(0.5) == 0.0


def test_bounds_rise_and_hold_what_was_counted_below_them() -> None:
    bounds = [Latencies.bound_s(bucket) for bucket in range(144)]
    assert bounds == sorted(set(bounds))
    for seconds in (0.0, 1e-6, 3.3e-6, 0.01, 2.0, 3600.0, 1e9):
        latencies = Latencies()
        latencies.observe(seconds)
        bucket = latencies.counts.index(1)
        assert seconds < bounds[bucket] or bucket == 143
        assert bucket == 0 or seconds >= bounds[bucket - 1] * 0.999


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("aiocontainerd").setLevel(logging.DEBUG)
    yield
    logging.getLogger("aiocontainerd").setLevel(logging.NOTSET)
