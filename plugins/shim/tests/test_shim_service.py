"""The task service over an OCI runtime that makes plain processes: states, exits, the order of events."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiocontainerd_shim.children.reaper import Reaper
from aiocontainerd_shim.oci.choice import Choice
from aiocontainerd_shim.task import init, records, service
from aiocontainerd_shim.task.exits import Surroundings
from aiocontainerd_shim.task.service import TaskService

from aiocontainerd import api, typeurl
from aiocontainerd.errors import AlreadyExists, FailedPrecondition, NotFound, Unknown
from aiocontainerd.testing.processes import ended
from aiocontainerd.timestamps import ZERO_NS
from aiocontainerd.wire.anys import any_to_wire
from aiocontainerd.wire.times import time_from_wire

FAKE = """#!/bin/sh
# Makes the processes of $FAKE_PROGRAM children of the test, which is a subreaper.
verb() { for word in create start exec kill delete pause resume ps; do
  case " $* " in *" $word "*) echo $word; return;; esac; done; }
for last; do id=$signal; signal=$last; done
case $(verb "$@") in
  create) while [ "$1" != --pid-file ]; do shift; done
    touch "$FAKE_DIR/creating"; while [ -e "$FAKE_DIR/hold" ]; do sleep 0.01; done
    sh -c 'while [ ! -e "$0" ]; do sleep 0.01; done; '"$FAKE_PROGRAM" "$FAKE_DIR/started" & echo $! > "$2";;
  start) touch "$FAKE_DIR/started";;
  exec) while [ "$1" != --process ]; do shift; done; spec=$2; code=$(sed 's/.*"code":\\([0-9]*\\).*/\\1/' "$2")
    while [ "$1" != --pid-file ]; do shift; done
    case "$FAKE_DIR"/e* in "${spec%/*}"/*) ;; *) exit 3;; esac
    [ "$code" = 99 ] && { echo '{"level":"error","msg":"no such program"}' >> "$FAKE_DIR/log.json"; exit 1; }
    [ "$code" = 98 ] && { sleep 60 & echo $! > "$2"; exit 1; }
    [ "$code" = 97 ] && { touch "$FAKE_DIR/slow"; sleep 0.3; }
    # It ends once it is an orphan: a shell takes the exits of its children.
    sh -c 'while read -r _ _ _ parent _ < /proc/$$/stat && [ "$parent" = "$0" ]; do sleep 0.01; done
      exit "$1"' $$ "$code" & echo $! > "$2";;
  kill) kill -$signal $(cat "$FAKE_DIR/init.pid") || { echo 'container not running' >&2; exit 1; };;
  delete) [ -e "$FAKE_DIR/started" ] || kill -9 $(cat "$FAKE_DIR/init.pid");;
  resume) touch "$FAKE_DIR/thawed";;
  ps) echo "[$(cat "$FAKE_DIR/init.pid")]";;
esac
"""
PRIVATE_PID = b'{"linux":{"namespaces":[{"type":"pid"}]}}'


class Shim:
    """A service, its bundle and the events it published."""

    def __init__(self, bundle: Path, reaper: Reaper, tasks: asyncio.TaskGroup) -> None:
        self.bundle = bundle
        self.events: list[tuple[str, Any]] = []
        self.ended = asyncio.Event()
        self.env = {**os.environ, "FAKE_DIR": str(bundle), "FAKE_PROGRAM": "exec sleep 60"}
        around = Surroundings(reaper, lambda topic, event: self.events.append((topic, event)), tasks.create_task)
        program = str(bundle / "fake")
        self.service = TaskService(
            "ns",
            self.env,
            around,
            choose_runtime=lambda _name, _env, _config: Choice(program),
            shut_down=self.ended.set,
        )

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _ in self.events]

    async def create(self, program: str = "exec sleep 60") -> int:
        self.env["FAKE_PROGRAM"] = program
        request = api.task_v3.CreateTaskRequest(id="c", bundle=str(self.bundle))
        return (await self.service.create(request)).pid

    async def start(self, exec_id: str = "") -> int:
        return (await self.service.start(api.task_v3.StartRequest(id="c", exec_id=exec_id))).pid

    async def kill(self, signum: int = 9) -> None:
        await self.service.kill(api.task_v3.KillRequest(id="c", signal=signum))

    async def wait(self, exec_id: str = "") -> int:
        request = api.task_v3.WaitRequest(id="c", exec_id=exec_id)
        return (await asyncio.wait_for(self.service.wait(request), 10)).exit_status

    async def exec(self, exec_id: str, code: int, *, terminal: bool = False, spec: bytes = b'{"code":%d}') -> None:
        value = any_to_wire(typeurl.Any(typeurl.PROCESS_URL, spec % code if b"%d" in spec else spec))
        request = api.task_v3.ExecProcessRequest(id="c", exec_id=exec_id, spec=value, terminal=terminal)
        await self.service.exec(request)

    async def delete(self, exec_id: str = "") -> api.task_v3.DeleteResponse:
        return await self.service.delete(api.task_v3.DeleteRequest(id="c", exec_id=exec_id))

    async def state(self, exec_id: str = "") -> api.task_v3.StateResponse:
        return await self.service.state(api.task_v3.StateRequest(id="c", exec_id=exec_id))


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    from aiocontainerd.sys import prctl

    prctl.set_child_subreaper()
    (tmp_path / "fake").write_text(FAKE)
    (tmp_path / "fake").chmod(0o755)
    (tmp_path / "config.json").write_bytes(PRIVATE_PID)
    reaper = Reaper()
    reaper.start()
    async with asyncio.TaskGroup() as tasks:
        shim = Shim(tmp_path, reaper, tasks)
        yield shim
        record = records.read_process(tmp_path)
        if record is not None and record.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, 9)
            await shim.wait()
    reaper.stop()


@pytest.mark.anyio
async def test_a_life_has_its_events_in_order(shim: Shim) -> None:
    pid = await shim.create("exit 7")
    assert (await shim.state()).status == api.task_types.Status.CREATED
    assert time_from_wire((await shim.state()).exited_at) == ZERO_NS
    assert await shim.start() == pid
    assert await shim.wait() == 7
    assert (await shim.state()).status == api.task_types.Status.STOPPED
    deleted = await shim.delete()
    assert (deleted.pid, deleted.exit_status) == (pid, 7)
    assert shim.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert shim.events[2][1].id == "c"


@pytest.mark.anyio
async def test_the_exit_is_on_disk_when_it_is_told(shim: Shim) -> None:
    await shim.create("exit 3")
    await shim.start()
    await shim.wait()
    record = records.read_process(shim.bundle)
    assert record is not None
    assert (record.exit_status, record.started) == (3, True)


@pytest.mark.anyio
async def test_an_exec_has_its_own_exit_and_no_delete_event(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 5)
    with pytest.raises(AlreadyExists, match=r"^id e1$"):
        await shim.exec("e1", 5)
    await shim.start("e1")
    assert await shim.wait("e1") == 5
    await shim.delete("e1")
    with pytest.raises(NotFound, match=r"^process does not exist e1$"):
        await shim.state("e1")
    assert shim.topics == ["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]


@pytest.mark.anyio
async def test_a_failed_exec_stays_created_and_releases_its_waiters(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 99)
    with pytest.raises(Unknown, match=r"^OCI runtime exec failed: no such program$"):
        await shim.start("e1")
    await shim.wait("e1")
    assert (await shim.state("e1")).status == api.task_types.Status.CREATED
    await shim.delete("e1")


@pytest.mark.anyio
async def test_an_exec_that_cannot_be_run_at_all_releases_its_waiters(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 0)
    (shim.bundle / "fake").rename(shim.bundle / "elsewhere")
    with pytest.raises(Unknown, match=r"^OCI runtime exec failed: .*: fork/exec /.*/fake: no such file or directory$"):
        await shim.start("e1")
    await shim.wait("e1")
    assert not list(shim.bundle.glob("*.process"))


@pytest.mark.anyio
async def test_the_runtime_finds_the_spec_in_the_version_that_it_takes(shim: Shim) -> None:
    config = shim.bundle / "config.json"
    config.chmod(0o640)
    given = config.read_bytes()
    choices: list[tuple[str, bytes]] = []

    def choose(name: str, _env: object, spec: bytes) -> Choice:
        choices.append((name, spec))
        return Choice(str(shim.bundle / "fake"), b'{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"pid"}]}}')

    shim.service._choose_runtime = choose
    await shim.create()
    assert choices == [("", given)]
    assert b'"1.1.0"' in config.read_bytes()
    assert config.stat().st_mode & 0o777 == 0o640


@pytest.mark.anyio
async def test_a_spec_that_no_runtime_takes_is_a_failed_creation(shim: Shim) -> None:
    def choose(_name: str, _env: object, _spec: bytes) -> Choice:
        raise FailedPrecondition("crun takes ociVersion 1.1.0 at most")

    shim.service._choose_runtime = choose
    with pytest.raises(Unknown, match=r"^OCI runtime create failed: crun takes ociVersion 1.1.0 at most$"):
        await shim.create()


@pytest.mark.anyio
async def test_whether_an_exec_has_a_terminal_is_what_the_request_says(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 0, terminal=True, spec=b'{"terminal":false,"args":["x", "\\u0041"]}')
    await shim.exec("e2", 0, terminal=False, spec=b'{"terminal":true}')
    await shim.exec("e3", 0, terminal=True, spec=b"{}")
    (container,) = shim.service.containers
    specs = {exec_id: msgspec.json.decode(process.spec) for exec_id, process in container.execs.items()}
    assert specs == {"e1": {"terminal": True, "args": ["x", "A"]}, "e2": {"terminal": False}, "e3": {"terminal": True}}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("spec", "text"),
    {
        b"nothing": "invalid character 'o' in literal null (expecting 'u')",
        b"": "unexpected end of JSON input",
        b"{} x": "invalid character 'x' after top-level value",
        b"[]": "json: cannot unmarshal array into Go value of type specs.Process",
        b"[" * 20000: "exceeded max depth",
        b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}": "exceeded max depth",
        b'{"user":{"uid":-1}}': "json: cannot unmarshal number -1 into Go struct field Process.user.uid of type uint32",
    }.items(),
)
async def test_an_exec_of_bad_json_is_refused_in_gos_words(shim: Shim, spec: bytes, text: str) -> None:
    await shim.create()
    await shim.start()
    with pytest.raises(Unknown) as refused:
        await shim.exec("e4", 0, spec=spec)
    assert refused.value.message == text
    (container,) = shim.service.containers
    assert not container.execs


@pytest.mark.anyio
async def test_starting_an_exec_twice_ends_no_process(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 0)
    await shim.start("e1")
    await shim.wait("e1")
    ended: list[int] = []
    monkeypatch.setattr(Reaper, "end", lambda _reaper, pid: ended.append(pid))
    with pytest.raises(Unknown, match=r"^cannot start a stopped process$"):
        await shim.start("e1")
    assert ended == []


@pytest.mark.anyio
async def test_bytes_that_are_no_text_in_a_spec_are_left_to_the_runtime(shim: Shim) -> None:
    (shim.bundle / "config.json").write_bytes(b'{"ociVersion":"\xff","annotations":{"a":"\xff"}}')
    await shim.create()


@pytest.mark.anyio
async def test_a_missing_runtime_is_told_and_the_root_is_unmounted(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    unmounted: list[str] = []
    monkeypatch.setattr(init, "unmount_recursive", unmounted.append)
    (shim.bundle / "fake").unlink()
    with pytest.raises(Unknown) as told:
        await shim.create()
    log = shim.bundle / "log.json"
    assert told.value.message == (
        f"OCI runtime create failed: unable to retrieve OCI runtime error (open {log}: no such file or directory): "
        f"fork/exec {shim.bundle}/fake: no such file or directory"
    )
    assert unmounted == [str(shim.bundle / "rootfs")]


@pytest.mark.anyio
async def test_a_root_that_stays_mounted_does_not_hide_why_a_creation_failed(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: str) -> None:
        raise OSError(16, "Device or resource busy", path)

    monkeypatch.setattr(init, "unmount_recursive", busy)
    (shim.bundle / "fake").unlink()
    with pytest.raises(Unknown, match=r"^OCI runtime create failed: "):
        await shim.create()
    assert f"failed rootfs umount: unmount {shim.bundle}/rootfs: device or resource busy" in caplog.text


@pytest.mark.anyio
async def test_a_container_that_the_runtime_cannot_delete_is_unmounted_all_the_same(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmounted: list[str] = []
    monkeypatch.setattr(init, "unmount_recursive", unmounted.append)
    await shim.create("exit 0")
    await shim.start()
    await shim.wait()
    (shim.bundle / "fake").rename(shim.bundle / "elsewhere")
    with pytest.raises(Unknown, match=r"^failed to delete task: .*: no such file or directory$"):
        await shim.delete()
    assert unmounted == [str(shim.bundle / "rootfs")]
    (shim.bundle / "elsewhere").rename(shim.bundle / "fake")
    await shim.delete()


@pytest.mark.anyio
async def test_a_process_of_a_failed_exec_is_killed(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 98)
    with pytest.raises(Unknown, match=r"^OCI runtime exec failed: "):
        await shim.start("e1")
    pid = int(records.exec_pid_file(shim.bundle, "e1").read_text())
    async with asyncio.timeout(5):
        while not ended(pid):  # noqa: ASYNC110 - nobody is told of this exit
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_failed_exec_of_any_name_leaves_the_init_alone(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("init", 99)
    with pytest.raises(Unknown, match=r"^OCI runtime exec failed: no such program$"):
        await shim.start("init")
    await shim.delete("init")
    await shim.kill(15)
    assert await shim.wait() == 143


@pytest.mark.anyio
async def test_a_failed_exec_kills_nobody_who_has_the_pid_of_one_before(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 99)
    other, ending = _stranger(shim)
    records.exec_pid_file(shim.bundle, "e1").write_text(str(other))
    with pytest.raises(Unknown, match=r"^OCI runtime exec failed: no such program$"):
        await shim.start("e1")
    os.kill(other, 15)
    assert await asyncio.wait_for(ending, 10) == 143


def _stranger(shim: Shim) -> tuple[int, asyncio.Future[int]]:
    """Return a process that has nothing to do with the container, and its exit status to come."""
    other = os.posix_spawnp("sleep", ["sleep", "60"], os.environ)
    ending: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    shim.service._around.reaper.watch(other, lambda exited: ending.set_result(exited.status))
    return other, ending


async def _begin_to_create(shim: Shim) -> asyncio.Task[int]:
    """Return a creation in whose middle the OCI runtime waits until `hold` is gone."""
    (shim.bundle / "hold").touch()
    creating = asyncio.ensure_future(shim.create())
    async with asyncio.timeout(10):
        while not (shim.bundle / "creating").exists():  # noqa: ASYNC110 - made by another process
            await asyncio.sleep(0.01)
    return creating


@pytest.mark.anyio
async def test_a_container_whose_creator_has_gone_is_created_to_the_end_and_deleted(shim: Shim) -> None:
    creating = await _begin_to_create(shim)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not shim.service.idle
    (shim.bundle / "hold").unlink()
    await shim.service.settled(10)
    assert shim.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]
    assert shim.service.idle
    with pytest.raises(NotFound, match=r"^container not created$"):
        await shim.state()


@pytest.mark.anyio
async def test_a_creation_that_does_not_end_is_cut_short_when_its_caller_has_gone(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "GIVEN_UP_AFTER_S", 0.05)
    creating = await _begin_to_create(shim)
    creating.cancel()
    await shim.service.settled(10)
    assert shim.topics == []
    with pytest.raises(NotFound, match=r"^container not created$"):
        await shim.delete()


@pytest.mark.anyio
async def test_deleting_and_ending_wait_for_a_container_that_is_being_created(shim: Shim) -> None:
    creating = await _begin_to_create(shim)
    with pytest.raises(AlreadyExists, match=r"^id c$"):
        await shim.create()
    deleting = asyncio.ensure_future(shim.delete())
    ending = asyncio.ensure_future(shim.service.shutdown(api.task_v3.ShutdownRequest(id="c")))
    await asyncio.sleep(0)
    assert not shim.ended.is_set()
    (shim.bundle / "hold").unlink()
    await asyncio.wait_for(asyncio.gather(creating, deleting, ending), 10)
    assert shim.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]
    await shim.service.shutdown(api.task_v3.ShutdownRequest(id="c"))
    assert shim.ended.is_set()


@pytest.mark.anyio
async def test_an_exec_starts_although_its_caller_has_gone(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.exec("e1", 97)
    caller = asyncio.ensure_future(shim.start("e1"))
    while not (shim.bundle / "slow").exists():  # noqa: ASYNC110 - made by another process
        await asyncio.sleep(0.01)
    caller.cancel()
    assert await shim.wait("e1") == 97
    assert (await shim.state("e1")).pid


@pytest.mark.anyio
async def test_an_exec_that_waited_for_its_turn_does_not_start_after_the_init(shim: Shim) -> None:
    await shim.create("exit 0")
    await shim.exec("e1", 0)
    container = shim.service._containers["c"]
    async with container.exec("e1").lock:
        starting = asyncio.ensure_future(shim.start("e1"))
        await asyncio.sleep(0)
        await shim.start()
        while not container._exits.init_over:  # noqa: ASYNC110 - the child of a real SIGCHLD sets no event
            await asyncio.sleep(0.005)
    with pytest.raises(FailedPrecondition, match=r"^container c init process is not running$"):
        await starting


@pytest.mark.anyio
async def test_a_created_container_is_deleted_at_once_and_its_exit_comes_first(shim: Shim) -> None:
    os.mkfifo(shim.bundle / "out")
    request = api.task_v3.CreateTaskRequest(id="c", bundle=str(shim.bundle), stdout=str(shim.bundle / "out"))
    pid = (await shim.service.create(request)).pid
    waiting = asyncio.ensure_future(shim.wait())
    async with asyncio.timeout(5):
        deleted = await shim.delete()
    assert (deleted.pid, deleted.exit_status, await waiting) == (pid, 137, 137)
    assert shim.topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


@pytest.mark.anyio
async def test_an_exit_that_cannot_be_recorded_releases_the_waiters(shim: Shim) -> None:
    await shim.create("exit 4")
    await shim.start()
    init = shim.service._containers["c"].init
    async with init.lock:
        shutil.rmtree(shim.bundle / "process")
        (shim.bundle / "process").write_text("")
    assert await shim.wait() == 4
    (shim.bundle / "process").unlink()


@pytest.mark.anyio
async def test_execs_may_be_deleted_while_the_container_is(shim: Shim) -> None:
    await shim.create("exit 0")
    for exec_id in ("e1", "e2"):
        await shim.exec(exec_id, 0)
    await shim.start()
    await shim.wait()
    await asyncio.gather(shim.delete(), shim.delete("e1"), shim.delete("e2"))
    assert shim.topics[-1] == "/tasks/delete"


@pytest.mark.anyio
async def test_an_exec_does_not_start_after_the_init(shim: Shim) -> None:
    await shim.create("exit 0")
    await shim.exec("e1", 0)
    await shim.start()
    await shim.wait()
    with pytest.raises(FailedPrecondition, match=r"^container c init process is not running$"):
        await shim.start("e1")


@pytest.mark.anyio
async def test_killing_what_is_over_is_not_found(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    with pytest.raises(Unknown, match=r"^cannot delete a running process$"):
        await shim.delete()
    await shim.kill()
    assert await shim.wait() == 137
    with pytest.raises(NotFound, match=r"^process already finished$"):
        await shim.kill()


@pytest.mark.anyio
async def test_an_exec_that_was_not_started_cannot_be_killed(shim: Shim) -> None:
    await shim.create()
    await shim.exec("e1", 0)
    with pytest.raises(FailedPrecondition, match=r"^process not created$"):
        await shim.service.kill(api.task_v3.KillRequest(id="c", exec_id="e1", signal=9))


@pytest.mark.anyio
async def test_pause_and_resume_are_told(shim: Shim) -> None:
    await shim.create()
    with pytest.raises(Unknown, match=r"^cannot pause task in created state$"):
        await shim.service.pause(api.task_v3.PauseRequest(id="c"))
    await shim.start()
    await shim.service.pause(api.task_v3.PauseRequest(id="c"))
    assert (await shim.state()).status == api.task_types.Status.PAUSED
    await shim.service.resume(api.task_v3.ResumeRequest(id="c"))
    assert shim.topics[-2:] == ["/tasks/paused", "/tasks/resumed"]


@pytest.mark.anyio
async def test_a_paused_container_that_is_killed_is_thawed_to_die(shim: Shim) -> None:
    await shim.create()
    await shim.start()
    await shim.service.pause(api.task_v3.PauseRequest(id="c"))
    await shim.kill(signal.SIGWINCH)
    assert not (shim.bundle / "thawed").exists()
    await shim.kill(signal.SIGKILL)
    assert (shim.bundle / "thawed").exists()
    assert await shim.wait() == 137
    assert "/tasks/resumed" not in shim.topics


@pytest.mark.anyio
async def test_a_container_that_is_over_has_no_processes(shim: Shim) -> None:
    pid = await shim.create("exit 0")
    listed = await shim.service.pids(api.task_v3.PidsRequest(id="c"))
    assert [process.pid for process in listed.processes] == [pid]
    await shim.start()
    await shim.wait()
    assert not (await shim.service.pids(api.task_v3.PidsRequest(id="c"))).processes


@pytest.mark.anyio
async def test_an_unknown_container_is_not_created(shim: Shim) -> None:
    with pytest.raises(NotFound, match=r"^container not created$"):
        await shim.state()
    connected = await shim.service.connect(api.task_v3.ConnectRequest(id="c"))
    assert (connected.shim_pid, connected.task_pid) == (os.getpid(), 0)


@pytest.mark.anyio
async def test_shutdown_waits_for_the_last_container(shim: Shim) -> None:
    await shim.create("exit 0")
    await shim.service.shutdown(api.task_v3.ShutdownRequest(id="c"))
    assert not shim.ended.is_set()
    await shim.start()
    await shim.wait()
    await shim.delete()
    await shim.service.shutdown(api.task_v3.ShutdownRequest(id="c"))
    assert shim.ended.is_set()


def test_records_survive_the_round_trip(tmp_path: Path) -> None:
    record = records.ProcessRecord(exec_id="e", pid=5, start_time=9, started=True, stdout="/o", exit_status=0)
    records.write_process(tmp_path, record)
    assert records.read_process(tmp_path, "e") == record
    assert list(records.read_processes(tmp_path)) == [record]
    options = records.RuncOptions(root="/r", systemd_cgroup=True)
    records.write_options(tmp_path, options)
    assert msgspec.json.decode((tmp_path / "options.json").read_bytes()) == {"root": "/r", "systemd_cgroup": True}
    assert records.read_options(tmp_path) == options
