"""Decode and encode big messages beside the event loop, so that one client's message does not hold up the others.

A thread does it, one message at a time: Python's lock lets the loop run every few milliseconds, and two such threads
would leave it less. Small messages, which are nearly all, stay on the loop.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from aiocontainerd.errors import ContainerdError
from aiocontainerd.sys import heap
from aiocontainerd.wire import codec, limits

if TYPE_CHECKING:
    import betterproto2

    MessageT = TypeVar("MessageT", bound=betterproto2.Message)

BIG_BYTES = 64 << 10
"""Bytes of a message, without its long strings, from which on it is decoded beside the loop. Fewer take some 30 ms in
the worst case."""
BIG_PARTS = 8000
"""List items and map entries of a message from which on it is encoded beside the loop. That takes some 15 ms."""
TRIM_S = 2.0
"""A burst of big messages ends before memory is given back."""

P = ParamSpec("P")
T = TypeVar("T")


class CodecThread:
    """The thread of one server. It starts with the first big message."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._trim_planned: asyncio.TimerHandle | None = None
        self.used = 0

    def __repr__(self) -> str:
        return f"<CodecThread used {self.used} times>"

    async def decode(self, cls: type[MessageT], data: bytes) -> MessageT:
        """Return the message of `data`. Raises as `codec.decode`, and as `limits.check` for a large one."""
        if len(data) < BIG_BYTES:
            return codec.decode(cls, data)
        if codec.work_to_decode(cls, data) < BIG_BYTES:
            found = _checked(cls, data)
        else:
            found = await self._run(_checked, cls, data)
        if isinstance(found, ContainerdError):
            raise found
        return found

    async def encode(self, message: betterproto2.Message | codec.Encoded) -> bytes:
        """Return the bytes of a message."""
        if codec.parts(message, BIG_PARTS) < BIG_PARTS:
            return codec.encode(message)
        return await self.encode_big(message)

    async def encode_big(self, message: betterproto2.Message | codec.Encoded) -> bytes:
        """Return the bytes of a message that has many parts."""
        return await self._run(codec.encode, message)

    def trim_soon(self) -> None:
        """Give memory back to the kernel in a while. Call this after something big is gone."""
        if self._trim_planned is None:
            self._trim_planned = asyncio.get_running_loop().call_later(TRIM_S, self._trim)

    def close(self) -> None:
        """End the thread once it has done what it does."""
        if self._trim_planned is not None:
            self._trim_planned.cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        assert not kwargs
        self.used += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread(), work, *args)
        finally:
            self.trim_soon()

    def _trim(self) -> None:
        """Free what calls that ended in an error left, then give back free memory.

        Their frames and errors refer to each other, and they hold buffers: 600 lists that nobody read leave 12 MiB. A
        collection comes with later calls, if there are any. It is of the loop, as what it frees is.
        """
        self._trim_planned = None
        gc.collect()
        self._thread().submit(heap.trim)

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="codec")
        return self._executor


def _checked(cls: type[MessageT], data: bytes) -> MessageT | ContainerdError:
    """Return the message of a large request, or the error of a bad one.

    An error that was raised would keep what was decoded until then. So many objects are freed here, beside the loop.
    """
    try:
        message = codec.decode(cls, data)
        limits.check(message)
    except ContainerdError as error:
        return type(error)(error.message)
    return message
