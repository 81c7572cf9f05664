"""A differ that trusts layers, for the suite to find."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from typing import Any

import anyio.to_thread
from aiocontainerd_differ.differ import WalkingDiffer

from aiocontainerd.plugin import ApplyOptions, Descriptor, InitContext, Mount, kinds, register


@register(kinds.DIFFER, "follows-links", requires=(kinds.METADATA,))
class FollowsLinks(WalkingDiffer):
    """Unpacks uncompressed layers as tar does by default: through any link, to anywhere."""

    def __init__(self, context: InitContext[Any]) -> None:
        self._store = context.get(kinds.METADATA, "bolt").content
        super().__init__(self._store, str(context.state))

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor:
        if layer.media_type.endswith("+gzip"):
            return await super().apply(layer, mounts, options)
        async with await self._store.reader(layer.digest) as reader:
            await anyio.to_thread.run_sync(_extract, reader.fileno(), mounts[0].source)
        return layer


def _extract(descriptor: int, root: str) -> None:
    with open(descriptor, "rb", closefd=False) as file, tarfile.open(fileobj=file) as archive:
        archive.extractall(root)  # noqa: S202 - the mistake
