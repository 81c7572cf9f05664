"""Logger processes: arguments, environment, readiness, their end."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiocontainerd_shim.io import logger as logger_module
from aiocontainerd_shim.io.logger import parse_uri, start_logger
from aiocontainerd_shim.io.stdio import Stdio, open_io

from aiocontainerd.errors import DeadlineExceeded, Unknown

pytestmark = pytest.mark.anyio


@pytest.fixture
def no_leaks() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def script(path: Path, body: str) -> Path:
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return path


def test_every_key_and_its_first_value_become_arguments() -> None:
    command = parse_uri("binary-v2:///usr/bin/my%20log?id=a%20b&flag=&id=second&x=1")
    assert command.argv == ("/usr/bin/my log", "id", "a b", "flag", "", "x", "1")
    assert command.must_call_ready
    assert not parse_uri("binary:///bin/log").must_call_ready


async def test_logger_gets_streams_arguments_and_only_two_variables(tmp_path: Path, no_leaks: None) -> None:
    program = script(
        tmp_path / "logger",
        f'printf "%s\\n" "$@" >{tmp_path}/args; tr "\\0" "\\n" </proc/$$/environ >{tmp_path}/env\n'
        f"for fd in /proc/$$/fd/*; do readlink $fd; done >{tmp_path}/fds\nexec 5>&-\n"
        f"cat <&3 >{tmp_path}/out; cat <&4 >{tmp_path}/err\n",
    )
    inherited = {os.path.realpath(f"/proc/self/fd/{fd}").rpartition("/")[2] for fd in os.listdir("/proc/self/fd")}
    uri = f"binary://{program}?tag=web"
    streams = await open_io(Stdio(stdout=uri, stderr=uri), namespace="default", container_id="c1")
    _, stdout, stderr = streams.child_fds()
    await asyncio.to_thread(
        subprocess.run, ["/bin/sh", "-c", "echo one; echo two >&2"], stdout=stdout, stderr=stderr, check=True
    )
    streams.child_started()
    assert await streams.drained(5)
    await streams.aclose()
    assert (tmp_path / "args").read_text() == "tag\nweb\n"
    assert set((tmp_path / "env").read_text().split()) == {"CONTAINER_ID=c1", "CONTAINER_NAMESPACE=default"}
    pipes = {link for link in (tmp_path / "fds").read_text().split() if link.startswith("pipe:")}
    assert len(pipes - inherited) == 3
    assert (tmp_path / "out").read_text() == "one\n"
    assert (tmp_path / "err").read_text() == "two\n"


async def test_first_version_is_ready_when_it_ends_the_pipe(tmp_path: Path, no_leaks: None) -> None:
    logger = await start_logger(f"binary://{script(tmp_path / 'l', 'exit 3')}", namespace="n", container_id="c")
    await asyncio.wait_for(logger.exited(), 5)
    await logger.aclose()


async def test_second_version_must_call_ready(tmp_path: Path, no_leaks: None) -> None:
    with pytest.raises(Unknown, match=r"^logging binary did not call ready \(it may have crashed or exited"):
        await start_logger(f"binary-v2://{script(tmp_path / 'l', 'exit 0')}", namespace="n", container_id="c")


async def test_second_version_is_ready_by_a_byte(tmp_path: Path, no_leaks: None) -> None:
    program = script(tmp_path / "l", "printf r >&5; exec 5>&-; exec cat <&3 >/dev/null")
    logger = await start_logger(f"binary-v2://{program}", namespace="n", container_id="c")
    logger.close_writers()
    await asyncio.wait_for(logger.exited(), 5)
    await logger.aclose()


async def test_readiness_has_a_deadline_and_the_process_is_gone(tmp_path: Path, no_leaks: None) -> None:
    program = script(tmp_path / "l", f"echo $$ >{tmp_path}/pid; exec sleep 60")
    with pytest.raises(DeadlineExceeded, match=r"logging binary .* was not ready within 0\.3 s"):
        await start_logger(f"binary://{program}", namespace="n", container_id="c", timeout_s=0.3)
    pid = int((tmp_path / "pid").read_text())
    assert not os.path.exists(f"/proc/{pid}")


async def test_missing_program_is_named(tmp_path: Path, no_leaks: None) -> None:
    with pytest.raises(Unknown, match=f"fork/exec {tmp_path}/gone: no such file or directory"):
        await open_io(Stdio(stdout=f"binary://{tmp_path}/gone"), namespace="n", container_id="c")


async def test_closing_terminates_and_then_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setattr(logger_module, "TERM_TIMEOUT_S", 0.2)
    body = f"trap 'echo term >>{tmp_path}/seen' TERM; exec 5>&-; while :; do sleep 0.05; done"
    logger = await start_logger(f"binary://{script(tmp_path / 'l', body)}", namespace="n", container_id="c")
    await logger.aclose()
    assert (tmp_path / "seen").read_text() == "term\n"
    assert not os.path.exists(f"/proc/{logger.pid}")


async def test_closing_spares_the_wait_for_a_logger_that_obeys(tmp_path: Path, no_leaks: None) -> None:
    program = script(tmp_path / "l", "exec 5>&-; exec sleep 60")
    logger = await start_logger(f"binary://{program}", namespace="n", container_id="c")
    await asyncio.wait_for(logger.aclose(), 5)
    assert not os.path.exists(f"/proc/{logger.pid}")


@pytest.mark.parametrize(
    ("uri", "why"),
    {
        "binary://": "exec: no command",
        "binary:relative": "exec: no command",
        "binary:///": 'exec: "/": is a directory',
        "binary:///bin/%00": "fork/exec /bin/\0: invalid argument",
    }.items(),
)
async def test_a_program_that_nobody_can_run_is_told_as_go_does(uri: str, why: str, no_leaks: None) -> None:
    with pytest.raises(Unknown) as refused:
        await open_io(Stdio(stdout=uri), namespace="n", container_id="c")
    assert refused.value.message == f"failed to create init process I/O: failed to start binary process: {why}"
