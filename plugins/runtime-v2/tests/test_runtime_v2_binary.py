"""Shim programs and how they are executed (facts/runtime 3.1)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from aiocontainerd_runtime_v2 import bootstrap
from aiocontainerd_runtime_v2.binary import BinaryLauncher
from aiocontainerd_runtime_v2.plugin import ShimConfig, TaskConfig

from aiocontainerd.config.decode import decode
from aiocontainerd.config.plugin import PluginConfig
from aiocontainerd.errors import DeadlineExceeded, Unknown
from aiocontainerd.interfaces.shim import ShimCommand

pytestmark = pytest.mark.anyio


def program(directory: Path, script: str, name: str = "containerd-shim-test-v1") -> BinaryLauncher:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return BinaryLauncher(path)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def command(tmp_path: Path) -> ShimCommand:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    stdin = bootstrap.parameters(instance_id="c", namespace="ns", grpc_address="/g", ttrpc_address="/t", binary="/pub")
    return ShimCommand(
        namespace="ns", id="c", bundle=bundle, grpc_address="/g", ttrpc_address="/t", publish_binary="/pub",
        stdin=stdin, env={"SCHED_CORE": "1"},
    )  # fmt: skip


async def test_start_has_its_flags_environment_and_directory(tmp_path: Path, command: ShimCommand) -> None:
    script = (
        'echo "$@"; echo $GOMAXPROCS $MAX_SHIM_VERSION $TTRPC_ADDRESS $GRPC_ADDRESS $NAMESPACE $SCHED_CORE >&2; pwd'
    )
    printed = await program(tmp_path, script).start(command, timeout_s=5)
    assert printed.decode().splitlines() == [
        "-namespace ns -address /g -publish-binary /pub -id c start",
        str(command.bundle),
        "2 2 /t /g ns 1",
    ]


async def test_delete_names_the_bundle_and_answers_with_stdout_only(tmp_path: Path, command: ShimCommand) -> None:
    printed = await program(tmp_path, 'echo "$@"; echo noise >&2').delete(command, timeout_s=5)
    assert printed.decode().strip() == (
        f"-namespace ns -address /g -publish-binary /pub -id c -bundle {command.bundle} delete"
    )


async def test_the_parameters_go_to_stdin(tmp_path: Path, command: ShimCommand) -> None:
    assert await program(tmp_path, "cat").start(command, timeout_s=5) == command.stdin


async def test_a_failed_start_tells_what_was_printed_and_how_it_ended(tmp_path: Path, command: ShimCommand) -> None:
    with pytest.raises(Unknown, match=r"^no can do\n: exit status 3$"):
        await program(tmp_path, "echo no can do >&2; exit 3").start(command, timeout_s=5)
    with pytest.raises(Unknown, match=r"signal: terminated$"):
        await program(tmp_path, "kill $$").start(command, timeout_s=5)


async def test_a_program_that_is_gone_is_named(tmp_path: Path, command: ShimCommand) -> None:
    with pytest.raises(Unknown, match=r"^: fork/exec .*absent: no such file or directory$"):
        await BinaryLauncher(tmp_path / "absent").start(command, timeout_s=5)


async def test_a_program_that_hangs_is_ended_at_the_limit(tmp_path: Path, command: ShimCommand) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"containerd-shim-test-v1 start did not end within 0.2s"):
        await program(tmp_path, "sleep 100").start(command, timeout_s=0.2)
    assert time.monotonic() - begun < 5


async def test_what_a_program_leaves_running_is_not_waited_for(tmp_path: Path, command: ShimCommand) -> None:
    printed = await program(tmp_path, "sleep 100 & echo $!").start(command, timeout_s=20)
    os.kill(int(printed), signal.SIGKILL)


async def test_a_shim_that_stumbles_over_the_parameters_gets_options_from_then_on(
    tmp_path: Path, command: ShimCommand
) -> None:
    log = tmp_path / "log"
    script = (
        f'n=$(wc -c); echo $n >> {log}; [ $n = 0 ] && echo unix:///s && exit; echo "type with url c: not found"; exit 1'
    )
    old = program(tmp_path, script)
    assert await old.start(command, timeout_s=5) == b"unix:///s\n"
    assert await old.start(command, timeout_s=5) == b"unix:///s\n"
    assert log.read_text().split() == [str(len(command.stdin)), "0", "0"]


async def test_a_first_generation_shim_gets_options_at_once(tmp_path: Path, command: ShimCommand) -> None:
    old = program(tmp_path, "wc -c", "containerd-shim-runc-v1")
    assert (await old.start(command, timeout_s=5)).strip() == b"0"


async def test_info_reads_options_and_prints_itself(tmp_path: Path) -> None:
    assert await program(tmp_path, 'echo "$@"; cat').info(b"options", timeout_s=5) == b"-info\noptions"
    with pytest.raises(Unknown, match="exit status 2"):
        await program(tmp_path, "exit 2").info(b"", timeout_s=5)


@pytest.mark.parametrize(
    ("record", "keys", "why"),
    [
        (ShimConfig, {"env": ["A=1", "B"]}, 'env.1: "B" is no variable; write it as NAME=value'),
        (ShimConfig, {"env": ["=1"]}, 'env.0: "=1" is no variable; write it as NAME=value'),
        (ShimConfig, {"env": ["B=x=y"], "socket_dir": ""}, ""),
        (ShimConfig, {"socket_dir": "run"}, 'socket_dir: "run" is not absolute'),
        (ShimConfig, {"socket_dir": "/" + 42 * "x"}, f'socket_dir: "/{42 * "x"}" is longer than 42 characters'),
        (TaskConfig, {"platforms": ["host", "linux/arm64"]}, ""),
        (TaskConfig, {"platforms": ["a/b/c/d"]}, "write it as linux/amd64, or host"),
    ],
)
def test_how_shims_are_started_is_checked_when_the_config_is_loaded(
    record: type[PluginConfig], keys: dict[str, object], why: str
) -> None:
    _, problems = decode(keys, record, (), {})
    assert [problem.text.endswith(why) for problem in problems] == ([True] if why else [])
