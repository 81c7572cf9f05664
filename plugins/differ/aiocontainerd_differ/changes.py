"""List what changed from one tree to another, in order of path, by containerd's rules (facts/core 8).

Directories are opened below one another without following links, so that a tree that is in use while it is read cannot
lead the walk out of it.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

CAPABILITY = "security.capability"
_OVERLAY_WHOLE = frozenset(
    f"{prefix}.overlay.{name}" for prefix in ("trusted", "user") for name in ("opaque", "redirect")
)
"""Marks of an upper directory that doesn't name all its changes: the layers below show through differently."""
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SECOND_NS = 1_000_000_000
_CHUNK = 256 << 10


class Kind(enum.Enum):
    """The kind of a change of a path."""

    SAME = "same"
    CHANGED = "changed"
    DELETED = "deleted"


class Change(NamedTuple):
    """One path. `directory_fd` and `name` open it and are valid until the next change; a deleted path has no status."""

    kind: Kind
    path: bytes
    directory_fd: int
    name: bytes
    status: os.stat_result | None


def changes(lower_fd: int, upper_fd: int, guide_fd: int | None = None) -> Iterator[Change]:
    """Yield every path of the upper tree and every deleted one, a directory before what is in it.

    `guide_fd` is the upper directory of the overlay that the upper tree is a mount of, over the lower tree: then only
    what it names can have changed, and paths that stayed the same may be left out.
    """
    yield from _walk(lower_fd, upper_fd, guide_fd, b"")


def _walk(lower: int | None, upper: int, guide: int | None, path: bytes) -> Iterator[Change]:
    below = _names(lower)
    above = _names(upper)
    candidates = below | above if guide is None else (below | above) & _names(guide)
    for name in sorted(candidates):
        here = path + b"/" + name if path else name
        if name not in above:
            yield Change(Kind.DELETED, here, upper, name, None)
            continue
        status = os.stat(name, dir_fd=upper, follow_symlinks=False)
        old = os.stat(name, dir_fd=lower, follow_symlinks=False) if lower is not None and name in below else None
        same = old is not None and lower is not None and _is_same(lower, old, upper, status, name)
        yield Change(Kind.SAME if same else Kind.CHANGED, here, upper, name, status)
        if stat.S_ISDIR(status.st_mode):
            old_fd = lower if old is not None and stat.S_ISDIR(old.st_mode) else None
            yield from _descend(old_fd, upper, guide, name, here)


def _descend(lower: int | None, upper: int, guide: int | None, name: bytes, path: bytes) -> Iterator[Change]:
    with ExitStack() as stack:
        upper_fd = _open_directory(name, upper, stack)
        lower_fd = None if lower is None else _open_directory(name, lower, stack)
        guide_fd = None if guide is None or lower is None else _open_directory(name, guide, stack)
        if guide_fd is not None and _OVERLAY_WHOLE.intersection(os.listxattr(guide_fd)):
            guide_fd = None
        yield from _walk(lower_fd, upper_fd, guide_fd, path)


def _open_directory(name: bytes, parent: int, stack: ExitStack) -> int:
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    stack.callback(os.close, fd)
    return fd


def _names(fd: int | None) -> set[bytes]:
    return set() if fd is None else {os.fsencode(name) for name in os.listdir(fd)}


def _is_same(lower: int, old: os.stat_result, upper: int, new: os.stat_result, name: bytes) -> bool:
    if os.path.samestat(old, new):
        return True
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return False
    if capability(lower, name) != capability(upper, name):
        return False
    if stat.S_ISDIR(new.st_mode):
        return True
    if (old.st_size, old.st_mtime_ns) != (new.st_size, new.st_mtime_ns):
        return False
    return bool(new.st_mtime_ns % _SECOND_NS) or _same_content(lower, upper, name, new.st_mode)


def _same_content(lower: int, upper: int, name: bytes, mode: int) -> bool:
    """Return whether two files have the same bytes: a time of whole seconds may have been cut, and says nothing."""
    if stat.S_ISLNK(mode):
        return os.readlink(name, dir_fd=lower) == os.readlink(name, dir_fd=upper)
    if not stat.S_ISREG(mode):
        return True
    with open_regular(lower, name) as one, open_regular(upper, name) as other:
        while (part := one.read(_CHUNK)) == other.read(_CHUNK):
            if not part:
                return True
    return False


class RegularFile:
    """A regular file open for reading, never a device or pipe that took its place."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end."""
        return os.read(self.fd, size)


def open_regular(directory_fd: int, name: bytes) -> RegularFile:
    """Open a file. Raise OSError naming it, also when it is not a regular one any more."""
    fd = os.open(name, _OPEN_FILE, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(22, "changed while it was read", name)
    return RegularFile(fd)


def capability(directory_fd: int, name: bytes) -> bytes:
    """Return the file capabilities of a path, b"" if it has none."""
    try:
        return os.getxattr(b"/proc/self/fd/%d/%s" % (directory_fd, name), CAPABILITY, follow_symlinks=False)
    except OSError:
        return b""
