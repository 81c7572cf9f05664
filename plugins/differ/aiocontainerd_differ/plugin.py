"""Registration of the walking differ as `io.containerd.differ.v1.walking`, and of `[stream_processors]`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import msgspec

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds

if TYPE_CHECKING:
    from aiocontainerd.config.records import StreamProgram


class Config(PluginConfig, frozen=True, kw_only=True):
    """`sync_fs` syncs the file system of each applied layer, whatever the call says.

    `at_once` is how many layers are unpacked or compared at the same time; 0 means the number of processors, but at
    least 2. A layer of more than `max_entries` entries is refused.
    """

    sync_fs: bool = False
    at_once: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_entries: Annotated[int, msgspec.Meta(ge=0)] = 5_000_000


async def init(context: InitContext[Config]) -> object:
    """Return the differ over the content of the call's namespace."""
    from aiocontainerd_differ.differ import WalkingDiffer

    metadata = context.get(kinds.METADATA, "bolt")
    temp_root = context.daemon.root / "tmpmounts"
    processors = context.get_all(kinds.STREAM_PROCESSOR)
    config = context.config
    return WalkingDiffer(
        metadata.content,
        str(temp_root),
        sync_fs=config.sync_fs,
        at_once=config.at_once,
        max_entries=config.max_entries,
        processors=processors,
    )


@hookimpl
def register_plugins() -> Iterable[Registration]:
    return [
        Registration(
            kind=kinds.DIFFER,
            id="walking",
            requires=(kinds.METADATA,),
            wants=(kinds.STREAM_PROCESSOR,),
            config=Config,
            init=init,
        ),
    ]


@hookimpl
def register_stream_processor(name: str, settings: StreamProgram) -> Registration:
    async def open_program(context: InitContext[PluginConfig]) -> object:
        from aiocontainerd_differ.program import processor

        return processor(name, settings, context.tasks)

    return Registration(kind=kinds.STREAM_PROCESSOR, id=name, init=open_program)
