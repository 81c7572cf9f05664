"""Children: programs run to their end, exits found by pid, early exits kept for those who claim them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from aiocontainerd_shim.children.reaper import Exit, Reaper, spawn


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    reaper = Reaper()
    reaper.start()
    yield reaper
    reaper.stop()


def start(*argv: str) -> int:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return spawn(argv, os.environ, (null, null, null))
    finally:
        os.close(null)


@pytest.mark.anyio
async def test_a_program_reads_stdin_and_its_output_comes_back(reaper: Reaper) -> None:
    done = await reaper.run(["sh", "-c", "cat; echo problem >&2; exit 3"], env=os.environ, stdin=b"in ")
    assert (done.status, done.output) == (3, b"in problem\n")


@pytest.mark.anyio
async def test_a_program_that_is_not_there_is_an_oserror(reaper: Reaper) -> None:
    with pytest.raises(FileNotFoundError):
        await reaper.run(["no-such-program"], env=os.environ)


@pytest.mark.anyio
async def test_a_signal_is_128_plus_its_number(reaper: Reaper) -> None:
    pid = start("sleep", "60")
    found: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    reaper.watch(pid, found.set_result)
    os.kill(pid, signal.SIGTERM)
    assert (await asyncio.wait_for(found, 5)).status == 128 + signal.SIGTERM


@pytest.mark.anyio
async def test_an_exit_before_the_pid_is_known_is_kept_while_claimed(reaper: Reaper) -> None:
    found: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    with reaper.claiming():
        pid = start("true")
        while not reaper.statistics()["early"]:  # noqa: ASYNC110 - the child of a real SIGCHLD sets no event
            await asyncio.sleep(0.005)
        reaper.watch(pid, found.set_result)
    assert (await asyncio.wait_for(found, 5)).status == 0
    assert reaper.statistics() == {"watched": 0, "early": 0, "claims": 0}


@pytest.mark.anyio
async def test_a_cancelled_command_is_killed_and_reaped(reaper: Reaper) -> None:
    task = asyncio.ensure_future(reaper.run(["sleep", "60"], env=os.environ))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert reaper.statistics()["watched"] == 0
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # noqa: ASYNC222 - it does not wait


@pytest.mark.anyio
async def test_a_command_that_has_ended_is_not_killed_when_it_is_cancelled(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asyncio.ensure_future(reaper.run(["true"], env=os.environ))
    await asyncio.sleep(0)
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - `true` takes a moment
    reaper.reap()
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _number: killed.append(pid))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert not killed


@pytest.mark.anyio
async def test_children_do_not_inherit_ignored_signals(reaper: Reaper) -> None:
    done = await reaper.run(["sh", "-c", "kill -PIPE $$"], env=os.environ)
    assert done.status == 128 + signal.SIGPIPE
