"""Copy up parents: directories of a layer's paths that only the layers below have (facts/core 8)."""

from __future__ import annotations

import os
import stat

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Parents:
    """The lower directories of an overlay, topmost first; none for a tree that is complete by itself."""

    def __init__(self, lowers: list[str]) -> None:
        self._lowers = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in lowers]

    def close(self) -> None:
        """Close the lower directories."""
        while self._lowers:
            os.close(self._lowers.pop())

    def copy_up(self, fd: int, path: bytes) -> int | None:
        """Give the new directory `fd` owner, mode and xattrs of the directory at `path` in the layers below.

        Return its modification time in ns, None if no lower layer has it.
        """
        below = self._find(path)
        if below is None:
            return None
        try:
            found = os.fstat(below)
            os.fchown(fd, found.st_uid, found.st_gid)
            for name in os.listxattr(below):
                if not name.startswith("trusted."):
                    os.setxattr(fd, name, os.getxattr(below, name))
            os.fchmod(fd, stat.S_IMODE(found.st_mode))
            return found.st_mtime_ns
        finally:
            os.close(below)

    def _find(self, path: bytes) -> int | None:
        for lower in self._lowers:
            found = _open_below(lower, path.split(b"/"))
            if isinstance(found, int):
                return found
            if found == "hidden":
                return None
        return None


def _open_below(lower: int, parts: list[bytes]) -> int | str:
    """Return a descriptor of the directory; `missing` if a lower layer may have it, `hidden` if no lower one counts."""
    fd = os.dup(lower)
    for name in parts:
        try:
            below = os.open(name, _OPEN, dir_fd=fd)
        except FileNotFoundError:
            os.close(fd)
            return "missing"
        except OSError:
            os.close(fd)
            return "hidden"
        os.close(fd)
        fd = below
    return fd
