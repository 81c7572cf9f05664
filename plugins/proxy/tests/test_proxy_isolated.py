"""Isolated processes: their command, config and output, when they are started again, where they are kept."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from aiocontainerd_proxy import backoff, cgroups, supervisor
from aiocontainerd_proxy.backoff import Backoff
from aiocontainerd_proxy.child import Child, prepare, relay
from aiocontainerd_proxy.limits import Limits
from aiocontainerd_proxy.link import NotReady
from aiocontainerd_proxy.plugin import isolate_plugin, register_proxy_plugin
from aiocontainerd_proxy.supervisor import Supervisor

from aiocontainerd import kinds
from aiocontainerd.config.records import Isolation, ProxyPlugin
from aiocontainerd.plugin import InitContext, PluginConfig, PluginError, Registration, Secret
from aiocontainerd.testing.disks import MemoryDisk
from aiocontainerd.testing.processes import ended

URI = f"{kinds.SNAPSHOTTER}.acme"
LOG = logging.getLogger("aiocontainerd.plugin.acme")
SERVES = 'import os, sys, time; print("up", flush=True); os.write(int(sys.argv[1]), b"\\n"); time.sleep(60)'
BREAKS = 'import sys; print("no disk", file=sys.stderr); sys.exit(3)'


class Config(PluginConfig, frozen=True):
    root_path: str = ""
    token: Secret = Secret()
    absent: int | None = None


class Scripted(Child, frozen=True, kw_only=True):
    """A process that runs a script instead of a plugin."""

    script: str

    def command(self, ready_fd: int) -> list[str]:
        return [sys.executable, "-c", self.script, str(ready_fd)]


def limits(**seconds: float) -> Limits:
    """Return those of `seconds` by the last word of their key; a minute else."""
    return lambda timeout: seconds.get(timeout.key.rpartition(".")[2], 60.0)


LIMITS = limits()


@pytest.fixture
def tmp() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="px-", dir="/tmp") as directory:
        yield Path(directory)


def child(tmp: Path) -> Child:
    return Child(uri=URI, module="acme.plugin", root=tmp / "root", state=tmp / "state")


async def holds(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - of processes, which set no event
        await anyio.sleep(0.01)


async def _init(_context: InitContext[PluginConfig]) -> object:
    return object()


def registration(kind: str = kinds.SNAPSHOTTER) -> Registration:
    return Registration(
        kind=kind, id="acme", config=Config, requires=(kinds.METADATA,), wants=(kinds.STREAM_PROCESSOR,), early=True,
        init=_init,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "kind"),
    [
        ("snapshot", kinds.SNAPSHOTTER),
        ("content", kinds.CONTENT),
        ("diff", kinds.DIFFER),
        (kinds.DIFFER, kinds.DIFFER),
    ],
)
def test_proxy_types_are_containerds(type_: str, kind: str) -> None:
    made = register_proxy_plugin("x", ProxyPlugin(type=type_, address="/run/x.sock"))
    assert made is not None
    assert made.uri == f"{kind}.x"


@pytest.mark.parametrize("type_", ["sandbox", "", "io.containerd.grpc.v1"])
def test_other_proxy_types_are_left_to_others(type_: str) -> None:
    assert register_proxy_plugin("x", ProxyPlugin(type=type_)) is None


def test_an_isolated_plugin_keeps_kind_id_and_config() -> None:
    process = isolate_plugin(registration(), Isolation(module="m"))
    assert process is not None
    assert (process.uri, process.config, process.requires) == (URI, Config, ())
    assert (process.wants, process.early) == ((), False)


def test_what_has_no_api_of_containerds_cannot_be_a_process() -> None:
    with pytest.raises(PluginError, match=r"is for snapshotters, content stores and differs$"):
        isolate_plugin(registration(kinds.EVENT_SINK), Isolation(module="m"))


def test_the_process_gets_config_and_deadlines_in_a_file_for_its_eyes_only(tmp: Path) -> None:
    described = child(tmp)
    prepare(described, Config(root_path="/x", token=Secret("s3cret")), {"io.containerd.timeout.plugin.work": 90.0})
    assert tomllib.loads(described.config.read_text()) == {
        "version": 4,
        "timeouts": {"io.containerd.timeout.plugin.work": "1m30s"},
        "plugins": {URI: {"root_path": "/x", "token": "s3cret"}},
    }
    assert described.config.stat().st_mode & 0o777 == 0o600


@pytest.mark.root
def test_a_plugin_of_another_user_is_prepared_on_a_read_only_root(disk: MemoryDisk, tmp: Path) -> None:
    described = Child(uri=URI, module="acme.plugin", root=disk.directory / "root", state=tmp / "state", uid=65534)
    prepare(described, Config(), {})
    disk.remount("ro")
    prepare(described, Config(), {})
    owners = [path.stat().st_uid for path in (described.root / URI, described.state / URI, described.config)]
    assert owners == [65534] * 3


def test_the_command_serves_the_plugin_at_its_socket(tmp: Path) -> None:
    line = " ".join(msgspec.structs.replace(child(tmp), content="/run/c.sock", uid=7).command(9))
    assert (
        f"-m aiocontainerd.cli.plugin.main serve acme.plugin --id {URI} --address {tmp}/state/{URI}/plugin.sock" in line
    )
    assert f"--root {tmp}/root --state {tmp}/state" in line
    assert line.endswith(
        f"--ready-fd 9 --parent {os.getpid()} --stacks {tmp}/state/{URI}/stacks --content /run/c.sock --setuid 7"
    )


def test_the_service_managers_socket_is_the_daemons(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    assert "NOTIFY_SOCKET" not in child(tmp).environment()


@pytest.mark.anyio
async def test_output_is_logged_under_the_plugins_name_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    async def output() -> AsyncIterator[bytes]:
        yield b'{"time": "t", "level": "warning", "msg": "careful", "plugin": "mine", "n": 1}\npla'
        yield b'in\n\n{"broken\n[1]\n\xff'

    caplog.set_level(logging.INFO)
    await relay(output(), LOG, plugin=URI, stream="stderr")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "careful"),
        ("INFO", "plain"),
        ("INFO", '{"broken'),
        ("INFO", "[1]"),
        ("INFO", "\N{REPLACEMENT CHARACTER}"),
    ]
    assert vars(caplog.records[0])["fields"] == {"plugin": "mine", "stream": "stderr", "n": 1}


def test_pauses_double_to_the_longest_until_they_start_over() -> None:
    waits = Backoff(lambda: 60)
    assert [waits.take() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    waits.reset()
    assert [waits.take(), waits.next_s, waits.take()] == [1, 2, 2]


def test_no_pause_is_longer_than_the_longest() -> None:
    assert Backoff(lambda: 0.1).take() == 0.1


@pytest.mark.anyio
async def test_a_process_that_serves_is_told_and_ends_with_its_supervisor(
    tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept = Supervisor(Scripted(uri=URI, module="", root=tmp, state=tmp, script=SERVES), LOG, LIMITS, lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with anyio.fail_after(10):
            await kept.serving()
            await holds(lambda: "up" in caplog.messages)
        pid = kept.pid
        assert (await anyio.to_thread.run_sync(kept.rss_bytes) or 0) > 1 << 20
        group.cancel_scope.cancel()
    assert not Path(f"/proc/{pid}").exists()
    assert (kept.pid, await anyio.to_thread.run_sync(kept.rss_bytes)) == (0, None)


@pytest.mark.anyio
async def test_what_a_process_says_while_it_is_stopped_is_logged(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "LAST_WORDS_S", 20.0)
    caplog.set_level(logging.INFO)
    script = (
        "import os, signal, sys, time\n"
        "def stop(*_):\n    print('x' * 300_000, flush=True); print('gave back all but one', flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); os.write(int(sys.argv[1]), b'\\n'); time.sleep(60)"
    )
    kept = Supervisor(Scripted(uri=URI, module="", root=tmp, state=tmp, script=script), LOG, LIMITS, lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with anyio.fail_after(20):
            await kept.serving()
        group.cancel_scope.cancel()
    assert caplog.messages[-1] == "gave back all but one"


@pytest.mark.anyio
async def test_a_process_that_breaks_is_started_again_and_the_reason_told(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.25)
    monkeypatch.setattr(supervisor, "LAST_WORDS_S", 20.0)
    caplog.set_level(logging.INFO)
    changes: list[str] = []
    kept = Supervisor(
        Scripted(uri=URI, module="", root=tmp, state=tmp, script=BREAKS),
        LOG,
        LIMITS,
        lambda: changes.append(kept.reason),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with anyio.fail_after(20):
            with pytest.raises(NotReady, match=r"^ended with status 3 \(no disk\); started again in 250ms$"):
                await kept.serving()
            await holds(lambda: kept.starts > 1)
        group.cancel_scope.cancel()
    assert changes[:2] == ["ended with status 3 (no disk); started again in 250ms", ""]
    assert "no disk" in caplog.messages


@pytest.mark.anyio
async def test_a_process_that_cannot_be_started_says_why(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    kept = Supervisor(child(tmp), LOG, LIMITS, lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with pytest.raises(NotReady, match=r"cannot be started: .*/no/such/python"):
            await kept.serving()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_process_is_started_again_whatever_ended_it(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.05)
    pipe2, refusals = os.pipe2, [OSError(errno.EMFILE, "Too many open files")]

    def refuses_once(flags: int) -> tuple[int, int]:
        if refusals:
            raise refusals.pop()
        return pipe2(flags)

    reasons: list[str] = []
    script = "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)"
    kept = Supervisor(
        Scripted(uri=URI, module="", root=tmp, state=tmp, script=script),
        LOG,
        LIMITS,
        lambda: reasons.append(kept.reason),
    )
    monkeypatch.setattr(os, "pipe2", refuses_once)
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with anyio.fail_after(20):
            await holds(lambda: kept.starts > 1)
        group.cancel_scope.cancel()
    first, second, *_ = filter(None, reasons)
    assert first.startswith("cannot be started: too many open files; started again in ")
    assert second.startswith(f"was ended by signal {signal.SIGRTMIN + 3}; started again in ")


@pytest.mark.anyio
async def test_a_process_that_has_been_healthy_is_started_again_after_the_first_pause(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.02)
    monkeypatch.setattr(supervisor, "HEALTHY_S", 0.0)
    reasons: list[str] = []
    process = Scripted(uri=URI, module="", root=tmp, state=tmp, script=BREAKS)
    kept = Supervisor(process, LOG, LIMITS, lambda: reasons.append(kept.reason))
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with anyio.fail_after(20):
            await holds(lambda: kept.starts > 2)
        group.cancel_scope.cancel()
    assert set(reasons[:4]) == {"", "ended with status 3 (no disk); started again in 20ms"}


@pytest.mark.anyio
async def test_a_process_that_never_serves_is_ended(tmp: Path) -> None:
    script = "import time; time.sleep(60)"
    process = Scripted(uri=URI, module="", root=tmp, state=tmp, script=script)
    kept = Supervisor(process, LOG, limits(init=0.3), lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with (
            anyio.fail_after(10),
            pytest.raises(NotReady, match=r"^did not serve within 300ms and was ended; started again"),
        ):
            await kept.serving()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_process_that_ignores_sigterm_is_killed_with_what_it_started(tmp: Path) -> None:
    script = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); pid = os.fork();"
        "pid and os.write(int(sys.argv[1]), b'\\n'); time.sleep(60)"
    )
    process = Scripted(uri=URI, module="", root=tmp, state=tmp, script=script)
    kept = Supervisor(process, LOG, limits(stop=0.1), lambda: None)
    async with anyio.create_task_group() as group:
        group.start_soon(kept.keep)
        with anyio.fail_after(10):
            await kept.serving()
        members = _group_of(kept.pid)
        began = anyio.current_time()
        group.cancel_scope.cancel()
    assert anyio.current_time() - began < 5, "the limit of stopping the plugin did not hold"
    assert len(members) == 2
    with anyio.fail_after(5):
        await holds(lambda: all(ended(pid) for pid in members))


def _group_of(leader: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _group(pid) == leader]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


@pytest.mark.root
def test_a_process_has_a_cgroup_below_the_daemons_which_goes_with_it(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = cgroups.name_of(URI, tmp)
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    try:
        directories, _ = cgroups.join(name, pid)
        if not directories:
            pytest.skip("no cgroup can be made here")
        assert f"/{name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
        monkeypatch.setattr(cgroups, "EMPTY_WITHIN_S", 0.0)
        assert cgroups.remove(directories) != []
        monkeypatch.undo()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert cgroups.remove(directories) == []
    assert not any(Path(directory).exists() for directory in directories)
