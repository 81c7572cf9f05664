"""Command lines of the OCI runtime and what its failures say (facts/runtime 6.1, 6.2)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiocontainerd_shim.children.reaper import Reaper
from aiocontainerd_shim.oci import choice, tries
from aiocontainerd_shim.oci.choice import Choice
from aiocontainerd_shim.oci.runtime import (
    CheckpointFlags,
    CreateFlags,
    OciError,
    OciRuntime,
    child_environment,
    ending,
    explained,
    last_error,
    not_run,
    read_pid,
    runtime_root,
)
from aiocontainerd_shim.task.init import kill_error

from aiocontainerd.errors import FailedPrecondition, NotFound, Unknown

FAKE = """#!/bin/sh
echo "$@" >> "$0.calls"
cat >> "$0.stdin"
case "$*" in
  *" ps "*) echo '[12,13]';;
  *" create "*|*" exec "*|*" restore "*)
    while [ "$1" != --pid-file ]; do shift; done; echo 42 > "$2";;
  *" pause "*) echo '{"level":"error","msg":"old"}' >> "$FAKE_LOG"
    echo '{"level":"error","msg":"frozen stiff"}' >> "$FAKE_LOG"; exit 1;;
  *" delete gone"*) echo "cannot open directory '/r/ns/gone': No such file or directory" >&2; exit 1;;
  *" delete "*) echo 'container does not exist' >&2; exit 1;;
  *" resume "*) echo 'no words'; exit 3;;
esac
"""


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[OciRuntime]:
    program = tmp_path / "fake"
    program.write_text(FAKE)
    program.chmod(0o755)
    reaper = Reaper()
    reaper.start()
    env = {**os.environ, "FAKE_LOG": str(tmp_path / "log.json")}
    yield OciRuntime(str(program), "/r/ns", reaper, env=env, log=tmp_path / "log.json")
    reaper.stop()


def calls(tmp_path: Path) -> list[str]:
    prefix = f"--root /r/ns --log {tmp_path}/log.json --log-format json "
    return [line.removeprefix(prefix) for line in (tmp_path / "fake.calls").read_text().splitlines()]


@pytest.mark.anyio
async def test_verbs_have_the_arguments_of_the_facts(runtime: OciRuntime, tmp_path: Path) -> None:
    pid_file = tmp_path / "init.pid"
    flags = CreateFlags(no_pivot=True, no_new_keyring=True, console_socket="/s")
    assert await runtime.create("c", tmp_path, pid_file, flags, None) == 42
    assert await runtime.exec("c", tmp_path / "p", pid_file, "", None) == 42
    await runtime.start("c")
    await runtime.kill("c", 9, everyone=True)
    assert await runtime.pids("c") == [12, 13]
    await runtime.update("c", b"{}")
    await runtime.delete("c")
    assert calls(tmp_path) == [
        f"create --bundle {tmp_path} --pid-file {pid_file} --console-socket /s --no-pivot --no-new-keyring c",
        f"exec --process {tmp_path}/p --detach --pid-file {pid_file} c",
        "start c",
        "kill --all c 9",
        "ps --format json c",
        "update --resources=- c",
        "delete c",
    ]
    assert (tmp_path / "fake.stdin").read_text() == "{}"


@pytest.mark.anyio
async def test_a_restore_is_detached_and_leaves_reaping_to_the_shim(runtime: OciRuntime, tmp_path: Path) -> None:
    image = CheckpointFlags(image_path="/i", work_path="/w")
    await runtime.restore("c", tmp_path, tmp_path / "p", CreateFlags(), image, None)
    expected = (
        f"restore --image-path /i --work-path /w --detach --pid-file {tmp_path}/p -no-subreaper --bundle {tmp_path} c"
    )
    assert calls(tmp_path) == [expected]


@pytest.mark.anyio
async def test_a_container_whose_state_is_gone_is_deleted(runtime: OciRuntime, tmp_path: Path) -> None:
    await runtime.delete("gone")
    await runtime.delete("unknown")
    assert calls(tmp_path) == ["delete gone", "delete unknown"]


@pytest.mark.anyio
async def test_the_error_is_the_last_one_this_command_logged(runtime: OciRuntime, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text('{"level":"error","msg":"of another command"}\n')
    with pytest.raises(OciError, match=r"^frozen stiff$"):
        await runtime.pause("c")
    with pytest.raises(OciError, match=r"^/\S*/fake did not terminate successfully: exit status 3: no words$"):
        await runtime.resume("c")


@pytest.mark.anyio
async def test_a_program_that_is_missing_is_told_in_the_words_of_containerd(
    runtime: OciRuntime, tmp_path: Path
) -> None:
    log = tmp_path / "log.json"
    unlogged = f"unable to retrieve OCI runtime error (open {log}: no such file or directory): "
    runtime.binary = "/nonexistent/runc"
    with pytest.raises(OciError) as absent:
        await runtime.start("c")
    assert str(absent.value) == unlogged + "fork/exec /nonexistent/runc: no such file or directory"
    log.write_text('{"level":"error","msg":"of another command"}\n')
    runtime.binary = "aiocontainerd-no-such-runtime"
    with pytest.raises(OciError) as unknown:
        await runtime.start("c")
    assert str(unknown.value) == 'exec: "aiocontainerd-no-such-runtime": executable file not found in $PATH'


def test_checkpoint_flags_leave_running_unless_told_to_exit() -> None:
    flags = CheckpointFlags(image_path="/i", work_path="/w", open_tcp=True, empty_namespaces=("network",))
    assert flags.argv == [
        "--image-path",
        "/i",
        "--work-path",
        "/w",
        "--tcp-established",
        "--empty-ns",
        "network",
        "--leave-running",
    ]
    assert "--leave-running" not in CheckpointFlags(image_path="/i", work_path="/w", exit=True).argv


def test_a_log_without_an_error_gives_none() -> None:
    assert last_error(b'{"level":"info","msg":"x"}\nnot json\n') == ""


def test_a_failed_command_is_explained_by_its_log_then_its_output(tmp_path: Path) -> None:
    log, how = tmp_path / "log.json", ending("/bin/runc", 1)
    assert how == "/bin/runc did not terminate successfully: exit status 1"
    unlogged = f"unable to retrieve OCI runtime error (open {log}: no such file or directory): "
    assert str(explained(how, b"out\n", log)) == f"{unlogged}{how}: out"
    log.write_text('{"level":"info","msg":"x"}\n')
    assert str(explained(how, b"out\n", log)) == f"{how}: out"
    log.write_text("no JSON\n")
    bad = "unable to retrieve OCI runtime error (invalid character 'o' in literal null (expecting 'u')): "
    assert str(explained(how, b"out\n", log)) == f"{bad}{how}: out"
    log.write_text('{"level":"error","msg":"frozen stiff"}\n')
    failed = explained(how, b"out\n", log)
    assert (str(failed), failed.raw) == ("frozen stiff", f"{how}: out\n")


def test_what_a_command_wrote_into_streams_it_was_given_explains_it_too(tmp_path: Path) -> None:
    log, how = tmp_path / "log.json", ending("/bin/runc", 1)
    log.write_text("")
    failed = explained(how, b"", log)
    failed.add_output(b"words\n")
    assert (str(failed), failed.output) == (f"{how}: words", "words")
    log.write_text('{"level":"error","msg":"frozen stiff"}\n')
    logged = explained(how, b"", log)
    logged.add_output(b"words\n")
    assert (str(logged), logged.output) == ("frozen stiff", "words")


def test_a_pid_that_the_runtime_did_not_write_is_told_without_the_number_of_the_error(tmp_path: Path) -> None:
    with pytest.raises(OciError) as missing:
        read_pid(tmp_path / "init.pid")
    reason = f"open {tmp_path}/init.pid: no such file or directory"
    assert str(missing.value) == f"failed to retrieve OCI runtime container pid: {reason}"


def test_what_cannot_be_executed_is_told_as_go_does() -> None:
    assert not_run("/x/runc", PermissionError(13, "Permission denied", "/x/runc")) == (
        "fork/exec /x/runc: permission denied"
    )
    for number in (2, 13, 22, 36):
        assert not_run("a\0b", OSError(number, "x")) == 'exec: "a\\x00b": executable file not found in $PATH'
    assert not_run("runc", OSError(24, "Too many open files")) == "fork/exec runc: too many open files"


def test_kill_failures_are_told_apart_by_the_words_of_the_runtime() -> None:
    assert kill_error(OciError("container not running", ""), "/r").message == "process already finished"
    crun = "error opening file `/r/c/status`: No such file or directory"
    for missing in (OciError("x", 'container "c" does not exist'), OciError(crun, "")):
        found = kill_error(missing, "/r")
        assert isinstance(found, NotFound)
        assert found.message == "no such container"
    for other in ("odd", crun):
        assert isinstance(kill_error(OciError(other, ""), "/elsewhere"), Unknown)


def test_the_service_managers_socket_does_not_reach_containers() -> None:
    assert child_environment({"NOTIFY_SOCKET": "/x", "A": "b"}) == {"A": "b"}


def test_the_runtime_keeps_its_state_by_namespace() -> None:
    assert runtime_root("", "k8s.io") == "/run/containerd/runc/k8s.io"


def test_no_runtime_installed_says_what_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(choice, "_complaints", {})
    with pytest.raises(FailedPrecondition, match=r"neither crun nor runc is in .*install one"):
        choice.find()


def test_options_and_config_come_before_the_probe() -> None:
    assert choice.choose("mine", {choice.CONFIGURED_ENV: "theirs"}) == Choice("mine")
    assert choice.choose("", {choice.CONFIGURED_ENV: "theirs"}) == Choice("theirs")


@pytest.mark.root
def test_a_probe_leaves_no_cgroup_behind() -> None:
    before = set(Path("/sys/fs/cgroup").glob("*/aiocontainerd-probe-*"))
    assert isinstance(choice.probe("runc"), str)
    assert set(Path("/sys/fs/cgroup").glob("*/aiocontainerd-probe-*")) == before


@pytest.mark.parametrize(("written", "limit_s"), [("2.5", 2.5), ("inf", None), ("soon", 10.0)])
def test_the_limit_of_a_probe_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, written: str, limit_s: float | None
) -> None:
    monkeypatch.setenv(tries.LIMIT_ENV, written)
    assert tries.limit_s() == limit_s
