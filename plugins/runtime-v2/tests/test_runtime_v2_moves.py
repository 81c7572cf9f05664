"""The kernel's lock for moves between cgroups."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiocontainerd_runtime_v2.moves import Moves, OwnCgroup

from aiocontainerd.sys import cgroup

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running() -> AsyncIterator[Moves]:
    async with anyio.create_task_group() as group:

        def spawn(function: Any, *args: Any, name: str = "") -> None:
            group.start_soon(function, *args, name=name)

        yield Moves(spawn)
        group.cancel_scope.cancel()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[int]]:
    """Puts an action in place of the move; gives the list that has one entry for each."""

    def count(action: Callable[[], object]) -> list[int]:
        calls: list[int] = []

        def stay(_own: OwnCgroup) -> None:
            calls.append(1)
            action()

        monkeypatch.setattr(OwnCgroup, "stay", stay)
        return calls

    return count


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a thread
            await anyio.sleep(0.001)


@pytest.mark.root
def test_a_process_that_moves_to_where_it_is_stays_there() -> None:
    before = cgroup.locate(os.getpid())
    own = OwnCgroup()
    own.stay()
    own.stay()
    assert cgroup.locate(os.getpid()) == before


def test_a_process_that_was_moved_is_looked_up_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "self").mkdir()
    own, places = OwnCgroup(str(tmp_path)), [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        (place / "cgroup.procs").touch()
        (tmp_path / "self/cgroup").write_text(f"0::/{place.name}\n")
        monkeypatch.setattr(cgroup, "locate", lambda _pid, at=place: cgroup.CgroupPaths(unified=str(at)))
        own.stay()
    assert [(place / "cgroup.procs").read_text() for place in places] == ["0", "0"]


async def test_expectations_during_a_move_are_one_more(counted: Callable[[Callable[[], object]], list[int]]) -> None:
    goes_on = threading.Event()
    calls = counted(lambda: goes_on.wait(5))
    async with running() as moves:
        moves.expect()
        await until(lambda: calls)
        for _ in range(3):
            moves.expect()
        goes_on.set()
        await until(lambda: len(calls) > 1)
        await anyio.sleep(0.05)
    assert len(calls) == 2


async def test_a_refused_move_is_not_tried_again(counted: Callable[[Callable[[], object]], list[int]]) -> None:
    def refuse() -> None:
        raise PermissionError("no")

    calls = counted(refuse)
    async with running() as moves:
        moves.expect()
        await until(lambda: calls)
        moves.expect()
        await anyio.sleep(0.05)
    assert calls == [1]
