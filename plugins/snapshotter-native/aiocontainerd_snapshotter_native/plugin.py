"""Registration of the native snapshotter: `[plugins."io.containerd.snapshotter.v1.native"]`."""

from __future__ import annotations

from pathlib import Path

from aiocontainerd.plugin import InitContext, PluginConfig, StartRefused, kinds, register


class Config(PluginConfig, frozen=True):
    """`root_path` "" is the plugin's own directory below the daemon's root."""

    root_path: str = ""


def check(root: Path, config: Config) -> None:
    """Refuse the start on snapshots of containerd's, before anything is written."""
    from aiocontainerd.snapshots import foreign

    try:
        foreign.refuse(Path(config.root_path or root))
    except foreign.ForeignDatabaseError as error:
        raise StartRefused(str(error)) from error


@register(kinds.SNAPSHOTTER, "native", config=Config, check=check)
async def init(context: InitContext[Config]) -> object:
    """Return the started snapshotter. Stopping the plugin closes it."""
    from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

    root = context.config.root_path or str(context.root)
    context.exports["root"] = root
    snapshotter = NativeSnapshotter(root)
    await snapshotter.start()
    context.on_stop(snapshotter.aclose)
    context.exports.update(snapshotter.exports())
    return snapshotter
