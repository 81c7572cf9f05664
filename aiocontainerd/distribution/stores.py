"""The stores of one daemon that images are moved between a registry and."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import msgspec

if TYPE_CHECKING:
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.interfaces.differ import Differ
    from aiocontainerd.interfaces.metadata import ImageStore, LeaseStore, MetadataStore, NamespaceStore
    from aiocontainerd.interfaces.snapshotter import Snapshotter


class Stores(msgspec.Struct, frozen=True, kw_only=True):
    """Content, images, leases, namespaces, snapshotters by name and the differ of one daemon.

    Calls are made in the namespace and under the lease of `aiocontainerd.context`. A daemon makes it from its plugins
    (`of`), a client from its connection (`client.Client.stores`).
    """

    content: ContentStore
    images: ImageStore
    leases: LeaseStore
    namespaces: NamespaceStore
    snapshotter: Callable[[str], Snapshotter]
    differ: Differ

    @classmethod
    def of(cls, metadata: MetadataStore, differ: Differ) -> Self:
        """Return the stores of a daemon, for a plugin that requires `kinds.METADATA` and `kinds.DIFFER`."""
        return cls(
            content=metadata.content,
            images=metadata.images,
            leases=metadata.leases,
            namespaces=metadata.namespaces,
            snapshotter=metadata.snapshotter,
            differ=differ,
        )
