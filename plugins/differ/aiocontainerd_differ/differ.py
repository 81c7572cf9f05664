"""Apply and compare layers: a `Differ` (interfaces/differ.py) over a namespaced content store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType

import anyio
import anyio.to_thread

from aiocontainerd.distribution.spool import as_file
from aiocontainerd.errors import ContainerdError, ResourceExhausted, Unknown
from aiocontainerd.interfaces.content import ContentStore, Reader
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.interfaces.stream_processor import StreamProcessor
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount, syncfs, temp_mount
from aiocontainerd_differ.applying import run_unpack
from aiocontainerd_differ.media_types import OCI_LAYER, is_sniffed
from aiocontainerd_differ.processing import Step, processed, steps_from
from aiocontainerd_differ.targets import Target, direct_target

MAX_ENTRIES = 5_000_000
_NONE: Mapping[str, StreamProcessor] = MappingProxyType({})


class WalkingDiffer:
    """Applies layers of `content` and computes new ones. Trees are mounted below `temp_root` while they are worked on.

    `at_once` is how many layers it works on at the same time, `max_entries` how many entries a layer may have. The
    deadline of a call is its caller's, which is the guard in the daemon.
    """

    def __init__(
        self,
        content: ContentStore,
        temp_root: str,
        *,
        sync_fs: bool = False,
        at_once: int = 0,
        max_entries: int = MAX_ENTRIES,
        processors: Mapping[str, StreamProcessor] = _NONE,
    ) -> None:
        self._content = content
        self._temp_root = temp_root
        self._sync_fs = sync_fs
        self._max_entries = max_entries
        self._processors = processors
        self._limiter = anyio.CapacityLimiter(at_once or max(2, os.cpu_count() or 1))

    def __repr__(self) -> str:
        return f"<WalkingDiffer {self.statistics()}>"

    def statistics(self) -> dict[str, int]:
        """Return how many layers are being applied or compared."""
        return {"applying": self._limiter.borrowed_tokens}

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        """Unpack `layer`; return the descriptor of the uncompressed stream. Errors name the layer's digest."""
        async with self._limiter, await self._reader(layer) as reader:
            steps, media_type = steps_from(layer.media_type, self._processors)
            async with _plain(reader, steps, options) as (blob, size), self._target(mounts) as target:
                sniff = is_sniffed(media_type)
                try:
                    result = await run_unpack(blob, size, target, sniff=sniff, max_entries=self._max_entries)
                except (Unknown, ResourceExhausted) as error:
                    raise type(error)(f"failed to apply layer {layer.digest}: {error.message}") from error
                if options.sync_fs or self._sync_fs:
                    await anyio.to_thread.run_sync(syncfs, target.path)
        return Descriptor(OCI_LAYER, result.digest, result.size)

    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor:
        """Write the difference of two trees to the content store as a layer; return its descriptor."""
        from aiocontainerd_differ.comparing import compare

        async with self._limiter:
            return await compare(self._content, self._temp_root, lower, upper, options)

    async def _reader(self, layer: Descriptor) -> Reader:
        try:
            return await self._content.reader(layer.digest)
        except ContainerdError as error:
            raise type(error)(f"failed to get reader from content store: {error.message}") from error

    @asynccontextmanager
    async def _target(self, mounts: Sequence[Mount]) -> AsyncIterator[Target]:
        direct = await anyio.to_thread.run_sync(direct_target, mounts)
        if direct is not None:
            yield direct
            return
        async with temp_mount(mounts, self._temp_root) as path:
            yield Target(path)


@asynccontextmanager
async def _plain(reader: Reader, steps: Sequence[Step], options: ApplyOptions) -> AsyncIterator[tuple[int, int]]:
    """Give the layer as a file, and its size. Pass it through the processors that it needs."""
    if steps:
        async with processed(reader, steps, options.payloads) as file:
            yield file
        return
    async with as_file(reader) as blob:
        yield blob, reader.size
