"""Registration of the native snapshotter: `[plugins."io.containerd.snapshotter.v1.native"]`."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, hookimpl, kinds


class Config(PluginConfig, frozen=True):
    """`root_path` "" is the plugin's own directory below the daemon's root."""

    root_path: str = ""


async def init(context: InitContext[Config]) -> object:
    """The started snapshotter; stopping the plugin closes it."""
    from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

    root = context.config.root_path or str(context.root)
    context.exports["root"] = root
    snapshotter = NativeSnapshotter(root)
    await snapshotter.start()
    context.on_stop(snapshotter.aclose)
    return snapshotter


@hookimpl
def register_plugins() -> Iterable[Registration]:
    return [Registration(kind=kinds.SNAPSHOTTER, id="native", config=Config, init=init)]
