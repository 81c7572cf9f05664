"""Registration of the native snapshotter: `[plugins."io.containerd.snapshotter.v1.native"]`."""

from __future__ import annotations

from aiocontainerd.plugin import InitContext, PluginConfig, kinds, register


class Config(PluginConfig, frozen=True):
    """`root_path` "" is the plugin's own directory below the daemon's root."""

    root_path: str = ""


@register(kinds.SNAPSHOTTER, "native", config=Config)
async def init(context: InitContext[Config]) -> object:
    """Return the started snapshotter. Stopping the plugin closes it."""
    from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

    root = context.config.root_path or str(context.root)
    context.exports["root"] = root
    snapshotter = NativeSnapshotter(root)
    await snapshotter.start()
    context.on_stop(snapshotter.aclose)
    return snapshotter
