"""Write the difference of two trees as a compressed archive; return the digest of the plain one (facts/core 8)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from aiocontainerd.oci import tar_header as tar
from aiocontainerd_differ import tar_writer
from aiocontainerd_differ.changes import CAPABILITY, Change, Kind, capability, changes, open_regular
from aiocontainerd_differ.unpack import Result
from aiocontainerd_differ.whiteouts import PREFIX

_CHUNK = 512 << 10
_GATHER = 128 << 10
_GZIP_WINDOW = 31
_GZIP_LEVEL = 3
_ZSTD_LEVEL = 3
_XATTR = b"SCHILY.xattr." + CAPABILITY.encode()
_KINDS = {
    stat.S_IFREG: tar.REGULAR, stat.S_IFDIR: tar.DIRECTORY, stat.S_IFLNK: tar.SYMLINK, stat.S_IFCHR: tar.CHAR,
    stat.S_IFBLK: tar.BLOCK_DEVICE, stat.S_IFIFO: tar.FIFO,
}  # fmt: skip


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(name: str) -> _Compressor:
    """Return the compressor for `gzip`, `zstd` or "" (none). The same input always gives the same bytes."""
    made: Any = _Plain()
    if name == "gzip":
        from isal import isal_zlib

        made = isal_zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)
    elif name == "zstd":
        import zstandard

        made = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
    compressing: _Compressor = made
    return compressing


class _Output:
    """Gathers small pieces, digests and compresses them, and passes the result to `sink`."""

    def __init__(self, compression: str, sink: Callable[[bytes], object]) -> None:
        self._compressor = compressor(compression)
        self._sink = sink
        self._hasher = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._bytes = 0
        self._size = 0

    def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes >= _GATHER:
            self._pass_on()

    def finish(self) -> Result:
        self._pass_on()
        self._sink_unless_empty(self._compressor.flush())
        return Result(f"sha256:{self._hasher.hexdigest()}", self._size)

    def _pass_on(self) -> None:
        data = b"".join(self._gathered)
        self._hasher.update(data)
        self._size += len(data)
        self._sink_unless_empty(self._compressor.compress(data))
        self._gathered, self._bytes = [], 0

    def _sink_unless_empty(self, data: bytes) -> None:
        if data:
            self._sink(data)


class _Source(NamedTuple):
    """The entry that hard links to the same file name as their target."""

    path: bytes
    records: dict[bytes, bytes] | None


class LayerWriter:
    """Turns changes into entries. `epoch_s` bounds modification times from above."""

    def __init__(self, output: _Output, upper_fd: int, epoch_s: int | None) -> None:
        self._output = output
        self._upper_fd = upper_fd
        self._epoch_s = epoch_s
        self._directories: set[bytes] = set()
        self._sources: dict[tuple[int, int], _Source] = {}
        self._same: dict[tuple[int, int], list[Change]] = {}

    def add(self, change: Change) -> None:
        """Write the entries of one change. An unchanged path has one only if it is a hard link to a changed path."""
        status = change.status
        if status is None:
            self._parents(change.path)
            parent, slash, name = change.path.rpartition(b"/")
            self._output.write(tar_writer.header(parent + slash + PREFIX + name))
            return
        inode = (status.st_dev, status.st_ino)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), tar.DIRECTORY)  # a socket has no entry to link to
        linked = status.st_nlink > 1 and kind != tar.DIRECTORY
        if linked and inode in self._sources:
            self._link(change.path, status, self._sources[inode])
        elif change.kind is Kind.CHANGED:
            self._object(change, status)
            if linked:
                self._sources[inode] = _Source(change.path, _records(change, status))
                for same in self._same.pop(inode, ()):
                    self._link(same.path, status, self._sources[inode])
        elif linked:
            self._same.setdefault(inode, []).append(change)

    def _object(self, change: Change, status: os.stat_result) -> None:
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None or (kind == tar.DIRECTORY and change.path in self._directories):
            return
        self._parents(change.path)
        link = os.readlink(change.name, dir_fd=change.directory_fd) if kind == tar.SYMLINK else b""
        size = status.st_size if kind == tar.REGULAR else 0
        self._header(change.path, status, kind, size=size, link=link, records=_records(change, status))
        if kind == tar.DIRECTORY:
            self._directories.add(change.path)
        elif kind == tar.REGULAR and size:
            self._data(change, size)

    def _link(self, path: bytes, status: os.stat_result, source: _Source) -> None:
        """Write a hard link. Repeat the file's capabilities: unpacking sets the owner, which removes them."""
        self._parents(path)
        self._header(path, status, tar.LINK, link=source.path, records=source.records)

    def _parents(self, path: bytes) -> None:
        """Write the directories on the way that have no entry yet: the unchanged ones."""
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            parent = b"/".join(parts[:depth])
            if parent not in self._directories:
                self._directories.add(parent)
                self._header(parent, _status_below(self._upper_fd, parts[:depth]), tar.DIRECTORY)

    def _header(
        self,
        path: bytes,
        status: os.stat_result,
        kind: bytes,
        *,
        size: int = 0,
        link: bytes = b"",
        records: dict[bytes, bytes] | None = None,
    ) -> None:
        mtime_s = status.st_mtime_ns // 1_000_000_000
        device = (0, 0)
        if kind in (tar.CHAR, tar.BLOCK_DEVICE):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        self._output.write(
            tar_writer.header(
                path,
                kind=kind,
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                size=size,
                mtime_s=mtime_s if self._epoch_s is None else min(mtime_s, self._epoch_s),
                link=link,
                device=device,
                records=records,
            )
        )

    def _data(self, change: Change, size: int) -> None:
        left = size
        with open_regular(change.directory_fd, change.name) as file:
            while left:
                part = file.read(min(left, _CHUNK))
                if not part:
                    raise OSError(5, f"shrank by {left} bytes while it was read", change.path)
                left -= len(part)
                self._output.write(part)
        self._output.write(tar_writer.padding(size))


def write_layer(
    lower_fd: int,
    upper_fd: int,
    compression: str,
    epoch_s: int | None,
    sink: Callable[[bytes], object],
    guide_fd: int | None = None,
) -> Result:
    """Write the difference to `sink`; returns digest and size of the archive before compression. Blocks."""
    output = _Output(compression, sink)
    writer = LayerWriter(output, upper_fd, epoch_s)
    for change in changes(lower_fd, upper_fd, guide_fd):
        writer.add(change)
    output.write(tar_writer.END)
    return output.finish()


def _records(change: Change, status: os.stat_result) -> dict[bytes, bytes] | None:
    """Return the extended attributes that a layer keeps: file capabilities."""
    found = capability(change.directory_fd, change.name) if stat.S_ISREG(status.st_mode) else b""
    return {_XATTR: found} if found else None


def _status_below(root_fd: int, parts: list[bytes]) -> os.stat_result:
    fd = os.dup(root_fd)
    try:
        for name in parts:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = below
        return os.fstat(fd)
    finally:
        os.close(fd)
