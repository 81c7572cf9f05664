"""Make the entries of a layer in a tree (facts/core 8, facts/security 2.2).

The order for each object is: make, write, owner, xattrs, mode, times; only so survive setuid bits and capabilities.
Owner and mode of a new file are looked at, and set where they are not the header's: umask, setgid directories, ACLs and
mount options all change what the kernel makes. Inherited ACLs are removed. Looking is cheaper than setting, which is
written to the file system's journal a hundred thousand times.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from aiocontainerd.oci import tar_header as tar
from aiocontainerd.oci.tar_header import Header, InvalidArchive, show
from aiocontainerd.oci.tar_reader import TarReader
from aiocontainerd_differ.parents import Parents
from aiocontainerd_differ.tree import Place, Tree, clean, is_directory, remove_acls
from aiocontainerd_differ.whiteouts import OPAQUE, PREFIX, OverlayWhiteouts, RemovingWhiteouts, hidden_name

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEVICES = {tar.CHAR: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_DROPPED_XATTRS = (b"trusted.", b"user.overlay.")
_DEVICE_MASK = 0xFFF, 0xFFFFF
"""Bits of major and minor that the kernel takes."""


class Extractor:
    """Applies entries to the tree below `root_fd`."""

    def __init__(
        self,
        root_fd: int,
        *,
        overlay: bool,
        lowers: list[str],
        in_user_namespace: bool,
        max_entries: int,
    ) -> None:
        self._max_entries = max_entries
        self._parents = Parents(lowers)
        self._tree = Tree(root_fd, self._made_parent)
        self._whiteouts = OverlayWhiteouts(self._tree) if overlay else RemovingWhiteouts(self._tree)
        self._in_user_namespace = in_user_namespace
        self._directory_times: dict[bytes, int] = {}
        self._makers: dict[bytes, Callable[[Header, Place, bytes], None]] = {
            tar.DIRECTORY: self._directory,
            tar.SYMLINK: self._symlink,
            tar.LINK: self._hard_link,
            tar.CHAR: self._device,
            tar.BLOCK_DEVICE: self._device,
            tar.FIFO: self._device,
        }

    def __repr__(self) -> str:
        return f"<Extractor {self._tree!r}>"

    def run(self, reader: TarReader, stopped: Callable[[], bool]) -> None:
        """Apply every entry, then the times of directories. Raise InvalidArchive, or OSError naming the entry."""
        entries = 0
        try:
            while (header := reader.next_header()) is not None and not stopped():
                entries += 1
                if entries > self._max_entries:
                    raise InvalidArchive(f"more than {self._max_entries} entries")
                self._entry(header, reader)
            self._set_directory_times()
        finally:
            self._tree.close()
            self._parents.close()

    def _entry(self, header: Header, reader: TarReader) -> None:
        parent, base = clean(header.name)
        if not base:
            return
        try:
            place = self._tree.directory(parent)
            if base.startswith(PREFIX):
                self._whiteout(header, place, base)
                return
            if header.type == tar.REGULAR:
                self._regular(header, place, base, reader)
            else:
                self._make(header, place, base)
        except OSError as error:
            raise OSError(error.errno, error.strerror, show(header.name)) from error
        self._whiteouts.wrote(place, base)

    def _whiteout(self, header: Header, place: Place, base: bytes) -> None:
        if base == OPAQUE:
            self._whiteouts.opaque(place)
        else:
            self._whiteouts.hide(place, hidden_name(base), header)

    def _regular(self, header: Header, place: Place, base: bytes, reader: TarReader) -> None:
        mode = header.mode & 0o777
        try:
            fd = os.open(base, _CREATE, mode, dir_fd=place.fd)
        except FileExistsError:
            place = self._make_room(place, base)
            fd = os.open(base, _CREATE, mode, dir_fd=place.fd)
        try:
            if header.size or header.sparse:
                reader.copy_data(fd)
            self._finish_file(fd, header, place)
        finally:
            os.close(fd)

    def _finish_file(self, fd: int, header: Header, place: Place) -> None:
        if place.acl:
            remove_acls(fd)
        made = os.fstat(fd)
        if (made.st_uid, made.st_gid) != (header.uid, header.gid):
            os.fchown(fd, header.uid, header.gid)
        if header.xattrs:
            _set_xattrs(fd, header)
        if header.xattrs or stat.S_IMODE(made.st_mode) != header.mode:
            os.fchmod(fd, header.mode)
        os.utime(fd, ns=(header.mtime_ns, header.mtime_ns))

    def _make(self, header: Header, place: Place, base: bytes) -> None:
        maker = self._makers.get(header.type)
        if maker is None:
            raise InvalidArchive(f"unhandled tar header type {header.type[0]} of {show(header.name)}")
        try:
            maker(header, place, base)
        except FileExistsError:
            maker(header, self._make_room(place, base), base)

    def _make_room(self, place: Place, base: bytes) -> Place:
        self._tree.remove(place, base)
        return self._tree.directory(place.path)

    def _directory(self, header: Header, place: Place, base: bytes) -> None:
        try:
            made = self._tree.make(place, base)
        except FileExistsError:
            if not is_directory(place, base):
                raise
            made = self._tree.enter(place, base)
        os.fchown(made.fd, header.uid, header.gid)
        if header.xattrs:
            _set_xattrs(made.fd, header)
            made.look()
        os.fchmod(made.fd, header.mode)
        self._directory_times[made.path] = header.mtime_ns

    def _symlink(self, header: Header, place: Place, base: bytes) -> None:
        os.symlink(header.link, base, dir_fd=place.fd)
        self._finish_by_name(header, place, base)

    def _hard_link(self, header: Header, place: Place, base: bytes) -> None:
        parent, target = clean(header.link)
        held = os.dup(place.fd)
        try:
            source = self._tree.directory(parent, create=False)
            if not target:
                raise OSError(errno.EPERM, f"hard link to the root {show(header.link)}")
            if source.path == place.path and target == base:
                os.stat(target, dir_fd=source.fd, follow_symlinks=False)
                return
            os.link(target, base, src_dir_fd=source.fd, dst_dir_fd=held, follow_symlinks=False)
        finally:
            os.close(held)
        place = self._tree.directory(place.path)
        self._finish_by_name(header, place, base)

    def _device(self, header: Header, place: Place, base: bytes) -> None:
        if self._in_user_namespace and header.type != tar.FIFO:
            return
        device = os.makedev(header.major & _DEVICE_MASK[0], header.minor & _DEVICE_MASK[1])
        os.mknod(base, _DEVICES[header.type] | 0o600, device, dir_fd=place.fd)
        if place.acl:
            remove_acls(_path(place, base))
        self._finish_by_name(header, place, base)

    def _finish_by_name(self, header: Header, place: Place, base: bytes) -> None:
        """Set owner, xattrs, mode and times by name, for what must not or cannot be opened. Never follow a link."""
        os.chown(base, header.uid, header.gid, dir_fd=place.fd, follow_symlinks=False)
        _set_xattrs(_path(place, base), header)
        if not stat.S_ISLNK(os.stat(base, dir_fd=place.fd, follow_symlinks=False).st_mode):
            os.chmod(base, header.mode, dir_fd=place.fd)
        os.utime(base, ns=(header.mtime_ns, header.mtime_ns), dir_fd=place.fd, follow_symlinks=False)

    def _made_parent(self, parent: Place, made: Place) -> None:
        self._whiteouts.wrote(parent, made.path.rpartition(b"/")[2])
        mtime_ns = self._parents.copy_up(made.fd, made.path)
        if mtime_ns is not None:
            self._directory_times[made.path] = mtime_ns
            made.look()

    def _set_directory_times(self) -> None:
        """Set the times of the directories that are still there: a later entry may have replaced one, say by a link."""
        for path, mtime_ns in self._directory_times.items():
            parent, _, base = path.rpartition(b"/")
            try:
                place = self._tree.directory(parent, create=False)
                if place.path == parent and is_directory(place, base):
                    os.utime(base, ns=(mtime_ns, mtime_ns), dir_fd=place.fd, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue


def _path(place: Place, base: bytes) -> bytes:
    """Return a path that names `base` for calls that take no directory's descriptor."""
    return b"/proc/self/fd/%d/%s" % (place.fd, base)


def _set_xattrs(target: int | bytes, header: Header) -> None:
    """Set the attributes of PAX records, but `trusted.*` and overlay's own. Ignore what the file system has not."""
    for name, value in header.xattrs.items():
        if name.startswith(_DROPPED_XATTRS):
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            ignored = error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and name.startswith(b"user."))
            if not ignored:
                raise
