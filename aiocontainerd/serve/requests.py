"""Rules of requests that several services share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from aiocontainerd.errors import Cancelled, ContainerdError, DeadlineExceeded, InvalidArgument, Unknown, to_status

LIST_BATCH = 100
"""Records in one message of a streamed list (facts/core 4, 6)."""

MessageT = TypeVar("MessageT")
RecordT = TypeVar("RecordT")


def required(message: MessageT | None, field: str) -> MessageT:
    """Return a field of a request. Raises InvalidArgument naming the field if it is absent (facts/core 0)."""
    if message is None:
        raise InvalidArgument(f"field {field} must be set")
    return message


async def converted(records: Sequence[RecordT], to_wire: Callable[[RecordT], MessageT]) -> list[MessageT]:
    """Return the messages of many records. Others have their turn after each hundred."""
    found: list[MessageT] = []
    for start in range(0, len(records), LIST_BATCH):
        if start:
            await asyncio.sleep(0)
        found += map(to_wire, records[start : start + LIST_BATCH])
    return found


@contextmanager
def unconverted() -> Iterator[None]:
    """Turn errors of the block into Unknown with the same text, as containerd does in some calls (facts/core 0)."""
    try:
        yield
    except (Cancelled, DeadlineExceeded, Unknown):
        raise
    except ContainerdError as error:
        raise Unknown(to_status(error)[1]) from error
