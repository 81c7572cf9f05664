from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from aiocontainerd.snapshots.claims import Claims

pytestmark = pytest.mark.anyio


async def test_keys_taken_in_any_order_do_not_deadlock() -> None:
    claims = Claims()
    turns: list[str] = []

    async def work(first: str, second: str) -> None:
        async with claims.hold(first, second):
            await anyio.lowlevel.checkpoint()
            turns.append(first)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(work, "a", "b")
                group.start_soon(work, "b", "a")
    assert sorted(turns) == ["a", "a", "a", "b", "b", "b"]
    assert repr(claims) == "<Claims held=[] pinned=[]>"


async def test_a_key_released_early_and_taken_by_another_stays_taken() -> None:
    claims = Claims()
    async with claims.hold("b"):
        async with claims.hold("a") as claim:
            claim.release("a")
            other = claims.hold("a")
            await other.__aenter__()
        assert repr(claims) == "<Claims held=['a', 'b'] pinned=[]>"
        await other.__aexit__(None, None, None)


async def test_a_cancelled_wait_gives_back_what_it_had() -> None:
    claims = Claims()
    async with claims.hold("b"):
        with anyio.move_on_after(0.01):
            async with claims.hold("a", "b"):
                pytest.fail("b is held")
        assert repr(claims) == "<Claims held=['b'] pinned=[]>"


async def test_a_pin_lasts_until_the_last_child_is_made() -> None:
    claims = Claims()
    with claims.pin("p"):
        with claims.pin("p"):
            pass
        assert claims.is_pinned("p")
    assert not claims.is_pinned("p")
