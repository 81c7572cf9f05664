"""Unpacking an image: its layers, one on top of the other, as committed snapshots named by chain id (facts/core 14)."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from aiocontainerd import context, labels, timestamps
from aiocontainerd.distribution import blobs
from aiocontainerd.distribution.walk import Chosen, choose
from aiocontainerd.errors import AlreadyExists, ContainerdError, InvalidArgument, NotFound
from aiocontainerd.interfaces.differ import ApplyOptions
from aiocontainerd.oci import image as oci

if TYPE_CHECKING:
    from aiocontainerd.distribution.stores import Stores
    from aiocontainerd.interfaces.snapshotter import Snapshotter
    from aiocontainerd.oci.descriptor import Descriptor
    from aiocontainerd.oci.platform import Ranking
    from aiocontainerd.sys.mount import Mount

TRIES = 3
CLEANUP_S = 10.0
DEFAULT_SNAPSHOTTER = "overlayfs"

Layered = Callable[["Descriptor", bool], None]
"""Called for every layer: whether it was unpacked now or there before."""


async def default_snapshotter(stores: Stores) -> str:
    """Return the snapshotter that the namespace's label names, else overlayfs (facts/core 1)."""
    namespace = await stores.namespaces.get(context.namespace())
    return namespace.labels.get(labels.DEFAULT_SNAPSHOTTER) or DEFAULT_SNAPSHOTTER


async def unpack_image(
    stores: Stores, target: Descriptor, rank: Ranking, snapshotter: str = "", *, layered: Layered | None = None
) -> str:
    """Unpack the manifest of an image that suits best; the chain id of its topmost layer.

    `snapshotter` "" is the namespace's default. What is no image, such as another OCI artifact, stays packed and has
    the chain id "". Raises as `walk.choose` and `unpack`.
    """
    if target.media_type not in oci.INDEX_TYPES and target.media_type not in oci.MANIFEST_TYPES:
        return ""
    chosen = await choose(stores.content, target, rank)
    if not chosen.is_image:
        return ""
    return await unpack(stores, chosen, snapshotter or await default_snapshotter(stores), layered=layered)


async def unpack(stores: Stores, chosen: Chosen, snapshotter: str, *, layered: Layered | None = None) -> str:
    """Unpack every layer that isn't unpacked yet; the chain id of the topmost, "" for an image of no layers.

    The caller holds a lease. A failure leaves no active snapshot. Raises InvalidArgument where the image contradicts
    itself, and the errors of snapshotter and differ.
    """
    layers, diff_ids = _layers(chosen)
    chain = oci.chain_ids(diff_ids)
    unpacker = _Unpacker(stores, stores.snapshotter(snapshotter))
    for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
        new = await unpacker.layer(layer, diff_id, chain[number], chain[number - 1] if number else "")
        if layered is not None:
            layered(layer, new)
    if not chain:
        return ""
    reference = {f"{labels.GC_REF_SNAPSHOT}.{snapshotter}": chain[-1]}
    await blobs.add_labels(stores.content, chosen.manifest.config.digest, reference)
    return chain[-1]


def _layers(chosen: Chosen) -> tuple[list[Descriptor], Sequence[str]]:
    """Return the layers and their diff ids. Raises InvalidArgument where there is not one for each.

    The type of the root file system does not count, as in containerd's client library.
    """
    rootfs = chosen.config.rootfs
    layers = [layer.plain() for layer in chosen.manifest.layers if oci.is_layer(layer.media_type)]
    if len(layers) != len(rootfs.diff_ids):
        raise InvalidArgument(
            f"mismatched image rootfs and manifest layers: {len(rootfs.diff_ids)} diff ids, {len(layers)} layers"
        )
    return layers, rootfs.diff_ids


class _Unpacker:
    """Unpacks single layers."""

    def __init__(self, stores: Stores, snapshots: Snapshotter) -> None:
        self._stores = stores
        self._snapshots = snapshots

    async def layer(self, layer: Descriptor, diff_id: str, chain_id: str, parent: str) -> bool:
        """Make the snapshot of one layer; False where it exists."""
        if await self._exists(chain_id):
            return False
        for _ in range(TRIES):
            key = fresh_key("extract", f" {chain_id}")
            try:
                mounts = await self._snapshots.prepare(key, parent, {labels.SNAPSHOT_REF: chain_id})
            except AlreadyExists:
                if await self._exists(chain_id):
                    return False
                continue
            await self._fill(key, mounts, layer, diff_id, chain_id)
            return True
        raise AlreadyExists(f"no free key to extract {chain_id} in {TRIES} tries")

    async def _exists(self, key: str) -> bool:
        try:
            await self._snapshots.stat(key)
        except NotFound:
            return False
        return True

    async def _fill(self, key: str, mounts: list[Mount], layer: Descriptor, diff_id: str, chain_id: str) -> None:
        committed = False
        try:
            if not (mounts and "ro" in mounts[-1].options):
                await self._apply(mounts, layer, diff_id)
            await self._snapshots.commit(chain_id, key, {labels.SNAPSHOT_REF: chain_id})
            committed = True
        except AlreadyExists:
            if not await self._exists(chain_id):
                raise
        finally:
            if not committed:
                await self._remove(key)

    async def _apply(self, mounts: list[Mount], layer: Descriptor, diff_id: str) -> None:
        try:
            applied = await self._stores.differ.apply(layer, mounts, ApplyOptions())
        except ContainerdError as error:
            raise type(error)(f"failed to extract layer {diff_id}: {error.message}") from error
        if applied.digest != diff_id:
            raise InvalidArgument(
                f'wrong diff id "{applied.digest}" calculated on extraction of layer {layer.digest}, '
                f'expected "{diff_id}"'
            )
        await blobs.add_labels(self._stores.content, layer.digest, {labels.UNCOMPRESSED: diff_id})

    async def _remove(self, key: str) -> None:
        with anyio.move_on_after(CLEANUP_S, shield=True):
            try:
                await self._snapshots.remove(key)
            except NotFound:
                pass


def fresh_key(prefix: str, suffix: str = "") -> str:
    """Return a name nobody else uses: `<prefix>-<nanoseconds of the second>-<4 url characters>` (facts/core 14)."""
    nanos = timestamps.now_ns() % timestamps.NANOSECONDS
    random = base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()
    return f"{prefix}-{nanos}-{random}{suffix}"
