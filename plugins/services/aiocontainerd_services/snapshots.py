"""The snapshotters by name, as requests name them (facts/core 6). Everything else is the metadata store's."""

from __future__ import annotations

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.metadata import MetadataStore
from aiocontainerd.interfaces.snapshotter import Snapshotter


class SnapshotsService:
    """The loaded snapshotters, each as the view of the current namespace."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata

    def snapshotter(self, name: str) -> Snapshotter:
        """Raises InvalidArgument for an empty or an unknown name."""
        if not name:
            raise InvalidArgument("snapshotter argument missing")
        if name not in self._metadata.snapshotters:
            raise InvalidArgument(f"snapshotter not loaded: {name}")
        return self._metadata.snapshotter(name)
