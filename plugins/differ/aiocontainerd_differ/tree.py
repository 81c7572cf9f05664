"""Keep every entry of a layer inside the root of its tree (facts/security 2.2).

The tree is touched through descriptors of directories below its root only. Paths are resolved one component at a time.
A symbolic link on the way is followed inside the root: an absolute one from the root, and `..` stops at the root. The
last component is never followed. Descriptors of directories are kept for later entries. They are forgotten as soon as a
directory or a link is removed, so that no entry uses a path that an earlier entry has changed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

MAX_LINKS = 255
_CACHED = 128
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_A_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
_ACCESS_ACL, _DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
_NO_ACL = (errno.ENODATA, errno.ENOTSUP)
_AT_ONCE = 1000


class Place:
    """A directory of the tree: descriptor (valid until the next call), path below the root.

    `new` means that this layer made it. `acl` means that it has a default ACL, which what is made in it inherits.
    """

    __slots__ = ("acl", "fd", "new", "path")

    def __init__(self, fd: int, path: bytes, *, new: bool) -> None:
        self.fd = fd
        self.path = path
        self.new = new
        self.look()

    def look(self) -> None:
        """Find out again whether there is a default ACL: at first, and after attributes were set."""
        self.acl = _has_default_acl(self.fd)


class Tree:
    """The tree below `root_fd`, which the caller closes.

    Calls `made` with each parent directory that was missing, after the place it was made in.
    """

    def __init__(self, root_fd: int, made: Callable[[Place, Place], None] | None = None) -> None:
        self._made = made
        self._root = Place(root_fd, b"", new=False)
        self._places: OrderedDict[bytes, Place] = OrderedDict()
        self._new: set[bytes] = set()
        """Directories that this layer made in directories that it did not make."""
        self._last_asked = b""
        self._last = self._root

    def __repr__(self) -> str:
        return f"<Tree {len(self._places)} directories open>"

    def close(self) -> None:
        """Close every descriptor but the root's."""
        self.forget()

    def forget(self) -> None:
        """Close the kept descriptors: the next paths are resolved anew."""
        while self._places:
            os.close(self._places.popitem()[1].fd)
        self._last_asked, self._last = b"", self._root

    def directory(self, path: bytes, *, create: bool = True) -> Place:
        """Return the directory of a relative path. Raise OSError naming it; FileNotFoundError only without `create`."""
        if path == self._last_asked:
            return self._last
        place = self._places.get(path)
        if place is None:
            place = self._walk(path, create)
        elif place.path:
            self._places.move_to_end(path)
        self._last_asked, self._last = path, place
        return place

    def enter(self, parent: Place, name: bytes) -> Place:
        """Return the directory `name` right below `parent`. Raise OSError if it is a link or no directory."""
        path = _joined(parent.path, name)
        known = self._places.get(path)
        if known is not None:
            return known
        fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd)
        place = Place(fd, path, new=parent.new or path in self._new)
        self._places[path] = place
        if len(self._places) > _CACHED:
            os.close(self._places.popitem(last=False)[1].fd)
        self._last_asked, self._last = b"", self._root
        return place

    def make(self, parent: Place, name: bytes) -> Place:
        """Make the directory `name` right below `parent`, and return it. Raise FileExistsError."""
        os.mkdir(name, 0o700, dir_fd=parent.fd)
        if not parent.new:
            self._new.add(_joined(parent.path, name))
        inherits = parent.acl
        made = self.enter(parent, name)
        if inherits:
            remove_acls(made.fd)
            made.look()
        return made

    def remove(self, parent: Place, name: bytes) -> None:
        """Remove whatever `name` is, a directory with all in it; links are removed, not followed. Missing is fine."""
        fd = os.dup(parent.fd)
        try:
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                self.forget()
                _remove_directory(fd, name)
            else:
                if stat.S_ISLNK(mode):
                    self.forget()
                os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
        finally:
            os.close(fd)

    def _walk(self, path: bytes, create: bool) -> Place:
        pending = path.split(b"/")[::-1]
        trail = [self._root.path]
        place = self._root
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if len(trail) > 1:
                    trail.pop()
                    place = self._reopen(trail[-1])
                continue
            try:
                place = self._step(place, name, create)
                trail.append(place.path)
            except OSError as error:
                if error.errno not in _NOT_A_DIRECTORY:
                    raise _named(error, path) from None
                target = _link_target(place, name, path)
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                if target.startswith(b"/"):
                    trail, place = [b""], self._root
                pending.extend(reversed(target.split(b"/")))
        return place

    def _step(self, place: Place, name: bytes, create: bool) -> Place:
        try:
            return self.enter(place, name)
        except FileNotFoundError:
            if not create:
                raise
        below = self.make(place, name)
        os.fchmod(below.fd, 0o755)
        if self._made:
            self._made(place, below)
        return below

    def _reopen(self, real: bytes) -> Place:
        place = self._root
        for name in real.split(b"/") if real else ():
            place = self.enter(place, name)
        return place


def clean(name: bytes) -> tuple[bytes, bytes]:
    """Return parent and last component of an entry's name, cleaned as containerd does; two b"" are the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    if not parts:
        return b"", b""
    base = parts.pop()
    return b"/".join(parts), base


def is_directory(parent: Place, name: bytes) -> bool:
    """Return whether `name` right below `parent` is a directory, and no link to one. Raise OSError."""
    return stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode)


def remove_acls(target: int | bytes) -> None:
    """Remove the ACLs that a new file or directory inherited. A path is not followed. Raise OSError."""
    for name in (_ACCESS_ACL, _DEFAULT_ACL):
        try:
            if isinstance(target, int):
                os.removexattr(target, name)
            else:
                os.removexattr(target, name, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_ACL:
                raise


def _has_default_acl(fd: int) -> bool:
    try:
        os.getxattr(fd, _DEFAULT_ACL)
    except OSError as error:
        return error.errno not in _NO_ACL
    return True


def _joined(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _named(error: OSError, path: bytes) -> OSError:
    return OSError(error.errno, error.strerror, path)


def _link_target(place: Place, name: bytes, path: bytes) -> bytes:
    """Return where a link leads. Raise OSError naming the path if it is neither directory nor link."""
    try:
        return os.readlink(name, dir_fd=place.fd)
    except OSError:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


def _remove_directory(parent_fd: int, name: bytes) -> None:
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent_fd)
    try:
        while names := _some_names(fd):
            for child in names:
                try:
                    os.unlink(child, dir_fd=fd)
                except (IsADirectoryError, PermissionError):
                    _remove_directory(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


def _some_names(fd: int) -> list[bytes]:
    """Return the first names of a directory: one of a million files costs no more memory than one of a thousand."""
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for entry in islice(entries, _AT_ONCE)]
