"""Mount handlers (kind `io.containerd.mount-handler.v1`): mounts the kernel does not know by themselves.

Vocabulary. The id of the plugin is the *mount type* it handles, such as `erofs`. An *active mount* is one that the
mount manager has made, with its mount point and what the handler needs to find it again.

Life cycle. The mount manager calls `mount` for a mount of that type, on an empty directory of its own; the mounts of
the same activation that are active already are given in order. Deactivation calls `unmount` in reverse order, perhaps
in another daemon than the one that mounted: nothing may be kept in memory only.

What must fail and how (facts/core 7). A mount that cannot be made raises (OSError with its errno, or an error of the
daemon) and leaves nothing mounted or attached. Unimplemented says that this one needs no handling: the mount goes to
whoever asked. `unmount` of a path that is no mount point is no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from aiocontainerd.interfaces.rules import WORK, deadline
from aiocontainerd.sys.mount import Mount

__all__ = ["ActiveMount", "Mount", "MountHandler"]

_NONE: Mapping[str, str] = MappingProxyType({})


class ActiveMount(msgspec.Struct, frozen=True, kw_only=True):
    """A mount that was made: where, when (nanoseconds since 1970), and what its handler needs to find it again."""

    mount: Mount
    mount_point: str
    mounted_at_ns: int = 0
    data: Mapping[str, str] = _NONE


class MountHandler(Protocol):
    """Makes and undoes mounts of one type."""

    @deadline(WORK)
    async def mount(self, mount: Mount, mount_point: str, active: Sequence[ActiveMount]) -> ActiveMount:
        """Mount on the directory `mount_point`."""
        ...

    @deadline(WORK, always=True)
    async def unmount(self, path: str) -> None:
        """Undo what `mount` did at `path`, including helpers such as loop devices."""
        ...
