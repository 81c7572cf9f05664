"""Decode tar headers: ustar, GNU and PAX blocks (POSIX pax, GNU tar). Bytes in, records out.

Names stay bytes: a file system's names have no encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BLOCK = 512
MAX_NAME = 4096
MAX_SPECIAL = 1 << 20
"""Bytes of a PAX record block or a long name; more is refused rather than held in memory (facts/security 2.4)."""
XATTR_PREFIX = b"SCHILY.xattr."
_MAX_DEVICE = 0xFFFFFFFF
_MAX_ID = 0xFFFFFFFE
"""The last id is the kernel's word for no change."""
_ZERO = bytes(BLOCK)
_MAX_SECONDS = (1 << 63) // 1_000_000_000 - 1

REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
CONTIGUOUS, PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK, GNU_SPARSE = b"7", b"x", b"g", b"L", b"K", b"S"
_OLD_REGULAR = b"\0"
_WITHOUT_DATA = frozenset((LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class InvalidArchive(Exception):
    """The bytes are no tar archive, or one that must not be applied. The text says what and which entry."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}: invalid archive")


class Header:
    """One entry. A plain class with slots: one is made for each of a hundred thousand files."""

    __slots__ = ("gid", "link", "major", "minor", "mode", "mtime_ns", "name", "size", "type", "uid", "xattrs")

    def __init__(self, block: bytes) -> None:
        self.type = block[156:157]
        self.name = block[:100].partition(b"\0")[0]
        self.mode = number(block[100:108]) & 0o7777
        self.uid = number(block[108:116])
        self.gid = number(block[116:124])
        self.size = number(block[124:136])
        self.mtime_ns = number(block[136:148]) * 1_000_000_000
        self.link = b""
        self.major = self.minor = 0
        self.xattrs = _NO_XATTRS
        if self.type not in (REGULAR, DIRECTORY):
            self._unusual(block)
        if block[257:263] == b"ustar\0" and block[345]:
            self.name = block[345:500].partition(b"\0")[0] + b"/" + self.name

    def __repr__(self) -> str:
        return f"<Header {self.type!r} {self.name!r} {self.size} bytes>"

    def _unusual(self, block: bytes) -> None:
        self.link = block[157:257].partition(b"\0")[0]
        if self.type in (CHAR, BLOCK_DEVICE):
            self.major, self.minor = number(block[329:337]), number(block[337:345])
        elif self.type == _OLD_REGULAR:
            self.type = DIRECTORY if self.name.endswith(b"/") else REGULAR
        elif self.type == CONTIGUOUS:
            self.type = REGULAR

    def override(self, records: Mapping[bytes, bytes]) -> None:
        """Let PAX records replace fields of the block. Raise InvalidArchive for a malformed value."""
        xattrs = {}
        for key, value in records.items():
            if b"\0" in key:
                raise InvalidArchive(f"NUL in a PAX record of {show(self.name)}")
            if key.startswith(XATTR_PREFIX):
                xattrs[key[len(XATTR_PREFIX) :]] = value
            elif key.startswith(b"GNU.sparse."):
                raise InvalidArchive(f"sparse file {show(self.name)}")
            elif value:
                self._override_one(key, value)
        if xattrs:
            self.xattrs = xattrs

    def _override_one(self, key: bytes, value: bytes) -> None:
        try:
            match key:
                case b"path":
                    self.name = value
                case b"linkpath":
                    self.link = value
                case b"size":
                    self.size = _decimal(value)
                case b"uid":
                    self.uid = _decimal(value)
                case b"gid":
                    self.gid = _decimal(value)
                case b"mtime":
                    self.mtime_ns = pax_time_ns(value)
        except ValueError:
            raise InvalidArchive(f"PAX record {show(key)}={show(value)} of {show(self.name)}") from None

    def check(self) -> None:
        """Raise InvalidArchive for what no layer may hold; bound times as facts/core 8 says."""
        if b"\0" in self.name or b"\0" in self.link:
            raise InvalidArchive(f"NUL in the name {show(self.name)}")
        if len(self.name) > MAX_NAME or len(self.link) > MAX_NAME:
            raise InvalidArchive(f"name of {max(len(self.name), len(self.link))} bytes")
        if self.size < 0 or self.uid < 0 or self.gid < 0:
            raise InvalidArchive(f"negative number in the header of {show(self.name)}")
        if self.uid > _MAX_ID or self.gid > _MAX_ID:
            raise InvalidArchive(f"owner {self.uid}:{self.gid} of {show(self.name)}")
        if not (0 <= self.major <= _MAX_DEVICE and 0 <= self.minor <= _MAX_DEVICE):
            raise InvalidArchive(f"device number {self.major}:{self.minor} of {show(self.name)}")
        if self.type in _WITHOUT_DATA:
            self.size = 0
        if not 0 <= self.mtime_ns <= _MAX_SECONDS * 1_000_000_000:
            self.mtime_ns = 0


def is_end(block: bytes) -> bool:
    """Return whether a block is one of the zeroes that end an archive."""
    return block == _ZERO


def verify_checksum(block: bytes) -> None:
    """Raise InvalidArchive where the block's checksum is wrong: this is no tar, or a damaged one."""
    try:
        stored = int(block[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise InvalidArchive("tar header without a checksum") from None
    if sum(block) - sum(block[148:156]) + 256 != stored:
        raise InvalidArchive("tar header with a wrong checksum")


def number(field: bytes) -> int:
    """Return the value of a numeric field: octal text, or base 256 if the first bit is set. Raise InvalidArchive."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ~(0x80 << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    digits = field.strip(b"\0 ") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise InvalidArchive(f"number {show(field)} in a tar header")
    return int(digits, 8)


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """Return the records `<length> <key>=<value>\\n` of a PAX block. Raise InvalidArchive."""
    records = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        length = data[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
            raise InvalidArchive(f"PAX record {show(data[at : at + 40])}")
        records[key] = value
        at = end
    return records


def pax_time_ns(value: bytes) -> int:
    """Return the nanoseconds of a PAX time: decimal seconds, perhaps negative or with a fraction. Raise ValueError."""
    seconds, _, fraction = value.partition(b".")
    nanos = _decimal(fraction[:9].ljust(9, b"0")) if fraction else 0
    whole = _decimal(seconds) * 1_000_000_000
    return whole - nanos if seconds.startswith(b"-") else whole + nanos


def _decimal(text: bytes) -> int:
    """Return the number of digits after an optional minus. `int` allows more than PAX does. Raise ValueError."""
    if not text.removeprefix(b"-").isdigit():
        raise ValueError(text)
    return int(text)


def show(name: bytes) -> str:
    """Return a name for a message: quoted, printable, cut if it is long."""
    text = repr(name[:200])[1:]
    return f'"{text[1:-1]}"'
