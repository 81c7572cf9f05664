"""Points in time: `google.protobuf.Timestamp` outside, integer nanoseconds since 1970 UTC inside.

Plugin authors know this module as `aiocontainerd.plugin.timestamps`.
"""

from __future__ import annotations

from aiocontainerd import api
from aiocontainerd.timestamps import NANOSECONDS, ZERO_NS, format_rfc3339, now_ns, parse_rfc3339

__all__ = [
    "NANOSECONDS", "ZERO_NS", "epoch_from_wire", "epoch_to_wire", "format_rfc3339", "from_wire", "now_ns",
    "parse_rfc3339", "time_from_wire", "time_to_wire", "to_wire",
]  # fmt: skip


def time_to_wire(ns: int) -> api.protobuf.Timestamp:
    """Return the message of a point in time."""
    seconds, nanos = divmod(ns, NANOSECONDS)
    return api.protobuf.Timestamp(seconds=seconds, nanos=nanos)


def time_from_wire(value: api.protobuf.Timestamp | None) -> int:
    """Return the point in time of a message; an absent field is Go's zero time."""
    return ZERO_NS if value is None else value.seconds * NANOSECONDS + value.nanos


def epoch_to_wire(epoch_ns: int | None) -> api.protobuf.Timestamp | None:
    """Return the message of a source date epoch; None leaves the field out."""
    return None if epoch_ns is None else time_to_wire(epoch_ns)


def epoch_from_wire(value: api.protobuf.Timestamp | None) -> int | None:
    """Return a source date epoch in nanoseconds; None where the field is absent."""
    return None if value is None else time_from_wire(value)


from_wire, to_wire = time_from_wire, time_to_wire
"""The same by the names that plugin authors use."""
