"""Mounts."""

from __future__ import annotations

from collections.abc import Iterable

from aiocontainerd import api
from aiocontainerd.sys.mount import Mount


def mounts_from_wire(messages: Iterable[api.types.Mount]) -> list[Mount]:
    """Return the records of mounts."""
    return [Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages]


def mounts_to_wire(mounts: Iterable[Mount]) -> list[api.types.Mount]:
    """Return the messages of mounts."""
    return [api.types.Mount(type=m.type, source=m.source, target=m.target, options=list(m.options)) for m in mounts]
