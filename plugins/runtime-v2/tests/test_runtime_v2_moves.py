"""The kernel's lock for moves between cgroups."""

from __future__ import annotations

import os
import threading
from typing import Any

import anyio
import pytest
from aiocontainerd_runtime_v2 import moves
from aiocontainerd_runtime_v2.moves import Moves
from anyio.abc import TaskGroup

from aiocontainerd.sys import cgroup

pytestmark = pytest.mark.anyio


def in_group(group: TaskGroup) -> Moves:
    def spawn(function: Any, *args: Any, name: str = "") -> None:
        group.start_soon(function, *args, name=name)

    return Moves(spawn)


@pytest.mark.root
async def test_a_process_that_moves_to_where_it_is_stays_there() -> None:
    before = cgroup.locate(os.getpid())
    async with anyio.create_task_group() as group:
        in_group(group).expect()
    assert cgroup.locate(os.getpid()) == before


async def test_expectations_at_once_are_one_move(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, goes_on = [], threading.Event()

    def stay() -> None:
        calls.append(1)
        goes_on.wait(5)

    monkeypatch.setattr(moves, "stay", stay)
    async with anyio.create_task_group() as group:
        expected = in_group(group)
        for _ in range(3):
            expected.expect()
            await anyio.sleep(0.01)
        goes_on.set()
    assert len(calls) == 1
    async with anyio.create_task_group() as group:
        expected = in_group(group)
        for _ in range(2):
            expected.expect()
            await anyio.sleep(0.05)
    assert len(calls) == 3


async def test_a_refused_move_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stay() -> None:
        calls.append(1)
        raise PermissionError("no")

    monkeypatch.setattr(moves, "stay", stay)
    async with anyio.create_task_group() as group:
        expected = in_group(group)
        for _ in range(3):
            expected.expect()
            await anyio.sleep(0.01)
    assert calls == [1]
