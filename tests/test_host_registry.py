"""Plugins: order, outcomes, what each one is given, and that one cannot hold up the others."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from aiocontainerd.config import ConfigError
from aiocontainerd.errors import FailedPrecondition, NotFound, Unavailable
from aiocontainerd.events import EventBus
from aiocontainerd.host import leftovers, life
from aiocontainerd.host.daemon_info import DaemonInfo
from aiocontainerd.host.registration import PluginError
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import InitContext, Plugin, PluginConfig, Registration, SkipPlugin, State, kinds

CONTENT, METADATA, SNAPSHOTTER = kinds.CONTENT, kinds.METADATA, kinds.SNAPSHOTTER
ADDRESS = "/run/acme/a.sock"
Init = Callable[[InitContext[Any]], Awaitable[object]]
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Host:
    """A registry, the daemon it runs in, and what its plugins did."""

    def __init__(self, directory: Path, timeout_s: float = 5.0) -> None:
        self.directory = directory
        self.registry = Registry()
        self.did: list[str] = []
        self.stuck: list[str] = []
        self.timeout_s = timeout_s

    def add(
        self, kind: str, plugin_id: str, *requires: str, init: Init | None = None, distribution: str = ""
    ) -> Plugin:
        async def load(context: InitContext[Any]) -> object:
            self.did.append(f"init {plugin_id}")
            context.on_stop(self.note(f"stop {plugin_id}"))
            return await init(context) if init is not None else f"instance of {plugin_id}"

        return self.registry.add(Registration(kind=kind, id=plugin_id, requires=requires, init=load), distribution)

    def note(self, text: str) -> Callable[[], Awaitable[object]]:
        async def act() -> None:
            self.did.append(text)

        return act

    def run(self, required: Sequence[str] = ()) -> AbstractAsyncContextManager[None]:
        daemon = DaemonInfo(
            root=self.directory / "root",
            state=self.directory / "state",
            temp=self.directory,
            grpc_address=ADDRESS,
            ttrpc_address="",
            bus=EventBus(),
            plugins=lambda: self.registry.plugins,
            timeout_s=lambda _key: self.timeout_s,
        )
        return self.registry.run(
            daemon, lambda r: r.config(), required, last_resort=lambda stuck, _failure: self.stuck.extend(stuck)
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


RAISED_AT = "(tests/test_host_registry.py:89 in init)"


def raising(error: BaseException) -> Init:
    async def init(_context: InitContext[Any]) -> object:
        raise error

    return init


async def hang(_context: object = None) -> object:
    await anyio.sleep_forever()
    return None


async def test_a_plugin_starts_after_everything_it_requires(host: Host) -> None:
    host.add(CONTENT, "a", METADATA)
    host.add(METADATA, "m", SNAPSHOTTER)
    host.add(SNAPSHOTTER, "z")
    async with host.run():
        assert host.did == ["init z", "init m", "init a"]
        assert [plugin.id for plugin in host.registry.plugins] == ["z", "m", "a"]


async def test_all_requires_everything_that_is_no_server(host: Host) -> None:
    host.add("a.server", "one", kinds.ALL)
    host.add("a.server", "two", kinds.ALL)
    host.add(SNAPSHOTTER, "z")
    async with host.run():
        assert host.did == ["init z", "init one", "init two"]


async def test_a_circular_need_is_told_as_the_circle_and_the_others_start(host: Host) -> None:
    circle = [host.add(CONTENT, "c", METADATA), host.add(METADATA, "m", CONTENT)]
    host.add(SNAPSHOTTER, "s")
    async with host.run():
        assert {plugin.reason for plugin in circle} == {
            "plugins require each other in a circle: "
            "io.containerd.content.v1.c -> io.containerd.metadata.v1.m -> io.containerd.content.v1.c"
        }
        assert host.did == ["init s"]


async def test_of_a_circle_only_those_fail_that_are_not_the_daemons_own(host: Host) -> None:
    own = Plugin(Registration(kind=METADATA, id="m", requires=(CONTENT,), init=raising(OSError("unused"))))
    other = Plugin(Registration(kind=CONTENT, id="c", requires=(METADATA,), init=raising(OSError("unused"))), "acme")
    registry = Registry()
    registry.add(own.registration, "aiocontainerd-metadata-sqlite")
    registry.add(other.registration, "acme")
    assert [plugin.uri for plugin in registry.order()] == [own.uri]
    assert registry[other.uri].state == State.FAILED


async def test_a_plugin_may_require_its_own_kind(host: Host) -> None:
    host.add(SNAPSHOTTER, "a", SNAPSHOTTER, init=lambda context: context_names(context, SNAPSHOTTER))
    host.add(SNAPSHOTTER, "b")
    async with host.run():
        assert host.registry["io.containerd.snapshotter.v1.a"].instance == ["b"]


async def context_names(context: InitContext[Any], kind: str) -> list[str]:
    return sorted(context.get_all(kind))


async def test_a_duplicate_names_both_distributions() -> None:
    registry = Registry()
    one = Registration(kind=SNAPSHOTTER, id="acme", init=hang)
    registry.add(one, "acme-snapshots")
    with pytest.raises(PluginError) as failed:
        registry.add(one, "other-snapshots")
    assert str(failed.value) == (
        "plugin io.containerd.snapshotter.v1.acme is registered twice: by acme-snapshots and by other-snapshots; "
        "choose another id"
    )


@pytest.mark.parametrize("names", [("aiocontainerd-native", "acme"), ("acme", "aiocontainerd-native")])
async def test_a_plugin_of_the_daemon_is_replaced_where_the_config_says_so(names: tuple[str, str]) -> None:
    one = Registration(kind=SNAPSHOTTER, id="native", init=hang)
    registry = Registry(replaceable=[one.uri])
    for name in names:
        registry.add(one, name)
    assert registry[one.uri].distribution == "acme"
    with pytest.raises(PluginError, match=r"is registered twice: by acme and by other; choose another id$"):
        registry.add(one, "other")


async def test_a_plugin_of_the_daemon_is_not_replaced_by_itself() -> None:
    one = Registration(kind=SNAPSHOTTER, id="native", init=hang)
    registry = Registry()
    registry.add(one, "aiocontainerd-native")
    with pytest.raises(PluginError, match=r", or name \S+ in plugin_policy\.replace$"):
        registry.add(one, "acme")


async def test_skip_and_fail_are_two_outcomes(host: Host) -> None:
    skipped = host.add(SNAPSHOTTER, "a", init=raising(SkipPlugin("no overlayfs here")))
    failed = host.add(SNAPSHOTTER, "b", init=raising(RuntimeError("disk on fire")))
    classed = host.add(SNAPSHOTTER, "c", init=raising(FailedPrecondition("wrong disk")))
    wordless = host.add(SNAPSHOTTER, "d", init=raising(KeyError()))
    async with host.run():
        assert (skipped.state, skipped.reason, skipped.code) == (State.SKIPPED, "no overlayfs here: skip plugin", 2)
        assert (failed.state, failed.reason, failed.code) == (
            State.FAILED,
            f"RuntimeError: disk on fire {RAISED_AT}",
            2,
        )
        assert (classed.state, classed.reason, classed.code) == (State.FAILED, "wrong disk", 9)
        assert wordless.reason == f"KeyError {RAISED_AT}"
        assert host.registry.statistics() == {"skip": 1, "error": 3}


async def test_a_plugin_that_fails_gives_back_what_it_took(host: Host) -> None:
    host.add(SNAPSHOTTER, "a", init=raising(RuntimeError("no")))
    host.add(SNAPSHOTTER, "b")
    async with host.run():
        assert host.did == ["init a", "stop a", "init b"]


async def test_what_needs_a_failed_plugin_says_the_root_cause(host: Host) -> None:
    host.add(METADATA, "m", init=raising(RuntimeError("disk on fire")))
    needs = host.add(CONTENT, "c", METADATA)
    further = host.add(SNAPSHOTTER, "s", CONTENT)
    async with host.run():
        assert needs.reason == "requires io.containerd.metadata.v1.m, which is not loaded"
        assert (needs.state, needs.code) == (State.FAILED, 5)
        assert needs.caused_by == further.caused_by == "io.containerd.metadata.v1.m"
        assert host.did == ["init m", "stop m"]


async def test_what_is_only_wanted_starts_before_and_may_fail(host: Host) -> None:
    host.registry.add(Registration(kind=CONTENT, id="c", wants=(METADATA,), init=raising(SkipPlugin("seen"))))
    wanted = host.add(METADATA, "m", init=raising(RuntimeError("disk on fire")))
    async with host.run():
        assert [plugin.id for plugin in host.registry.plugins] == ["m", "c"]
        assert wanted.state == State.FAILED
        assert host.registry["io.containerd.content.v1.c"].reason == "seen: skip plugin"


async def test_one_failed_plugin_of_a_kind_is_no_missing_need(host: Host) -> None:
    host.add(SNAPSHOTTER, "a", init=raising(RuntimeError("no")))
    host.add(SNAPSHOTTER, "b")
    needs = host.add(CONTENT, "c", SNAPSHOTTER)
    async with host.run():
        assert needs.state == State.LOADED


async def test_asking_for_a_failed_plugin_says_why_it_is_absent_and_makes_it_the_cause(host: Host) -> None:
    async def init(context: InitContext[Any]) -> object:
        return context.get(SNAPSHOTTER, "a")

    host.add(SNAPSHOTTER, "a", init=raising(RuntimeError("no disk")))
    host.add(SNAPSHOTTER, "b")
    needs = host.add(CONTENT, "c", SNAPSHOTTER, init=init)
    async with host.run():
        assert needs.reason == f"plugin io.containerd.snapshotter.v1.a (RuntimeError: no disk {RAISED_AT})"
        assert needs.caused_by == "io.containerd.snapshotter.v1.a"


async def test_single_and_named_instances_are_found_or_said_to_be_missing(host: Host) -> None:
    async def init(context: InitContext[Any]) -> object:
        with pytest.raises(NotFound, match=r"plugin io\.containerd\.content\.v1\.none"):
            context.get(CONTENT, "none")
        with pytest.raises(NotFound, match=r"no plugins registered for io\.containerd\.content\.v1"):
            context.get_single(CONTENT)
        with pytest.raises(
            PluginError, match=r"several plugins of kind .* \(a, b\), one is needed; name the others in dis"
        ):
            context.get_single(SNAPSHOTTER)
        assert context.get_single(METADATA) == context.get(METADATA, "m") == "instance of m"
        assert context.get_all(CONTENT) == {}
        return object()

    for kind, plugin_id in ((SNAPSHOTTER, "a"), (SNAPSHOTTER, "b"), (METADATA, "m")):
        host.add(kind, plugin_id)
    asks = host.add(kinds.GC, "g", SNAPSHOTTER, METADATA, init=init)
    async with host.run():
        assert asks.state == State.LOADED, asks.reason


async def test_one_of_ours_beside_that_of_another_package_is_the_one_to_disable(host: Host) -> None:
    async def init(context: InitContext[Any]) -> object:
        return context.get_single(CONTENT)

    host.add(CONTENT, "content", distribution="aiocontainerd-content-local")
    host.add(CONTENT, "acme", distribution="acme")
    needs = host.add(METADATA, "m", CONTENT, init=init)
    async with host.run():
        assert needs.reason.endswith(
            '(acme, content), one is needed; to use the other: disabled_plugins = ["io.containerd.content.v1.content"]'
        )


async def test_an_init_that_calls_the_daemon_by_its_socket_is_told_when_that_is_served(host: Host) -> None:
    asks = host.add(CONTENT, "c", init=raising(Unavailable(f"connection to {ADDRESS}: no such file or directory")))
    async with host.run():
        assert asks.reason.startswith(f"connection to {ADDRESS}: no such file or directory, the daemon's own socket, ")
        assert "after `await context.ready()`" in asks.reason


async def test_disabled_plugins_are_not_started_and_strangers_are_returned(host: Host) -> None:
    plugin = host.add(SNAPSHOTTER, "a")
    assert host.registry.disable([plugin.uri, "io.containerd.snapshotter.v1.none"]) == [
        "io.containerd.snapshotter.v1.none"
    ]
    async with host.run():
        assert (plugin.state, plugin.reason) == (State.DISABLED, "disabled by configuration")
        assert host.did == []


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("io.containerd.content.v1.none", "required plugin io.containerd.content.v1.none is not installed"),
        (
            "io.containerd.snapshotter.v1.bad",
            "required plugin io.containerd.snapshotter.v1.bad is not loaded (error): "
            f"RuntimeError: no disk {RAISED_AT}",
        ),
    ],
)
async def test_a_required_plugin_that_is_absent_stops_what_started(host: Host, uri: str, text: str) -> None:
    host.add(SNAPSHOTTER, "bad", init=raising(RuntimeError("no disk")))
    host.add(METADATA, "good")
    with pytest.raises(PluginError) as failed:
        async with host.run([uri]):
            raise AssertionError("must not run")
    assert str(failed.value) == text
    assert host.did[-1] == "stop good"


async def test_plugins_stop_in_reverse_order_and_callbacks_last_first(host: Host) -> None:
    async def two(context: InitContext[Any]) -> object:
        context.on_stop(host.note("stop a again"))
        return object()

    host.add(SNAPSHOTTER, "a", init=two)
    host.add(CONTENT, "b", SNAPSHOTTER)
    async with host.run():
        host.did.clear()
    assert host.did == ["stop b", "stop a again", "stop a"]


async def test_an_error_of_the_block_comes_out_as_it_is_after_the_stop(host: Host) -> None:
    host.add(SNAPSHOTTER, "a")
    with pytest.raises(ZeroDivisionError):
        async with host.run():
            raise ZeroDivisionError
    assert host.did[-1] == "stop a"


async def test_a_stop_that_raises_is_logged_and_the_others_stop(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    async def bad_stop() -> None:
        raise RuntimeError("will not close")

    async def init(context: InitContext[Any]) -> object:
        context.on_stop(bad_stop)
        return object()

    host.add(SNAPSHOTTER, "a")
    host.add(SNAPSHOTTER, "b", init=init)
    async with host.run():
        pass
    assert host.did[-2:] == ["stop b", "stop a"]
    assert "plugin io.containerd.snapshotter.v1.b failed to stop" in caplog.text


async def test_what_would_end_the_program_ends_only_what_raised_it(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    left = "(tests/test_host_registry.py:357 in leave)"

    async def leave() -> None:
        raise SystemExit(3)

    async def lives(context: InitContext[Any]) -> object:
        context.tasks.start_soon(leave, name="leaver")
        context.on_stop(leave)
        return "lives"

    exits = host.add(CONTENT, "exits", init=raising(SystemExit("no licence")))
    other = host.add(METADATA, "lives", init=lives)
    async with host.run():
        await anyio.wait_all_tasks_blocked()
        assert (exits.state, exits.reason) == (State.FAILED, f"SystemExit: no licence {RAISED_AT}")
        assert other.state == State.LOADED
    told = [message for message in caplog.messages if "lives" in message]
    assert told == [
        "task io.containerd.metadata.v1.lives:leaver of plugin io.containerd.metadata.v1.lives failed: "
        f"SystemExit: 3 {left}",
        f"plugin io.containerd.metadata.v1.lives failed to stop: SystemExit: 3 {left}",
    ]
    assert "stop lives" in host.did


async def test_a_thread_that_would_keep_the_process_from_ending_is_told_and_left(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "LEFT_THREADS_S", 0.05)
    goes_on = threading.Event()

    def wait() -> None:
        goes_on.wait(20)

    async def start(context: InitContext[Any]) -> object:
        threading.Thread(target=wait, name="left").start()
        threading.Thread(target=wait, name="harmless", daemon=True).start()
        threading.Thread(target=int, name="over").start()
        await asyncio.to_thread(int)  # both leave a thread that waits for work
        await anyio.to_thread.run_sync(int)
        return "x"

    plugin = host.add(CONTENT, "x", init=start)
    try:
        async with host.run():
            pass
        assert host.stuck == [plugin.uri]
        (leaked,) = plugin.health.leaked
        assert leaked.startswith(f"thread left at {__file__}:")
        assert f"plugin {plugin.uri} leaves a {leaked.replace('thread left', 'thread running at its end: left')}" in (
            caplog.messages
        )
    finally:
        goes_on.set()


async def test_a_task_that_fails_is_logged_and_harms_nothing_else(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    other = anyio.Event()

    async def fails() -> None:
        raise RuntimeError("task broke")

    async def init(context: InitContext[Any]) -> object:
        context.tasks.start_soon(fails, name="broken")
        context.tasks.start_soon(other.wait)
        return context.tasks

    plugin = host.add(SNAPSHOTTER, "a", init=init)
    async with host.run():
        await anyio.wait_all_tasks_blocked()
        assert plugin.state == State.LOADED
        assert plugin.instance.running == {"io.containerd.snapshotter.v1.a:wait"}
    assert "task io.containerd.snapshotter.v1.a:broken of plugin io.containerd.snapshotter.v1.a failed" in caplog.text


async def test_tasks_end_with_their_plugin_after_its_callbacks(host: Host) -> None:
    async def task() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            host.did.append("task ends")

    async def init(context: InitContext[Any]) -> object:
        context.tasks.start_soon(task)
        return object()

    host.add(SNAPSHOTTER, "a", init=init)
    async with host.run():
        await anyio.wait_all_tasks_blocked()
    assert host.did == ["init a", "stop a", "task ends"]


async def test_exports_and_directories_are_the_plugins_own(host: Host, tmp_path: Path) -> None:
    async def init(context: InitContext[Any]) -> object:
        context.exports["root"] = str(context.root)
        context.capabilities.append("fast")
        return context.state

    plugin = host.add(SNAPSHOTTER, "a", init=init)
    async with host.run():
        assert plugin.exports == {"root": str(tmp_path / "root" / "io.containerd.snapshotter.v1.a")}
        assert plugin.capabilities == ["fast"]
        assert plugin.instance == tmp_path / "state" / "io.containerd.snapshotter.v1.a"
        assert plugin.instance.stat().st_mode & 0o777 == 0o700


async def test_a_config_that_cannot_be_decoded_fails_its_plugin_alone(host: Host) -> None:
    def config_of(registration: Registration) -> PluginConfig:
        raise ConfigError(f"bad table of {registration.id}")

    plugin = host.add(SNAPSHOTTER, "a")
    daemon_run = host.run()
    await daemon_run.__aenter__()
    await daemon_run.__aexit__(None, None, None)
    assert plugin.state == State.LOADED
    again = Host(host.directory)
    other = again.add(SNAPSHOTTER, "a")
    daemon = DaemonInfo(
        root=again.directory, state=again.directory, temp=again.directory, grpc_address="", ttrpc_address="",
        bus=EventBus(), plugins=list, timeout_s=lambda _key: 0.0,
    )  # fmt: skip
    async with again.registry.run(daemon, config_of):
        assert (other.state, other.reason) == (State.FAILED, "bad table of a")


async def test_an_init_that_hangs_is_given_up_and_the_others_start(tmp_path: Path) -> None:
    host = Host(tmp_path, timeout_s=0.05)
    hanging = host.add(SNAPSHOTTER, "a", init=hang)
    other = host.add(SNAPSHOTTER, "b")
    async with host.run():
        assert hanging.state == State.FAILED
        assert hanging.reason == (
            "init of io.containerd.snapshotter.v1.a did not end within 50ms (io.containerd.timeout.plugin.init)"
        )
        assert other.state == State.LOADED
        assert host.did == ["init a", "stop a", "init b"]
    assert host.stuck == []


async def test_a_timeout_inside_of_an_init_is_no_deadline_of_ours(host: Host) -> None:
    plugin = host.add(SNAPSHOTTER, "a", init=raising(TimeoutError("the disk did not answer")))
    async with host.run():
        assert plugin.reason == f"TimeoutError: the disk did not answer {RAISED_AT}"


async def test_a_stop_that_hangs_is_given_up_with_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def init(context: InitContext[Any]) -> object:
        context.on_stop(hang)
        return object()

    host = Host(tmp_path, timeout_s=0.05)
    host.add(SNAPSHOTTER, "a")
    host.add(SNAPSHOTTER, "b", init=init)
    async with host.run():
        pass
    assert host.did[-2:] == ["stop b", "stop a"]
    assert host.stuck == []
    assert (
        "plugin io.containerd.snapshotter.v1.b did not stop within 50ms (io.containerd.timeout.plugin.stop); given up"
        in caplog.text
    )


async def test_what_ignores_its_cancellation_is_left_to_the_last_resort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = anyio.Event()

    async def stubborn(_context: InitContext[Any]) -> object:
        with anyio.CancelScope(shield=True):
            await release.wait()
        return object()

    monkeypatch.setattr(life, "_UNWIND_S", 0.05)
    host = Host(tmp_path, timeout_s=0.05)
    plugin = host.add(SNAPSHOTTER, "a", init=stubborn)
    other = host.add(SNAPSHOTTER, "b")
    running = host.registry.run

    def last_resort(stuck: list[str], failure: Exception | None) -> None:
        host.stuck.extend(stuck)
        assert failure is None
        release.set()

    daemon = DaemonInfo(
        root=tmp_path, state=tmp_path, temp=tmp_path, grpc_address="", ttrpc_address="", bus=EventBus(),
        plugins=list, timeout_s=lambda _key: 0.05,
    )  # fmt: skip
    async with running(daemon, lambda r: r.config(), last_resort=last_resort):
        assert plugin.reason.endswith("(io.containerd.timeout.plugin.init), and it cannot be cancelled")
        assert other.state == State.LOADED
    assert host.stuck == [plugin.uri]
    assert plugin.state == State.FAILED


async def test_no_limit_is_a_limit_of_zero(tmp_path: Path) -> None:
    async def slow(_context: InitContext[Any]) -> object:
        await anyio.sleep(0.02)
        return object()

    host = Host(tmp_path, timeout_s=0)
    plugin = host.add(SNAPSHOTTER, "a", init=slow)
    async with host.run():
        assert plugin.state == State.LOADED
    assert host.did == ["init a", "stop a"]


async def test_a_cancelled_daemon_ends_its_plugins_at_once_in_reverse_order(host: Host) -> None:
    async def until_cancelled(context: InitContext[Any], plugin_id: str) -> object:
        async def stop() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                host.did.append(f"cancelled {plugin_id}")

        context.on_stop(stop)
        return object()

    host.add(SNAPSHOTTER, "a", init=lambda context: until_cancelled(context, "a"))
    host.add(SNAPSHOTTER, "b", init=lambda context: until_cancelled(context, "b"))
    with anyio.CancelScope() as scope:
        async with host.run():
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert [text for text in host.did if text.startswith("cancelled")] == ["cancelled b", "cancelled a"]


async def test_a_second_wish_to_stop_cuts_a_hanging_stop_short(host: Host) -> None:
    async def init(context: InitContext[Any]) -> object:
        context.on_stop(hang)
        return object()

    host.add(SNAPSHOTTER, "a")
    host.add(SNAPSHOTTER, "b", init=init)
    with anyio.fail_after(30), anyio.CancelScope() as scope:
        async with host.run():
            scope.deadline = anyio.current_time() + 0.05
    assert host.did[-2:] == ["stop b", "stop a"]


async def test_what_could_not_register_keeps_a_row(host: Host) -> None:
    row = host.registry.add_failed("python_plugins", "acme", "ImportError: no acme", "acme-dist")
    async with host.run():
        assert host.registry.get("python_plugins.acme") is row
        assert (row.kind, row.id, row.state, row.code) == ("python_plugins", "acme", State.FAILED, 2)
        assert repr(row) == "<Plugin python_plugins.acme error: ImportError: no acme>"
        assert repr(host.registry) == "<Registry {'error': 1}>"


async def test_logs_of_a_plugin_carry_its_name(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    async def init(context: InitContext[Any]) -> object:
        context.log.warning("hot")
        assert context.uri == "io.containerd.snapshotter.v1.a"
        return object()

    host.add(SNAPSHOTTER, "a", init=init)
    async with host.run():
        pass
    assert ("aiocontainerd.plugin.snapshotter.v1.a", logging.WARNING, "hot") in caplog.record_tuples
