"""Requests to differs: a layer to apply, two trees to compare."""

from __future__ import annotations

from collections.abc import Sequence

from aiocontainerd import api
from aiocontainerd.interfaces.differ import ApplyOptions, CompareOptions
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount
from aiocontainerd.wire.anys import anys_from_wire, anys_to_wire
from aiocontainerd.wire.descriptors import descriptor_to_wire
from aiocontainerd.wire.mounts import mounts_to_wire
from aiocontainerd.wire.times import epoch_from_wire, epoch_to_wire


def apply_options_from_wire(request: api.diff.ApplyRequest) -> ApplyOptions:
    """Return the options of a request."""
    return ApplyOptions(payloads=anys_from_wire(request.payloads), sync_fs=request.sync_fs)


def apply_to_wire(layer: Descriptor, mounts: Sequence[Mount], options: ApplyOptions) -> api.diff.ApplyRequest:
    """Return the request to unpack `layer` onto `mounts`."""
    return api.diff.ApplyRequest(
        diff=descriptor_to_wire(layer),
        mounts=mounts_to_wire(mounts),
        payloads=anys_to_wire(options.payloads),
        sync_fs=options.sync_fs,
    )


def compare_options_from_wire(request: api.diff.DiffRequest) -> CompareOptions:
    """Return the options of a request."""
    return CompareOptions(
        media_type=request.media_type,
        reference=request.ref,
        labels=request.labels,
        source_date_epoch_ns=epoch_from_wire(request.source_date_epoch),
    )


def compare_to_wire(lower: Sequence[Mount], upper: Sequence[Mount], options: CompareOptions) -> api.diff.DiffRequest:
    """Return the request to write the difference of two trees."""
    return api.diff.DiffRequest(
        left=mounts_to_wire(lower),
        right=mounts_to_wire(upper),
        media_type=options.media_type,
        ref=options.reference,
        labels=dict(options.labels),
        source_date_epoch=epoch_to_wire(options.source_date_epoch_ns),
    )
