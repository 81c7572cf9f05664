"""Shims of the fork server and of the binary, with a real OCI runtime and a busybox root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from aiocontainerd_shim.fork import protocol, server
from aiocontainerd_shim.fork.launcher import AioLauncher, argv_of
from aiocontainerd_shim.fork.launcher import told as told_of
from aiocontainerd_shim.fork.limits import Limits
from aiocontainerd_shim.fork.protocol import Reply, Request, Verb
from aiocontainerd_shim.oci.choice import Findings
from aiocontainerd_shim.task import records

from aiocontainerd import api, typeurl
from aiocontainerd.errors import DeadlineExceeded, InvalidArgument, NotFound, Unknown, from_status
from aiocontainerd.interfaces.shim import ShimCommand
from aiocontainerd.rpc.ttrpc.client import TtrpcClient
from aiocontainerd.testing.processes import ended, removed
from aiocontainerd.wire.anys import any_to_wire, marshal

BUSYBOX = Path("/bin/busybox")
TIMEOUT_S = 10.0
ALONE_S = 0.3
LONG_ALONE_S = 1.5
"""Enough for the next daemon to come on a machine that is busy."""

needs_runc = pytest.mark.skipif(
    not (shutil.which("runc") and BUSYBOX.exists()), reason="needs runc and a static busybox"
)


class Node:
    """A launcher, a root file system, and the containers made of it; everything under one directory."""

    def __init__(self, directory: Path, launcher: AioLauncher) -> None:
        self.directory = directory
        self.launcher = launcher
        self.namespace = f"t{uuid.uuid4().hex[:8]}"
        self.clients: list[TtrpcClient] = []
        self.source = directory / "image"
        (self.source / "bin").mkdir(parents=True)
        for mount_point in ("proc", "dev"):
            (self.source / mount_point).mkdir()
        shutil.copy(BUSYBOX, self.source / "bin" / "busybox")

    @property
    def sockets(self) -> Path:
        return self.directory / "s"

    def command(self, container: str) -> ShimCommand:
        params = api.bootstrap.BootstrapParams(
            instance_id=container, namespace=self.namespace, socket_dir=str(self.sockets)
        )
        return ShimCommand(
            namespace=self.namespace,
            id=container,
            bundle=self.directory / self.namespace / container,
            grpc_address="/no/daemon.sock",
            ttrpc_address="",
            publish_binary="",
            stdin=bytes(params),
        )

    async def shim(self, container: str, *argv: str) -> TtrpcClient:
        command = self.command(container)
        (command.bundle / "rootfs").mkdir(parents=True)
        spec = _spec(f"/{self.namespace}/{container}", argv)
        (command.bundle / "config.json").write_bytes(msgspec.json.encode(spec))
        result = api.bootstrap.BootstrapResult.parse(await self.launcher.start(command, timeout_s=TIMEOUT_S))
        client = await TtrpcClient.connect(result.address, timeout_s=TIMEOUT_S)
        self.clients.append(client)
        return client

    async def create(self, client: TtrpcClient, container: str, stdout: str = "") -> int:
        options = marshal(api.runc.Options(root=str(self.directory / "runc"), binary_name="runc"))
        request = api.task_v3.CreateTaskRequest(
            id=container,
            bundle=str(self.command(container).bundle),
            rootfs=[api.types.Mount(type="bind", source=str(self.source), options=["rbind", "ro"])],
            stdout=stdout,
            options=any_to_wire(options),
        )
        return int((await call(client, "Create", request)).pid)

    def leftovers(self) -> list[str]:
        """Mounts, cgroups, sockets and state that containers left behind."""
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.directory) in line]
        groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{self.namespace}/*") if path.is_dir()]
        sockets = [str(path) for path in self.sockets.glob("*")]
        states = [str(path) for path in (self.directory / "runc").glob("*/*")]
        return [*mounts, *groups, *sockets, *states]

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
        for path in Path("/sys/fs/cgroup").glob(f"*/{self.namespace}"):
            path.rmdir()


def _spec(cgroup: str, argv: tuple[str, ...]) -> dict[str, Any]:
    namespaces = ("pid", "mount", "ipc", "uts", "network")
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", *argv], "cwd": "/", "env": []},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"cgroupsPath": cgroup, "namespaces": [{"type": kind} for kind in namespaces]},
    }


async def call(client: TtrpcClient, method: str, request: Any) -> Any:
    return await client.call("containerd.task.v3.Task", method, request, timeout_s=TIMEOUT_S)


async def eventually(condition: Callable[[], object]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await anyio.sleep(0.01)


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


async def finish(client: TtrpcClient, container: str) -> int:
    waited = await call(client, "Wait", api.task_v3.WaitRequest(id=container))
    await call(client, "Delete", api.task_v3.DeleteRequest(id=container))
    await call(client, "Shutdown", api.task_v3.ShutdownRequest(id=container))
    await client.wait_closed()
    return int(waited.exit_status)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Yield a directory with a short path, for sockets. It is removed as soon as no process writes into it."""
    directory = Path(tempfile.mkdtemp(prefix="shim-", dir="/tmp"))
    yield directory
    until(lambda: removed(directory))


@pytest.fixture
async def launcher(short_path: Path) -> AsyncIterator[AioLauncher]:
    launcher = AioLauncher(short_path)
    await launcher.ensure_server()
    yield launcher
    if launcher.socket_path.exists():
        await launcher.retire()


@pytest.fixture(params=["forked", "executed"])
async def node(short_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    forked = request.param == "forked"
    launcher = AioLauncher(short_path, fork_server=forked)
    await launcher.ensure_server()
    node = Node(short_path, launcher)
    try:
        yield node
        await eventually(lambda: not node.leftovers())
        assert launcher.executed == 0 or not forked
    finally:
        if forked:
            await launcher.retire()
        await node.close()


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
async def test_a_container_lives_and_leaves_nothing_behind(node: Node) -> None:
    client = await node.shim("c1", "sh", "-c", "echo out; exit 3")
    output = node.directory / "out"
    output.touch()
    pid = await node.create(client, "c1", str(output))
    connected = await call(client, "Connect", api.task_v3.ConnectRequest(id="c1"))
    assert connected.task_pid == pid
    assert Path(f"/proc/{connected.shim_pid}/comm").read_text().strip() == "containerd-shim"
    started = await call(client, "Start", api.task_v3.StartRequest(id="c1"))
    assert started.pid == pid
    assert await finish(client, "c1") == 3
    assert output.read_text() == "out\n"
    await eventually(lambda: ended(connected.shim_pid))


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
async def test_execs_pids_and_kill(node: Node) -> None:
    client = await node.shim("c1", "sleep", "60")
    pid = await node.create(client, "c1")
    await call(client, "Start", api.task_v3.StartRequest(id="c1"))
    spec = msgspec.json.encode(_spec("", ("sh", "-c", "exit 4"))["process"])
    exec_spec = any_to_wire(typeurl.Any(typeurl.PROCESS_URL, spec))
    await call(client, "Exec", api.task_v3.ExecProcessRequest(id="c1", exec_id="e1", spec=exec_spec))
    await call(client, "Start", api.task_v3.StartRequest(id="c1", exec_id="e1"))
    waited = await call(client, "Wait", api.task_v3.WaitRequest(id="c1", exec_id="e1"))
    assert waited.exit_status == 4
    await call(client, "Delete", api.task_v3.DeleteRequest(id="c1", exec_id="e1"))
    pids = await call(client, "Pids", api.task_v3.PidsRequest(id="c1"))
    assert [process.pid for process in pids.processes] == [pid]
    stats = await call(client, "Stats", api.task_v3.StatsRequest(id="c1"))
    assert stats.stats.type_url.startswith("io.containerd.cgroups.v")
    await call(client, "Kill", api.task_v3.KillRequest(id="c1", signal=9))
    assert await finish(client, "c1") == 137


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
async def test_a_program_that_is_not_there_fails_the_create_cleanly(node: Node) -> None:
    client = await node.shim("c1", "true")
    config = node.command("c1").bundle / "config.json"
    config.write_bytes(config.read_bytes().replace(b"/bin/busybox", b"/bin/nothing"))
    with pytest.raises(Unknown, match=r"^OCI runtime create failed: .*/bin/nothing"):
        await node.create(client, "c1")
    with pytest.raises(NotFound, match=r"^container not created$"):
        await call(client, "State", api.task_v3.StateRequest(id="c1"))
    await call(client, "Shutdown", api.task_v3.ShutdownRequest(id="c1"))
    await client.wait_closed()


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
async def test_the_delete_action_cleans_up_after_a_killed_shim(node: Node) -> None:
    client = await node.shim("c1", "sleep", "60")
    pid = await node.create(client, "c1")
    await call(client, "Start", api.task_v3.StartRequest(id="c1"))
    connected = await call(client, "Connect", api.task_v3.ConnectRequest(id="c1"))
    os.kill(connected.shim_pid, 9)
    await client.wait_closed()
    answer = await node.launcher.delete(node.command("c1"), timeout_s=TIMEOUT_S)
    deleted = api.task_v3.DeleteResponse.parse(answer)
    assert (deleted.pid, deleted.exit_status) == (pid, 137)


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
@pytest.mark.parametrize("retired", [False, True])
async def test_the_exit_of_a_container_whose_shim_died_reaches_its_bundle(
    short_path: Path, launcher: AioLauncher, retired: bool
) -> None:
    node = Node(short_path, launcher)
    client = await node.shim("c1", "sh", "-c", "sleep 0.5; exit 6")
    await node.create(client, "c1")
    await call(client, "Start", api.task_v3.StartRequest(id="c1"))
    connected = await call(client, "Connect", api.task_v3.ConnectRequest(id="c1"))
    if retired:
        await launcher.retire()
    os.kill(connected.shim_pid, 9)
    bundle = node.command("c1").bundle
    await eventually(lambda: (record := records.read_process(bundle)) and record.exit_status is not None)
    deleted = api.task_v3.DeleteResponse.parse(await launcher.delete(node.command("c1"), timeout_s=TIMEOUT_S))
    assert deleted.exit_status == 6
    assert node.leftovers() == []
    await eventually(lambda: not retired or not servers_of(launcher))
    await node.close()


@pytest.mark.root
@pytest.mark.anyio
async def test_a_server_is_found_again_and_one_of_other_code_or_limits_replaced(
    short_path: Path, launcher: AioLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = launcher.socket_path.stat().st_ctime_ns
    await AioLauncher(short_path).ensure_server()
    assert launcher.socket_path.stat().st_ctime_ns == created
    monkeypatch.setattr("aiocontainerd_shim.fork.launcher.code_fingerprint", lambda: "newer")
    newer = AioLauncher(short_path)
    await newer.ensure_server()
    created, replaced = launcher.socket_path.stat().st_ctime_ns, created
    assert created != replaced
    newer.limits = Limits(idle_s=7.0)
    await newer.ensure_server()
    assert launcher.socket_path.stat().st_ctime_ns != created
    await launcher.retire()
    assert not launcher.socket_path.exists()


def servers_of(launcher: AioLauncher) -> list[int]:
    """Return the fork servers that listen on a launcher's socket, or did."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            is_shim = bool(line) and (entry / "comm").read_text() == "containerd-shim\n"
        except OSError:
            continue
        if os.fsencode(launcher.socket_path) in line and not is_shim and not ended(int(entry.name)):
            found.append(int(entry.name))
    return found


def cgroups_of(name: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob(f"*/{name}") if path.is_dir()]


@contextlib.asynccontextmanager
async def attending(launcher: AioLauncher) -> AsyncIterator[None]:
    """Be a live daemon for the length of the block, then vanish without a word."""
    async with anyio.create_task_group() as group:
        group.start_soon(launcher.attend)
        await eventually(lambda: launcher.attends)
        yield
        group.cancel_scope.cancel()


@pytest.mark.root
@pytest.mark.anyio
async def test_the_server_goes_before_others_and_its_shims_do_not(short_path: Path, launcher: AioLauncher) -> None:
    node = Node(short_path, launcher)
    (server_pid,) = servers_of(launcher)
    shim = await node.shim("c1")
    shim_pid = (await call(shim, "Connect", api.task_v3.ConnectRequest(id="c1"))).shim_pid
    own = os.getpriority(os.PRIO_PROCESS, 0)
    told = [os.getpriority(os.PRIO_PROCESS, pid) for pid in (server_pid, shim_pid)]
    await call(shim, "Shutdown", api.task_v3.ShutdownRequest(id="c1"))
    await node.close()
    assert told == ([-10, 0] if own == 0 else [own, own])


@pytest.mark.root
@pytest.mark.anyio
async def test_what_the_server_knows_of_the_oci_runtimes_is_told(short_path: Path) -> None:
    told: dict[str, str] = {}
    launcher = AioLauncher(short_path, tell=told.update)
    async with attending(launcher):
        assert told["oci-runtime"] in ("crun", "runc")
        assert told[f"oci-runtime.{told['oci-runtime']}"].startswith("takes ")
    await launcher.aclose()


def test_operators_see_the_runtime_and_what_each_takes() -> None:
    found = Findings(chosen="crun", highest={"crun": "1.1.0", "runc": "1.3.0"})
    takes = {"oci-runtime.crun": "takes ociVersion <= 1.1.0", "oci-runtime.runc": "takes every ociVersion"}
    assert told_of(found) == {"oci-runtime": "crun", **takes}
    assert told_of(found, "/opt/crun") == {"oci-runtime": "/opt/crun", **takes}
    assert told_of(Findings(complaint="nothing works")) == {"oci-runtime": "none: nothing works"}


@pytest.mark.root
@pytest.mark.anyio
async def test_a_daemon_that_stops_leaves_no_server(short_path: Path) -> None:
    group = f"{short_path.name}-shims"
    launcher = AioLauncher(short_path, cgroup=f"/{group}")
    async with attending(launcher):
        assert servers_of(launcher)
        await launcher.aclose()
        await eventually(lambda: not servers_of(launcher) and not cgroups_of(group))
    assert not list(short_path.iterdir())


@pytest.mark.root
@pytest.mark.anyio
async def test_a_start_that_is_cut_short_leaves_no_server(short_path: Path) -> None:
    launcher = AioLauncher(short_path)
    async with anyio.create_task_group() as group:
        group.start_soon(launcher.attend)
        await eventually(lambda: servers_of(launcher))
        await launcher.aclose()
    await eventually(lambda: not servers_of(launcher))
    assert not list(short_path.iterdir())


@pytest.mark.root
@pytest.mark.anyio
async def test_a_server_whose_daemon_is_gone_ends(short_path: Path) -> None:
    launcher = AioLauncher(short_path, limits=Limits(idle_s=ALONE_S))
    async with attending(launcher):
        await anyio.sleep(2 * ALONE_S)
        assert servers_of(launcher)
        left_at = time.monotonic()
    await eventually(lambda: not servers_of(launcher))
    assert ALONE_S <= time.monotonic() - left_at < server.IDLE_S
    assert not list(short_path.iterdir())


@pytest.mark.root
@pytest.mark.anyio
async def test_the_next_daemon_finds_the_server_of_one_that_is_gone(
    short_path: Path,
) -> None:
    first, second = (AioLauncher(short_path, limits=Limits(idle_s=LONG_ALONE_S)) for _ in range(2))
    async with attending(first):
        (server,) = servers_of(first)
    async with attending(second):
        await anyio.sleep(1.2 * LONG_ALONE_S)
        assert servers_of(second) == [server]
        await second.aclose()


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
@pytest.mark.parametrize("stops", [True, False], ids=["stopped", "gone"])
async def test_a_server_stays_for_its_shims_and_ends_with_the_last(short_path: Path, stops: bool) -> None:
    launcher = AioLauncher(short_path, limits=Limits(idle_s=ALONE_S))
    node = Node(short_path, launcher)
    async with attending(launcher):
        client = await node.shim("c1", "sleep", "60")
        await node.create(client, "c1")
        (server,) = servers_of(launcher)
        if stops:
            await launcher.aclose()
    await anyio.sleep(2 * ALONE_S)
    assert servers_of(launcher) == [server]
    assert launcher.socket_path.exists() != stops
    connected = await call(client, "Connect", api.task_v3.ConnectRequest(id="c1"))
    assert f"PPid:\t{server}\n" in Path(f"/proc/{connected.shim_pid}/status").read_text()
    await call(client, "Kill", api.task_v3.KillRequest(id="c1", signal=9))
    await finish(client, "c1")
    await eventually(lambda: not servers_of(launcher))
    assert not launcher.socket_path.exists()
    await node.close()


@pytest.mark.root
@pytest.mark.anyio
async def test_a_server_that_was_killed_is_replaced(short_path: Path) -> None:
    launcher = AioLauncher(short_path, cgroup=f"/{short_path.name}-shims")
    async with attending(launcher):
        (server,) = servers_of(launcher)
        os.kill(server, 9)
        await eventually(lambda: servers_of(launcher) not in ([], [server]) and launcher.attends)
        await launcher.aclose()
    await eventually(lambda: not servers_of(launcher))


@pytest.mark.root
def test_a_server_that_is_ended_while_it_probes_leaves_nothing(short_path: Path) -> None:
    programs, state = short_path / "bin", short_path / "state"
    programs.mkdir()
    state.mkdir()
    for name in ("crun", "runc"):
        (programs / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (programs / name).chmod(0o755)
    launcher = AioLauncher(state)
    starter = subprocess.Popen(
        [sys.executable, "-m", "aiocontainerd_shim", "--socket", str(launcher.socket_path), "--fingerprint", "x"],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    until(lambda: list(state.glob("aiocontainerd-probe-*/config.json")))
    (server,) = [pid for pid in servers_of(launcher) if pid != starter.pid]
    os.kill(server, signal.SIGTERM)
    assert starter.wait() == 1
    until(lambda: not servers_of(launcher))
    assert not list(state.iterdir())
    assert not cgroups_of(f"aiocontainerd-probe-{server}")


@pytest.mark.root
@pytest.mark.anyio
async def test_the_cgroup_of_a_killed_server_goes_with_the_daemon(short_path: Path) -> None:
    group = f"{short_path.name}-shims"
    launcher = AioLauncher(short_path, cgroup=f"/{group}")
    await launcher.ensure_server()
    (server,) = servers_of(launcher)
    os.kill(server, 9)
    await eventually(lambda: not servers_of(launcher))
    await launcher.aclose()
    assert not cgroups_of(group)


@pytest.mark.root
@pytest.mark.anyio
async def test_what_a_killed_probe_has_left_goes_with_the_next(short_path: Path) -> None:
    ended = await anyio.run_process(["sh", "-c", "echo $$"])
    left = short_path / f"aiocontainerd-probe-{int(ended.stdout)}-x"
    (left / "rootfs").mkdir(parents=True)
    mine = short_path / f"aiocontainerd-probe-{os.getpid()}-x"
    mine.mkdir()
    launcher = AioLauncher(short_path)
    await launcher.ensure_server()
    assert not left.exists()
    assert mine.exists()
    await launcher.aclose()


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
async def test_a_shim_has_left_its_address_when_it_answers_shutdown(node: Node) -> None:
    first = await node.shim("c1", "true")
    assert len(list(node.sockets.iterdir())) == 1
    await call(first, "Shutdown", api.task_v3.ShutdownRequest(id="c1"))
    assert list(node.sockets.iterdir()) == []
    result = api.bootstrap.BootstrapResult.parse(await node.launcher.start(node.command("c1"), timeout_s=TIMEOUT_S))
    second = await TtrpcClient.connect(result.address, timeout_s=TIMEOUT_S)
    await first.wait_closed()
    assert len(list(node.sockets.iterdir())) == 1  # the first shim's end has not taken it away
    await call(second, "Shutdown", api.task_v3.ShutdownRequest(id="c1"))
    await second.wait_closed()


@pytest.mark.root
@needs_runc
@pytest.mark.anyio
async def test_containers_of_a_group_share_a_shim(node: Node) -> None:
    first = await node.shim("pod", "sleep", "60")
    command = node.command("member")
    command.bundle.mkdir()
    (command.bundle / "config.json").write_text('{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}')
    result = api.bootstrap.BootstrapResult.parse(await node.launcher.start(command, timeout_s=TIMEOUT_S))
    second = await TtrpcClient.connect(result.address, timeout_s=TIMEOUT_S)
    pids = [(await call(c, "Connect", api.task_v3.ConnectRequest(id="pod"))).shim_pid for c in (first, second)]
    assert pids[0] == pids[1]
    await second.aclose()
    await call(first, "Shutdown", api.task_v3.ShutdownRequest(id="pod"))
    await first.wait_closed()


def test_the_command_lines_are_containerds() -> None:
    command = ShimCommand(
        namespace="ns",
        id="c",
        bundle=Path("/b"),
        grpc_address="/a",
        ttrpc_address="/t",
        publish_binary="/p",
        debug=True,
    )
    common = ["/shim", "-namespace", "ns", "-address", "/a", "-publish-binary", "/p", "-id", "c"]
    assert argv_of(Path("/shim"), Verb.START, command) == [*common, "-debug", "start"]
    assert argv_of(Path("/shim"), Verb.DELETE, command) == [*common, "-bundle", "/b", "-debug", "delete"]


def test_frames_survive_the_round_trip() -> None:
    request = Request(verb=Verb.START, id="c", env=b"packed", oom_score_adj=1)
    frame = protocol.frame(request)
    size = protocol.HEADER.size
    assert protocol.body_length(frame[:size]) == len(frame) - size
    assert protocol.parse_request(frame[size:]) == request
    with pytest.raises(InvalidArgument, match=r"fork server request"):
        protocol.parse_request(b"\xff")


def test_errors_cross_with_their_class() -> None:
    reply = protocol.failed(NotFound("x"))
    with pytest.raises(NotFound, match=r"^x$"):
        protocol.parse_reply(protocol.frame(reply)[4:]).unwrap()
    assert Reply(result=b"r").unwrap() == b"r"
    assert isinstance(from_status(5, "x: not found"), NotFound)


def test_an_orphans_exit_is_put_where_its_record_is(tmp_path: Path) -> None:
    bundle = tmp_path / "c1"
    bundle.mkdir()
    records.write_process(bundle, records.ProcessRecord(pid=77, started=True))
    assert not server.record_orphan_exit(tmp_path, 78, 1)
    assert server.record_orphan_exit(tmp_path, 77, 5)
    record = records.read_process(bundle)
    assert record is not None
    assert record.exit_status == 5


@pytest.mark.root
@pytest.mark.anyio
async def test_without_a_server_the_binary_is_run(short_path: Path) -> None:
    launcher = AioLauncher(short_path, fork_server=False)
    node = Node(short_path, launcher)
    client = await node.shim("c1", "true")
    assert launcher.statistics() == {"forked": 0, "executed": 1}
    await call(client, "Shutdown", api.task_v3.ShutdownRequest(id="c1"))
    await client.wait_closed()
    await node.close()


def test_the_binary_tells_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from aiocontainerd_shim.program.cli import main; main()", "-v"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert "Version:" in done.stdout


@pytest.mark.anyio
async def test_a_fork_server_that_does_not_answer_is_given_up(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    launcher = AioLauncher(short_path, limits=Limits(answer_s=0.1))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(launcher.socket_path))
        silent.listen()
        with anyio.fail_after(TIMEOUT_S):
            with pytest.raises(DeadlineExceeded, match="retire"):
                await launcher.retire()
            await launcher.ensure_server()
    assert "there is no fork server" in caplog.text


def runtimes_that_hang(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a crun and a runc that never end in front of the PATH."""
    programs = directory / "bin"
    programs.mkdir()
    for name in ("crun", "runc"):
        (programs / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


@pytest.mark.root
@pytest.mark.anyio
async def test_the_try_of_an_oci_runtime_ends_in_time(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes_that_hang(short_path, monkeypatch)
    launcher = AioLauncher(short_path, limits=Limits(probe_s=0.1))
    with anyio.fail_after(TIMEOUT_S):
        await launcher.ensure_server()
    assert servers_of(launcher)
    await launcher.aclose()
    await eventually(lambda: not servers_of(launcher))


@pytest.mark.root
@pytest.mark.anyio
async def test_a_fork_server_that_starts_too_slowly_is_given_up(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtimes_that_hang(short_path, monkeypatch)
    launcher = AioLauncher(short_path, limits=Limits(start_s=0.1, probe_s=1.0))
    with anyio.fail_after(TIMEOUT_S):
        await launcher.ensure_server()
    assert "there is no fork server" in caplog.text
    await eventually(lambda: not servers_of(launcher))
