"""Mounts: the record that snapshotters give out, and the system calls that carry it out."""

from __future__ import annotations

import msgspec


class Mount(msgspec.Struct, frozen=True):
    """One mount of a list that is mounted in order: type, source, target below the root, options as in fstab."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
