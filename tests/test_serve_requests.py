"""Rules of requests that several services share."""

from __future__ import annotations

import asyncio

import pytest

from aiocontainerd.serve.requests import LIST_BATCH, converted

pytestmark = pytest.mark.anyio


async def test_others_have_their_turn_while_many_records_become_messages() -> None:
    turns = 0
    ended = False

    async def other() -> None:
        nonlocal turns
        while not ended:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(other())
        assert await converted(range(10 * LIST_BATCH), str) == [str(number) for number in range(10 * LIST_BATCH)]
        ended = True
    assert turns >= 9


async def test_no_records_are_no_messages() -> None:
    assert await converted([], str) == []
