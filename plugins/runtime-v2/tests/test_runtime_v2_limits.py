"""The keys of `[timeouts]` reach the calls that they limit; the room lists its modules."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import aiocontainerd_runtime_v2
import pytest
from aiocontainerd_runtime_v2 import deadlines
from aiocontainerd_runtime_v2.bootstrap import Endpoint
from aiocontainerd_runtime_v2.bundle import Layout
from aiocontainerd_runtime_v2.deadlines import Deadlines
from aiocontainerd_runtime_v2.manager import ShimManager, Surroundings

from aiocontainerd.durations import parse
from aiocontainerd.errors import Unavailable
from aiocontainerd.rpc.ttrpc.client import TtrpcClient

ROOM = Path(aiocontainerd_runtime_v2.__file__).parent


def test_each_limit_has_its_own_key() -> None:
    seconds = {
        deadlines.SHIM_START: 1.0,
        deadlines.SHIM_CREATE: 2.0,
        deadlines.TASK_STATE: 3.0,
        deadlines.SHIM_STATS: 4.0,
        deadlines.SHIM_LOAD: 5.0,
        deadlines.SHIM_CLEANUP: 6.0,
        deadlines.SHIM_SHUTDOWN: 0.0,
    }
    assert set(seconds) == set(deadlines.TIMEOUTS)
    assert Deadlines.from_timeouts(lambda timeout: seconds[timeout]) == Deadlines(
        start_s=1.0, call_s=2.0, state_s=3.0, stats_s=4.0, load_s=5.0, cleanup_s=6.0, shutdown_s=math.inf
    )


def test_the_defaults_are_those_of_the_keys() -> None:
    assert Deadlines() == Deadlines.from_timeouts(lambda timeout: parse(timeout.default))


@pytest.mark.anyio
async def test_connecting_to_a_shim_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    async def connect(_address: str, *, timeout_s: float) -> TtrpcClient:
        asked.append(timeout_s)
        raise OSError("nobody")

    monkeypatch.setattr(TtrpcClient, "connect", connect)
    limits = Deadlines(load_s=0.25)
    manager = ShimManager(Surroundings(grpc_address="", ttrpc_address="", publish_binary=""), limits)
    bundle = Layout(tmp_path, tmp_path).bundle("ns", "c")
    for load_s in (0.25, 7.0):
        limits.load_s = load_s
        with pytest.raises(Unavailable):
            await manager.connect(bundle, Endpoint(3, "unix:///x"), cast(Any, None))
    assert asked == [0.25, 7.0]


def test_the_room_lists_its_modules() -> None:
    modules = {path.stem for path in ROOM.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"(?m)^(\w+)  +", (ROOM / "__init__.py").read_text())) == modules
