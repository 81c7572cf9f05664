"""The log of deprecations (kind `io.containerd.warning.v1`, id `deprecations`): use of what a later release drops.

Vocabulary. A *deprecation* is one thing that a later release drops; containerd names them all, and clients find the
names in `Introspection.Server`, prefixed by `io.containerd.deprecation/` (facts/core 12).

Life cycle. Whoever meets a deprecated thing calls `emit`, as often as it does; the log keeps the time of the latest
use until the daemon ends. Calls never wait.

What must fail and how: `emit` of an id that no deprecation has raises InvalidArgument.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from aiocontainerd.interfaces.rules import unguarded


class Deprecation(msgspec.Struct, frozen=True, kw_only=True):
    """Use of something that a later release drops; `id` is the part after `io.containerd.deprecation/`."""

    id: str
    message: str
    last_occurrence_ns: int


@unguarded("none of its methods is awaited")
class DeprecationLog(Protocol):
    """The deprecated things that were used since the daemon started."""

    def emit(self, deprecation: str) -> None:
        """Record a use, now. Raises InvalidArgument for an id that no deprecation has."""
        ...

    def warnings(self) -> list[Deprecation]:
        """Return each deprecation used so far with its latest use, sorted by id."""
        ...
