"""Programs that are run to their end."""

from __future__ import annotations

import signal
from typing import Any

import anyio
import pytest
from anyio.abc import Process

from aiocontainerd.errors import DeadlineExceeded
from aiocontainerd.sys import programs

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def test_a_program_is_ended_also_if_the_limit_passes_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Process] = []
    start = anyio.open_process

    async def start_slowly(*args: Any, **options: Any) -> Process:
        started.append(await start(*args, **options))
        await anyio.sleep(0.1)
        return started[0]

    monkeypatch.setattr(anyio, "open_process", start_slowly)
    with pytest.raises(DeadlineExceeded, match=r"^sleep 100 did not end within 0.05s$"):
        await programs.run(["sleep", "100"], timeout_s=0.05)
    assert started[0].returncode == -signal.SIGKILL
