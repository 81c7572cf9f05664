"""The tree of keys: every record in memory, and which operations the state of a key allows (facts/core 6).

The tree mirrors `metadata.db` and changes after the database has changed, so all that it shows is on disk. It knows no
files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from aiocontainerd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.snapshotter import Kind
from aiocontainerd.snapshots.layer import Layer


class KeyTree:
    """Layers by key and by id."""

    def __init__(self, layers: Iterable[Layer] = (), last_id: int = 0) -> None:
        self._by_key: dict[str, Layer] = {}
        self._by_id: dict[str, Layer] = {}
        self._children: Counter[str] = Counter()
        self._last_id = last_id
        for layer in layers:
            self.put(layer)

    def __repr__(self) -> str:
        return f"<KeyTree {len(self._by_key)} snapshots, last id {self._last_id}>"

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, layer_id: str) -> bool:
        return layer_id in self._by_id

    def sorted(self) -> list[Layer]:
        """Return every layer, sorted by key."""
        return [self._by_key[key] for key in sorted(self._by_key)]

    def next_id(self) -> str:
        """Return an id that was never used."""
        self._last_id += 1
        return str(self._last_id)

    def skip_ids(self, used: Iterable[str]) -> None:
        """Exclude ids that files on storage have as their names from those that `next_id` returns."""
        self._last_id = max([self._last_id, *(int(name) for name in used if name.isascii() and name.isdigit())])

    def put(self, layer: Layer) -> None:
        """Add a layer, or replace the layer of the same id. Its key may have changed."""
        before = self._by_id.get(layer.id)
        if before is not None:
            self.drop(before)
        self._by_id[layer.id] = self._by_key[layer.key] = layer
        if layer.parent_id:
            self._children[layer.parent_id] += 1

    def drop(self, layer: Layer) -> None:
        """Forget a layer."""
        del self._by_id[layer.id]
        del self._by_key[layer.key]
        if layer.parent_id:
            self._children[layer.parent_id] -= 1

    def get(self, key: str) -> Layer:
        """Return the layer of a key. Raises NotFound."""
        layer = self._by_key.get(key)
        if layer is None:
            raise NotFound(f"snapshot {key} does not exist")
        return layer

    def check_free(self, key: str) -> None:
        """Raise AlreadyExists for a key that is taken, InvalidArgument for an empty key."""
        if not key:
            raise InvalidArgument("snapshot key must not be empty")
        if key in self._by_key:
            raise AlreadyExists(f"snapshot {quoted(key)}")

    def parent(self, key: str) -> Layer | None:
        """Return the committed layer that shall be the parent, None for "". Raises NotFound or InvalidArgument."""
        if not key:
            return None
        layer = self._by_key.get(key)
        if layer is None:
            raise NotFound(f"parent snapshot {key} does not exist")
        if layer.kind != Kind.COMMITTED:
            raise InvalidArgument(f"failed to create snapshot: parent {quoted(key)} is not committed snapshot")
        return layer

    def parents(self, layer: Layer) -> list[Layer]:
        """Return the layers below `layer`, nearest first."""
        chain: list[Layer] = []
        while layer.parent_id:
            layer = self._by_id[layer.parent_id]
            chain.append(layer)
        return chain

    def mountable(self, key: str) -> Layer:
        """Return the active or view layer of a key. Raises NotFound or FailedPrecondition."""
        layer = self.get(key)
        if layer.kind == Kind.COMMITTED:
            raise FailedPrecondition(f"failed to get active mount: requested snapshot {key} not active or view")
        return layer

    def active(self, key: str) -> Layer:
        """Return the active layer of a key. Raises NotFound or FailedPrecondition."""
        layer = self.get(key)
        if not layer.is_active:
            raise FailedPrecondition(f"failed to commit snapshot: snapshot {quoted(key)} is not active")
        return layer

    def childless(self, key: str) -> Layer:
        """Return the layer of a key that has no children. Raises NotFound or FailedPrecondition."""
        layer = self.get(key)
        if self._children[layer.id]:
            raise FailedPrecondition("cannot remove snapshot with child")
        return layer


def with_info(layer: Layer, **changes: object) -> Layer:
    """Return `layer` with fields of its info changed."""
    return msgspec.structs.replace(layer, info=msgspec.structs.replace(layer.info, **changes))
