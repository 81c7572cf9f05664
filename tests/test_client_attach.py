"""What an attached client does when its own output fails."""

from __future__ import annotations

from typing import cast

import anyio
import pytest

from aiocontainerd.client.attach import Attachment
from aiocontainerd.client.stdio import Copier, Streams
from aiocontainerd.client.tasks import Tasks
from aiocontainerd.interfaces.runtime import IO, Exit

pytestmark = pytest.mark.anyio
ENDED = Exit(status=0, exited_at_ns=0)


class EndedTask:
    """The tasks of a daemon: one process that has ended. Its deletion lasts beyond the failure of the output."""

    def __init__(self) -> None:
        self.deleting, self.output_failed = anyio.Event(), anyio.Event()
        self.is_deleted = False

    async def start(self, *_ids: str) -> None:
        return

    async def wait(self, *_ids: str) -> Exit:
        return ENDED

    async def delete(self, *_ids: str) -> Exit:
        self.deleting.set()
        await self.output_failed.wait()
        for _ in range(10):  # a cancellation would be delivered at the first of these
            await anyio.lowlevel.checkpoint()
        self.is_deleted = True
        return ENDED


class FullDisk:
    """Streams of which the output fails while the process is deleted."""

    def __init__(self, tasks: EndedTask) -> None:
        self._tasks = tasks

    async def outputs(self) -> None:
        await self._tasks.deleting.wait()
        self._tasks.output_failed.set()
        raise OSError("No space left on device")

    async def input(self) -> None:
        return


async def test_a_deletion_under_way_goes_to_its_end_when_the_output_fails() -> None:
    tasks = EndedTask()
    attachment = Attachment(cast("Tasks", tasks), "c", streams=Streams(stdin=-1, stdout=-1, stderr=-1))
    copier = cast("Copier", FullDisk(tasks))

    with pytest.raises(OSError, match="No space left"):
        await attachment._stay_attached(copier, IO(), start=True, delete=True)
    assert tasks.is_deleted
