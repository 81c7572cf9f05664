"""Unpacking an image: its layers, one on top of the other, as committed snapshots named by chain id (facts/core 14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from aiocontainerd import labels
from aiocontainerd.client.content import fresh_key
from aiocontainerd.errors import AlreadyExists, ContainerdError, InvalidArgument, NotFound
from aiocontainerd.oci import image as oci

if TYPE_CHECKING:
    from aiocontainerd.client.client import Client
    from aiocontainerd.client.snapshots import Snapshots
    from aiocontainerd.distribution.walk import Chosen
    from aiocontainerd.oci.descriptor import Descriptor
    from aiocontainerd.sys.mount import Mount

TRIES = 3
CLEANUP_S = 10.0
DEFAULT_SNAPSHOTTER = "overlayfs"

Layered = Callable[["Descriptor", bool], None]
"""Told of every layer: whether it was unpacked now or there before."""


async def default_snapshotter(client: Client) -> str:
    """The snapshotter that the namespace's label names, else overlayfs (facts/core 1)."""
    namespace = await client.namespaces.get(client.namespace) if client.namespace else None
    named = namespace.labels.get(labels.DEFAULT_SNAPSHOTTER) if namespace else None
    return named or DEFAULT_SNAPSHOTTER


async def unpack(client: Client, chosen: Chosen, snapshotter: str, *, layered: Layered | None = None) -> str:
    """Unpack every layer that isn't unpacked yet; the chain id of the topmost, "" for an image of no layers.

    The caller holds a lease. A failure leaves no active snapshot. Raises InvalidArgument where the image contradicts
    itself, and what the daemon answers.
    """
    if chosen.config.rootfs.type not in ("", "layers"):
        raise InvalidArgument(
            f'image {chosen.target.digest}: rootfs type "{chosen.config.rootfs.type}" is not unpacked'
        )
    layers = [layer.plain() for layer in chosen.manifest.layers if oci.is_layer(layer.media_type)]
    diff_ids = chosen.config.rootfs.diff_ids
    if len(layers) != len(diff_ids):
        raise InvalidArgument(
            f"mismatched image rootfs and manifest layers: {len(diff_ids)} diff ids, {len(layers)} layers"
        )
    chain = oci.chain_ids(diff_ids)
    unpacker = _Unpacker(client, client.snapshots(snapshotter))
    for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
        new = await unpacker.layer(layer, diff_id, chain[number], chain[number - 1] if number else "")
        if layered is not None:
            layered(layer, new)
    if chain:
        await client.content.add_labels(
            chosen.manifest.config.digest, {f"{labels.GC_REF_SNAPSHOT}.{snapshotter}": chain[-1]}
        )
    return chain[-1] if chain else ""


class _Unpacker:
    def __init__(self, client: Client, snapshots: Snapshots) -> None:
        self._client = client
        self._snapshots = snapshots

    async def layer(self, layer: Descriptor, diff_id: str, chain_id: str, parent: str) -> bool:
        """Make the snapshot of one layer; False where it exists."""
        if await self._snapshots.exists(chain_id):
            return False
        for _ in range(TRIES):
            key = fresh_key("extract", f" {chain_id}")
            try:
                mounts = await self._snapshots.prepare(key, parent, {labels.SNAPSHOT_REF: chain_id})
            except AlreadyExists:
                if await self._snapshots.exists(chain_id):
                    return False
                continue
            await self._fill(key, mounts, layer, diff_id, chain_id)
            return True
        raise AlreadyExists(f"no free key to extract {chain_id} in {TRIES} tries")

    async def _fill(self, key: str, mounts: list[Mount], layer: Descriptor, diff_id: str, chain_id: str) -> None:
        committed = False
        try:
            if not (mounts and "ro" in mounts[-1].options):
                await self._apply(mounts, layer, diff_id)
            await self._snapshots.commit(chain_id, key, {labels.SNAPSHOT_REF: chain_id})
            committed = True
        except AlreadyExists:
            if not await self._snapshots.exists(chain_id):
                raise
        finally:
            if not committed:
                await self._remove(key)

    async def _apply(self, mounts: list[Mount], layer: Descriptor, diff_id: str) -> None:
        try:
            applied = await self._client.diff.apply(layer, mounts)
        except ContainerdError as error:
            raise type(error)(f"failed to extract layer {diff_id}: {error.message}") from error
        if applied.digest != diff_id:
            raise InvalidArgument(
                f'wrong diff id "{applied.digest}" calculated on extraction of layer {layer.digest}, '
                f'expected "{diff_id}"'
            )
        await self._client.content.add_labels(layer.digest, {labels.UNCOMPRESSED: diff_id})

    async def _remove(self, key: str) -> None:
        with anyio.move_on_after(CLEANUP_S, shield=True):
            try:
                await self._snapshots.remove(key)
            except NotFound:
                pass
