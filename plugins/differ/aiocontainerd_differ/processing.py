"""Turn layers of other media types into ones the differ knows (interfaces/stream_processor.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any as AnyValue

import msgspec

from aiocontainerd import typeurl
from aiocontainerd.distribution.spool import CHUNK_BYTES, spooled
from aiocontainerd.errors import ContainerdError, DataLoss, Unknown
from aiocontainerd.interfaces.content import Reader
from aiocontainerd.interfaces.stream_processor import StreamProcessor
from aiocontainerd_differ.media_types import OCI_LAYER, is_sniffed

MAX_STEPS = 8


class Step(msgspec.Struct, frozen=True):
    """One processor on the way, and the media type of its input."""

    media_type: str
    processor_id: str
    processor: StreamProcessor


def steps_from(media_type: str, processors: Mapping[str, StreamProcessor]) -> tuple[list[Step], str]:
    """Return the processors on the way to a type that the differ knows, and that type. Pure.

    Of several processors that accept a type, take the one with the last id. Stop at a plain tar; but if the layer is
    one from the start, use a processor that accepts it (facts/core 8).

    Raise Unknown for a type that no processor accepts, and for a way without end.
    """
    steps: list[Step] = []
    while (found := _accepting(media_type, processors)) is not None:
        if len(steps) == MAX_STEPS:
            raise Unknown(f"stream processors for {steps[0].media_type} lead to no layer")
        steps.append(found)
        media_type = found.processor.returns
        if media_type == OCI_LAYER:
            break
    is_sniffed(media_type)
    return steps, media_type


def _accepting(media_type: str, processors: Mapping[str, StreamProcessor]) -> Step | None:
    for processor_id in sorted(processors, reverse=True):
        if media_type in processors[processor_id].accepts:
            return Step(media_type, processor_id, processors[processor_id])
    return None


@asynccontextmanager
async def processed(
    reader: Reader, steps: Sequence[Step], payloads: Mapping[str, typeurl.Any]
) -> AsyncIterator[tuple[int, int]]:
    """Give a descriptor of the output of the last step, and its size in bytes, until the block ends."""
    async with AsyncExitStack() as streams:
        stream = await _opened(streams, _chunks(reader))
        for step in steps:
            payload = payloads.get(step.processor_id)
            output = await _opened(streams, step.processor.process(step.media_type, stream, payload))
            stream = await _opened(streams, _told(output, step))
        async with spooled(stream) as file:
            yield file


async def _opened(streams: AsyncExitStack, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the stream, and close it with the others if it can be closed."""
    if hasattr(stream, "aclose"):
        closable: AnyValue = stream
        await streams.enter_async_context(aclosing(closable))
    return stream


async def _told(stream: AsyncIterator[bytes], step: Step) -> AsyncIterator[bytes]:
    """Yield the stream. Turn what the processor raises into Unknown with the processor's name."""
    try:
        async for data in stream:
            yield data
    except ContainerdError:
        raise
    except Exception as error:
        raise Unknown(f"stream processor {step.processor_id}: {error or type(error).__name__}") from error


async def _chunks(reader: Reader) -> AsyncIterator[bytes]:
    at = 0
    while at < reader.size:
        data = await reader.read(CHUNK_BYTES, at)
        if not data:
            raise DataLoss(f"blob ended after {at} of {reader.size} bytes")
        at += len(data)
        yield data
