"""Registration of the metadata store.

Its id is `bolt`, containerd's own, although it keeps its records in SQLite: the config table
`[plugins."io.containerd.metadata.v1.bolt"]` and clients that look the plugin up mean the same here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from aiocontainerd.plugin import (
    Duration,
    InitContext,
    PluginConfig,
    Registration,
    StartRefused,
    Timeout,
    hookimpl,
    kinds,
)
from aiocontainerd_metadata_sqlite.cache import CACHE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

GC_BACKEND = Timeout(
    "io.containerd.timeout.gc.backend",
    "1m0s",
    "Each step of a garbage collection in a content store or snapshotter, such as listing or removing.",
)


class Config(PluginConfig, frozen=True):
    """Config of the metadata store."""

    content_sharing_policy: Literal["shared", "isolated"] = "shared"
    """Return whether a namespace may have a blob of another one without sending its bytes."""
    no_sync: bool = False
    """Commits do not wait for the disk: faster, and a power failure loses what was acknowledged last."""
    cache_bytes: Annotated[int, msgspec.Meta(ge=0)] = CACHE_BYTES
    """Memory for the records that were read last; 0 keeps none."""
    backup_interval: Duration = Duration("1h")
    """The database is copied beside itself once in this time if it changed; 0s never copies it while it is open."""


def check(root: Path, _config: Config) -> None:
    """Refuse the start on a root whose records are containerd's or no database, before anything is written."""
    from aiocontainerd.index.database import DamagedDatabaseError, ForeignDatabaseError, refuse_foreign
    from aiocontainerd_metadata_sqlite.schema import NAME

    try:
        refuse_foreign(root / "meta.db", NAME)
    except (ForeignDatabaseError, DamagedDatabaseError) as error:
        raise StartRefused(str(error)) from error


async def init(context: InitContext[Config]) -> object:
    """Open `<root>/meta.db` over the one content store and every loaded snapshotter.

    Nothing works without it, so the daemon does not start on a database that cannot be opened.
    """
    from aiocontainerd.errors import ContainerdError, os_text
    from aiocontainerd_metadata_sqlite.store import SqliteMetadataStore

    path = context.root / "meta.db"
    store = SqliteMetadataStore(
        path,
        content=context.get_single(kinds.CONTENT),
        snapshotters=context.get_all(kinds.SNAPSHOTTER),
        bus=context.bus,
        policy=context.config.content_sharing_policy,
        sync=not context.config.no_sync,
        cache_bytes=context.config.cache_bytes,
        backend_limit_s=lambda: context.timeout_s(GC_BACKEND) or math.inf,
    )
    context.exports.update(path=str(path), policy=context.config.content_sharing_policy)
    context.on_stop(store.aclose)
    store.ownership.changed = lambda: _show_kept(context, store)
    try:
        await store.open()
    except ContainerdError as error:
        raise StartRefused(str(error)) from error
    except OSError as error:
        raise StartRefused(f"metadata database {path} cannot be opened: {os_text(error)}") from error
    if context.config.backup_interval.seconds:
        context.tasks.start_soon(store.keep_copies, context.config.backup_interval.seconds, name="copies")
    context.watch(kinds.SNAPSHOTTER, store.follow)
    return store


def _show_kept(context: InitContext[Config], store: SqliteMetadataStore) -> None:
    """Show in introspection what the backends keep although no record knows it."""
    kept = ", ".join(f"{number} {name}" for name, number in sorted(store.ownership.kept.items()))
    context.exports.pop("kept", None)
    if kept:
        context.exports["kept"] = kept


@hookimpl
def register_plugins() -> list[Registration]:
    return [
        Registration(
            kind=kinds.METADATA,
            id="bolt",
            config=Config,
            requires=(kinds.CONTENT, kinds.SNAPSHOTTER, kinds.EVENT),
            timeouts=(GC_BACKEND,),
            init=init,
            check=check,
        )
    ]
