"""Registration of the overlayfs snapshotter: `[plugins."io.containerd.snapshotter.v1.overlayfs"]`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiocontainerd.plugin import InitContext, PluginConfig, Registration, SkipPlugin, StartRefused, hookimpl, kinds

if TYPE_CHECKING:
    from pathlib import Path

    from aiocontainerd_snapshotter_overlayfs.probe import Support
    from aiocontainerd_snapshotter_overlayfs.snapshotter import Settings


class Config(PluginConfig, frozen=True):
    """`root_path` "" is the plugin's own directory below the daemon's root.

    `upperdir_label` shows a snapshot's directory of changes as a label, `sync_remove` deletes files in Remove instead
    of at cleanup, `slow_chown` lets clients copy layers where ids cannot be mapped, `mount_options` are added to every
    overlay mount.
    """

    root_path: str = ""
    upperdir_label: bool = False
    sync_remove: bool = False
    slow_chown: bool = False
    mount_options: tuple[str, ...] = ()


async def init(context: InitContext[Config]) -> object:
    """Return the started snapshotter. Stopping the plugin closes it. Raise SkipPlugin if overlay cannot be used."""
    from pathlib import Path

    import anyio.to_thread

    from aiocontainerd_snapshotter_overlayfs.snapshotter import OverlaySnapshotter

    root = Path(context.config.root_path or context.root)
    support = await anyio.to_thread.run_sync(_prepared, root, context.daemon.state)
    if support.missing:
        raise SkipPlugin(support.missing)
    context.exports["root"] = str(root)
    context.capabilities.extend(capabilities(context.config, support))
    snapshotter = OverlaySnapshotter(root, settings(context.config, support))
    await snapshotter.start()
    context.on_stop(snapshotter.aclose)
    context.exports.update(snapshotter.exports())
    return snapshotter


def check(root: Path, config: Config) -> None:
    """Refuse the start on snapshots of containerd's, before anything is written."""
    from pathlib import Path

    from aiocontainerd.snapshots import foreign

    try:
        foreign.refuse(Path(config.root_path or root))
    except foreign.ForeignDatabaseError as error:
        raise StartRefused(str(error)) from error


def _prepared(root: Path, state: Path) -> Support:
    from aiocontainerd.index.reserve import Reserve, with_room
    from aiocontainerd.snapshots import foreign
    from aiocontainerd.sys.read_only import is_read_only
    from aiocontainerd_snapshotter_overlayfs.probe import assumed, probe

    foreign.refuse(root)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_read_only(root):
        return assumed(str(state))
    return with_room(Reserve(root / foreign.RECORDS, 0), lambda: probe(str(root)))


def capabilities(config: Config, support: Support) -> list[str]:
    """Return the words that clients look for before they remap ids or unpack layers out of order."""
    chosen = {
        "remap-ids": support.id_mapped,
        "only-remap-ids": not config.slow_chown,
        "rebase": not support.user_namespace,
    }
    return [name for name, on in chosen.items() if on]


def settings(config: Config, support: Support) -> Settings:
    """Return the settings of the snapshotter for a config and a kernel."""
    from aiocontainerd_snapshotter_overlayfs.snapshotter import Settings

    configured = options = config.mount_options
    if support.userxattr and "userxattr" not in configured:
        options += ("userxattr",)
    if support.index and not any(option.partition("=")[0] == "index" for option in configured):
        options += ("index=off",)
    return Settings(
        overlay_options=options,
        id_mapped=support.id_mapped,
        upper_label=config.upperdir_label,
        sync_remove=config.sync_remove,
        rebase=not support.user_namespace,
    )


@hookimpl
def register_plugins() -> Iterable[Registration]:
    return [Registration(kind=kinds.SNAPSHOTTER, id="overlayfs", config=Config, init=init, check=check)]
