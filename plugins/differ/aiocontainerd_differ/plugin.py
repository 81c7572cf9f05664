"""Registration of the walking differ as `io.containerd.differ.v1.walking`, and of `[stream_processors]`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds

if TYPE_CHECKING:
    from aiocontainerd.config.records import StreamProgram


class Config(PluginConfig, frozen=True, kw_only=True):
    """`sync_fs` syncs the file system of each applied layer, whatever the call says."""

    sync_fs: bool = False


async def init(context: InitContext[Config]) -> object:
    """The differ over the content of the call's namespace."""
    from aiocontainerd_differ.differ import WalkingDiffer

    metadata = context.get(kinds.METADATA, "bolt")
    temp_root = context.daemon.root / "tmpmounts"
    processors = context.get_all(kinds.STREAM_PROCESSOR)
    return WalkingDiffer(metadata.content, str(temp_root), sync_fs=context.config.sync_fs, processors=processors)


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
