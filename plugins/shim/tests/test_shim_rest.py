"""A shim at rest is one process that waits; whatever happens next, its clients notice nothing of the change."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from aiocontainerd_shim.children.reaper import Exit
from aiocontainerd_shim.fork.launcher import AioLauncher
from aiocontainerd_shim.rest import channel as resident_channel
from aiocontainerd_shim.rest import resident
from aiocontainerd_shim.rest.channel import pack_exit, unpack_exit
from aiocontainerd_shim.rest.descriptors import REQUESTS, Descriptors
from aiocontainerd_shim.rest.interface import Parts
from aiocontainerd_shim.rest.worker import Worker
from aiocontainerd_shim.task import records

from aiocontainerd import api, typeurl
from aiocontainerd.interfaces.shim import ShimCommand
from aiocontainerd.rpc.ttrpc.client import TtrpcClient
from aiocontainerd.testing.processes import ended, removed
from aiocontainerd.wire.anys import any_to_wire

TIMEOUT_S = 10.0
RUNTIME = """#!/bin/sh
# Each process runs the script that its bundle has for it, with the streams it was given.
verb() { for word in create start exec kill delete; do case " $* " in *" $word "*) echo $word; return;; esac; done; }
cd "$(dirname "$0")"
exec 3<&0  # a process in the background has no other stdin than one it is given
for last; do id=$signal; signal=$last; done
case $(verb "$@") in
  create) while [ "$1" != --pid-file ]; do shift; done
    sh -c 'while [ ! -e started ]; do sleep 0.01; done; . ./init' <&3 3<&- & echo $! > "$2";;
  start) touch started;;
  exec) while [ "$1" != --pid-file ]; do shift; done
    # Once it is an orphan: a shell takes the exits of its children.
    sh -c 'while read -r _ _ _ parent _ < /proc/$$/stat && [ "$parent" = "$0" ]; do sleep 0.01; done; . ./exec' $$ &
    echo $! > "$2";;
  kill) kill -$signal $(cat init.pid);;
esac
"""


class Shim:
    """A shim of a fork server, its bundle and a client."""

    def __init__(self, bundle: Path, client: TtrpcClient) -> None:
        self.bundle = bundle
        self.client = client
        self.pid = 0

    async def call(self, method: str, request: Any) -> Any:
        return await self.client.call("containerd.task.v3.Task", method, request, timeout_s=TIMEOUT_S)

    async def start(self, script: str, stdin: str = "", stdout: str = "") -> None:
        (self.bundle / "init").write_text(script)
        request = api.task_v3.CreateTaskRequest(id="c", bundle=str(self.bundle), stdin=stdin, stdout=stdout)
        await self.call("Create", request)
        await self.call("Start", api.task_v3.StartRequest(id="c"))

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if name_of(pid) == "containerd-shim"]

    async def rested(self) -> None:
        await eventually(lambda: not self.workers())

    async def wait(self, exec_id: str = "") -> int:
        return int((await self.call("Wait", api.task_v3.WaitRequest(id="c", exec_id=exec_id))).exit_status)


def name_of(pid: str) -> str:
    """Return the name of a process, or "" when it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def eventually(condition: Callable[[], object]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await anyio.sleep(0.01)


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    """Yield a directory with a short name. It is removed once the fork server has noted the last exits in it."""
    made = Path(tempfile.mkdtemp(prefix="rest-", dir="/tmp"))
    yield made
    await eventually(lambda: removed(made))


@pytest.fixture
async def shim(directory: Path) -> AsyncIterator[Shim]:
    bundle = directory / "c"
    bundle.mkdir()
    (bundle / "fake").write_text(RUNTIME)
    (bundle / "fake").chmod(0o755)
    (bundle / "config.json").write_text('{"linux":{"namespaces":[{"type":"pid"}]}}')
    launcher = AioLauncher(directory, oci_runtime=str(bundle / "fake"))
    await launcher.ensure_server()
    params = api.bootstrap.BootstrapParams(instance_id="c", namespace="ns", socket_dir=f"{directory}/s")
    command = ShimCommand(
        namespace="ns",
        id="c",
        bundle=bundle,
        grpc_address="/no/daemon.sock",
        ttrpc_address="",
        publish_binary="",
        stdin=bytes(params),
    )
    result = api.bootstrap.BootstrapResult.parse(await launcher.start(command, timeout_s=TIMEOUT_S))
    client = await TtrpcClient.connect(result.address, timeout_s=TIMEOUT_S)
    shim = Shim(bundle, client)
    shim.pid = (await shim.call("Connect", api.task_v3.ConnectRequest(id="c"))).shim_pid
    try:
        yield shim
    finally:
        _kill_what_is_left(shim)
        await launcher.retire()
        await client.aclose()


def _kill_what_is_left(shim: Shim) -> None:
    pids = [record.pid for record in records.read_processes(shim.bundle) if record.exit_status is None]
    workers = []
    if shim.pid:
        with contextlib.suppress(OSError):  # it has ended
            os.kill(shim.pid, signal.SIGSTOP)  # it forks no other worker, which would write to the bundle meanwhile
            workers = shim.workers()
    for pid in (*workers, shim.pid, *pids):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.root
@pytest.mark.anyio
async def test_a_wait_outlasts_the_rest(shim: Shim) -> None:
    await shim.start("exec sleep 1000")
    async with anyio.create_task_group() as tasks:
        seen: list[int] = []

        async def wait() -> None:
            seen.append(await shim.wait())

        tasks.start_soon(wait)
        await shim.rested()
        os.kill(int((shim.bundle / "init.pid").read_text()), signal.SIGTERM)
    assert seen == [143]
    state = await shim.call("State", api.task_v3.StateRequest(id="c"))
    assert (state.status, state.exit_status) == (api.task_types.Status.STOPPED, 143)
    record = records.read_process(shim.bundle)
    assert record is not None
    assert record.exit_status == 143


@pytest.mark.root
@pytest.mark.anyio
async def test_an_exec_added_before_the_rest_starts_after_it(shim: Shim) -> None:
    await shim.start("exec sleep 1000")
    (shim.bundle / "exec").write_text("exit 5")
    spec = any_to_wire(typeurl.Any(typeurl.PROCESS_URL, b"{}"))
    await shim.call("Exec", api.task_v3.ExecProcessRequest(id="c", exec_id="e", spec=spec))
    await shim.rested()
    await shim.call("Start", api.task_v3.StartRequest(id="c", exec_id="e"))
    assert await shim.wait("e") == 5
    await shim.call("Delete", api.task_v3.DeleteRequest(id="c", exec_id="e"))
    await shim.rested()
    assert (await shim.call("Connect", api.task_v3.ConnectRequest(id="c"))).shim_pid == shim.pid


@pytest.mark.root
@pytest.mark.anyio
async def test_pipes_are_held_through_the_rest_and_let_go_at_close_io(shim: Shim) -> None:
    for name in ("in", "out"):
        os.mkfifo(shim.bundle / name)
    await shim.start("cat; exit 6", stdin=str(shim.bundle / "in"), stdout=str(shim.bundle / "out"))
    for text in (b"one\n", b"two\n"):
        await shim.rested()
        async with await anyio.open_file(shim.bundle / "in", "wb") as stdin:
            await stdin.write(text)
    await shim.rested()
    await shim.call("CloseIO", api.task_v3.CloseIoRequest(id="c", stdin=True))
    with anyio.fail_after(TIMEOUT_S):
        async with await anyio.open_file(shim.bundle / "out", "rb") as stdout:
            assert await stdout.read() == b"one\ntwo\n"
    assert await shim.wait() == 6


@pytest.mark.root
@pytest.mark.anyio
async def test_a_life_ends_after_a_rest(shim: Shim) -> None:
    await shim.start("exec sleep 1000")
    await shim.rested()
    await shim.call("Kill", api.task_v3.KillRequest(id="c", signal=9))
    assert await shim.wait() == 137
    await shim.call("Delete", api.task_v3.DeleteRequest(id="c"))
    await shim.call("Shutdown", api.task_v3.ShutdownRequest(id="c"))
    await shim.client.wait_closed()
    await eventually(lambda: not list((shim.bundle.parent / "s").iterdir()))


@pytest.mark.root
@pytest.mark.anyio
async def test_a_shim_ends_with_a_worker_that_was_killed(shim: Shim) -> None:
    await shim.start("exec sleep 1000")
    (worker,) = shim.workers()
    os.kill(worker, signal.SIGKILL)
    await shim.client.wait_closed()
    await eventually(lambda: ended(shim.pid))


@pytest.mark.root
@pytest.mark.anyio
async def test_a_worker_ends_with_a_shim_that_was_killed(shim: Shim) -> None:
    await shim.start("exec sleep 1000")
    (worker,) = shim.workers()
    os.kill(shim.pid, signal.SIGKILL)
    await shim.client.wait_closed()
    await eventually(lambda: ended(worker))


@pytest.mark.root
@pytest.mark.anyio
async def test_a_resting_shim_ends_when_told_to(shim: Shim) -> None:
    await shim.start("exec sleep 1000")
    await shim.rested()
    os.kill(shim.pid, signal.SIGTERM)
    await shim.client.wait_closed()
    await eventually(lambda: not list((shim.bundle.parent / "s").iterdir()))


@pytest.mark.root
@pytest.mark.anyio
async def test_exits_of_strangers_do_not_wake_a_resting_shim(shim: Shim) -> None:
    await shim.start("sh -c 'sleep 0.6 &'; exec sleep 1000")
    await shim.rested()
    await anyio.sleep(0.7)
    assert not shim.workers()


def test_a_host_without_room_for_a_process_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals: list[OSError] = [BlockingIOError(errno.EAGAIN, "full"), OSError(errno.ENOMEM, "no memory")]

    def fork() -> int:
        if refusals:
            raise refusals.pop()
        return 42

    monkeypatch.setattr(os, "fork", fork)
    assert resident.fork_as_soon_as_possible() == 42
    assert len(caplog.messages) == 1


def test_descriptors_keep_their_places_and_masks() -> None:
    held = Descriptors()
    assert [held.put(7), held.put(9, 1)] == [0, 1]
    assert (held.fds, held.masks) == ([7, 9], [-1, 1])


def test_exits_survive_the_round_trip() -> None:
    exited = Exit(pid=4_000_000, status=137, exited_at_ns=1_800_000_000_000_000_000)
    assert unpack_exit(pack_exit(exited)) == exited


def test_a_hand_over_is_taken_although_its_worker_has_not_read_every_exit() -> None:
    channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, its_end:
        channel.send(pack_exit(Exit(pid=7, status=0, exited_at_ns=1)))
        socket.send_fds(its_end, [b"record"], [its_end.fileno()])
        its_end.close()
        packet, fds = resident_channel.take_hand_over(channel)
    assert (packet, len(fds)) == (b"record", 1)
    os.close(fds[0])


def test_a_worker_that_leaves_nothing_hands_nothing_over() -> None:
    channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel:
        channel.send(pack_exit(Exit(pid=7, status=0, exited_at_ns=1)))
        its_end.close()
        assert resident_channel.take_hand_over(channel) == (b"", [])


def test_a_resident_forgets_the_exits_that_its_worker_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    shim = resident.Resident(socket.socket(socket.AF_UNIX), lambda _rest: None)
    channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    exits = [Exit(pid=number, status=0, exited_at_ns=1) for number in range(1, 101)]
    kept: list[int] = []

    def reap() -> list[Exit]:
        kept.append(len(shim._exits))
        return exits if len(kept) == 1 else []

    monkeypatch.setattr(shim, "_reap", reap)
    with channel, its_end:
        for taken in (64, 90):
            its_end.send(resident_channel.pack_taken(taken))
        left = resident_channel.HandOver(93, [95, 80], [], b"")
        resident_channel.send_hand_over(its_end, left, [its_end.fileno()])
        assert shim._attend(channel)
    assert (kept, [exited.pid for exited in shim._exits]) == ([0, 36, 10], [95])
    for fd in (*shim._fds, shim._wake_in.detach(), shim._wake_out.detach()):
        os.close(fd)


def test_a_worker_that_is_never_idle_tells_what_it_has_taken() -> None:
    channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    taken: list[Exit] = []
    duty = resident_channel.Duty(1, b"", [channel.fileno()], [], its_end, 0.3)
    at_work = Worker(duty)
    its_end.setblocking(False)
    at_work._parts = cast(Parts, SimpleNamespace(reaper=SimpleNamespace(exited=taken.append)))
    for number in range(2 * resident_channel.ACKNOWLEDGED_EVERY + 5):
        channel.send(pack_exit(Exit(pid=number, status=0, exited_at_ns=1)))
        at_work._on_channel()
    told = [resident_channel.unpack_taken(channel.recv(100)) for _ in range(2)]
    assert (told, len(taken)) == ([64, 128], 133)
    with pytest.raises(BlockingIOError):
        channel.recv(100, socket.MSG_DONTWAIT)
    at_work._listener.detach()
    channel.close()
    its_end.close()


def test_a_worker_that_was_missed_is_followed_by_one_that_lingers_longer() -> None:
    assert resident.next_linger_s(0.3, 0.6) == 0.6
    assert resident.next_linger_s(0.6, 1.7) == 1.2
    assert resident.next_linger_s(3.0, 1.0) == resident.LONGEST_LINGER_S
    assert resident.next_linger_s(1.2, 9.0) == resident.LINGER_S


def test_a_connection_that_ends_wakes_nobody_unless_it_left_a_request() -> None:
    listener = socket.socket(socket.AF_UNIX)
    shim = resident.Resident(listener, lambda _rest: None)
    for request, woken in ((b"", False), (b"request", True)):
        ours, theirs = socket.socketpair()
        poll = select.poll()
        poll.register(ours, REQUESTS)
        theirs.sendall(request)
        theirs.close()
        assert shim._woken(poll) is woken
        assert bool(poll.poll(0)) is woken, "what is not work is not polled again"
        ours.close()
    os.close(shim._fds[0])
    shim._wake_in.close()
    shim._wake_out.close()
