"""Differs (kind `io.containerd.differ.v1`): layers to file trees and back (facts/core 8).

`apply` unpacks one layer blob onto mounts and returns the descriptor of the uncompressed tar stream; no entry of the
layer, whatever its names and links say, touches anything outside the mounted tree. `compare` writes the difference of
two trees to the content store as a layer and returns its descriptor. A differ that cannot handle a media type or a
kind of mount raises Unimplemented, and the diff service asks the next one. Whatever happens, nothing stays mounted
and no ingest stays locked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from aiocontainerd.interfaces.rules import LONG, deadline
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount
from aiocontainerd.typeurl import Any

_NONE: Mapping[str, str] = MappingProxyType({})
_NO_PAYLOADS: Mapping[str, Any] = MappingProxyType({})


class ApplyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`payloads` go to stream processors by their id; `sync_fs` syncs the target file system before returning."""

    payloads: Mapping[str, Any] = _NO_PAYLOADS
    sync_fs: bool = False


class CompareOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`media_type` "" is the differ's default; `reference` "" is a fresh ingest; times are clamped to the epoch."""

    media_type: str = ""
    reference: str = ""
    labels: Mapping[str, str] = _NONE
    source_date_epoch_ns: int | None = None


class Differ(Protocol):
    """Applies and computes layers."""

    @deadline(LONG)
    async def apply(self, layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> Descriptor: ...

    @deadline(LONG)
    async def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> Descriptor: ...
