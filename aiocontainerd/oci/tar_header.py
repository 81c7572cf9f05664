"""Decode tar headers: V7, ustar, star, GNU and PAX blocks. Bytes in, records out.

Whatever Go's archive/tar reads is read, since that is what the images of this world were tried with (facts/core 8).
Names stay bytes: a file system's names have no encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BLOCK = 512
MAX_NAME = 4096
MAX_SPECIAL = 1 << 20
"""Bytes of a PAX record block, a long name or a map of holes; more is not held in memory (facts/security 2.4)."""
XATTR_PREFIX = b"SCHILY.xattr."
SPARSE_PREFIX = b"GNU.sparse."
SPARSE_MAP = SPARSE_PREFIX + b"map"
UNCHANGED_ID = -1
"""An owner that `chown` leaves as it is."""
_SPARSE_OFFSET, _SPARSE_BYTES = SPARSE_PREFIX + b"offset", SPARSE_PREFIX + b"numbytes"
_ID_MASK = _MAX_DEVICE = 0xFFFFFFFF
_ZERO = bytes(BLOCK)
_INT64 = 1 << 63

REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
CONTIGUOUS, PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK, GNU_SPARSE = b"7", b"x", b"g", b"L", b"K", b"S"
_OLD_REGULAR = b"\0"
WITHOUT_DATA = frozenset((LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))
_NO_RECORDS: Mapping[bytes, bytes] = MappingProxyType({})
_USTAR, _GNU = b"ustar\0", b"ustar  \0"
_WITHOUT_NUL = frozenset((b"path", b"linkpath", b"uname", b"gname"))


class InvalidArchive(Exception):
    """The bytes are no tar archive, or one that must not be applied. The text says what and which entry."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text}: invalid archive")


class Header:
    """One entry. A plain class with slots: one is made for each of a hundred thousand files.

    `size` is the size of the file in bytes, holes included. `sparse` has the PAX records of a file with holes.
    """

    __slots__ = (
        "gid", "link", "major", "minor", "mode", "mtime_ns", "name", "size", "sparse", "type", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, block: bytes) -> None:
        self.type = block[156:157]
        self.name = _text(block[:100])
        self.mode = number(block[100:108]) & 0o7777
        self.uid = number(block[108:116])
        self.gid = number(block[116:124])
        self.size = number(block[124:136])
        self.mtime_ns = number(block[136:148]) * 1_000_000_000
        self.link = b""
        self.major = self.minor = 0
        self.xattrs = self.sparse = _NO_RECORDS
        if self.type not in (REGULAR, DIRECTORY):
            self._unusual(block)
        if block[345]:
            prefix = _prefix(block)
            if prefix:
                self.name = prefix + b"/" + self.name

    def __repr__(self) -> str:
        return f"<Header {self.type!r} {self.name!r} {self.size} bytes>"

    def _unusual(self, block: bytes) -> None:
        self.link = _text(block[157:257])
        if self.type in (CHAR, BLOCK_DEVICE) and block[257:262] == _USTAR[:5]:
            self.major, self.minor = number(block[329:337]), number(block[337:345])
        elif self.type == CONTIGUOUS:
            self.type = REGULAR

    def override(self, records: Mapping[bytes, bytes]) -> None:
        """Let PAX records replace fields of the block. An empty value replaces none, but an attribute may be empty.

        Raise InvalidArchive for a malformed value.
        """
        xattrs, sparse = {}, {}
        for key, value in records.items():
            if key.startswith(XATTR_PREFIX):
                xattrs[key[len(XATTR_PREFIX) :]] = value
            elif not value:
                continue
            elif key.startswith(SPARSE_PREFIX):
                sparse[key] = value
            else:
                self._override_one(key, value)
        if xattrs:
            self.xattrs = xattrs
        if sparse:
            self.sparse = sparse

    def _override_one(self, key: bytes, value: bytes) -> None:
        try:
            match key:
                case b"path":
                    self.name = value
                case b"linkpath":
                    self.link = value
                case b"size":
                    self.size = decimal(value)
                case b"uid":
                    self.uid = decimal(value)
                case b"gid":
                    self.gid = decimal(value)
                case b"mtime":
                    self.mtime_ns = pax_time_ns(value)
                case b"atime" | b"ctime":
                    pax_time_ns(value)
        except ValueError:
            raise InvalidArchive(f"PAX record {show(key)}={show(value)} of {show(self.name)}") from None

    def finish(self) -> None:
        """Settle type, owner, size and time once all names and records are known. Bound times as facts/core 8 says.

        Raise InvalidArchive for what no layer may hold.
        """
        if self.type == _OLD_REGULAR:
            self.type = DIRECTORY if self.name.endswith(b"/") else REGULAR
        if b"\0" in self.name or b"\0" in self.link:
            raise InvalidArchive(f"NUL in the name {show(self.name)}")
        if len(self.name) > MAX_NAME or len(self.link) > MAX_NAME:
            raise InvalidArchive(f"name of {max(len(self.name), len(self.link))} bytes")
        if self.type in WITHOUT_DATA:
            self.size = 0
        if self.size < 0:
            raise InvalidArchive(f"negative size in the header of {show(self.name)}")
        if not (0 <= self.major <= _MAX_DEVICE and 0 <= self.minor <= _MAX_DEVICE):
            raise InvalidArchive(f"device number {self.major}:{self.minor} of {show(self.name)}")
        self.uid, self.gid = kernel_id(self.uid), kernel_id(self.gid)
        if not 0 <= self.mtime_ns < _INT64:
            self.mtime_ns = 0


def is_end(block: bytes) -> bool:
    """Return whether a block is one of the zeroes that end an archive."""
    return block == _ZERO


def is_gnu(block: bytes) -> bool:
    """Return whether a header block is in the old GNU format."""
    return block[257:265] == _GNU


def verify_checksum(block: bytes) -> None:
    """Raise InvalidArchive where the block's checksum is wrong: this is no tar, or a damaged one.

    Old tars took the sum of signed bytes.
    """
    field = block[148:156]
    try:
        stored = _octal(field)
    except ValueError:
        raise InvalidArchive("tar header without a checksum") from None
    unsigned = sum(block) - sum(field) + 8 * ord(" ")
    if stored != unsigned:
        negative = sum(byte > 0x7F for byte in block) - sum(byte > 0x7F for byte in field)
        if stored != unsigned - 256 * negative:
            raise InvalidArchive("tar header with a wrong checksum")


def number(field: bytes) -> int:
    """Return the value of a numeric field: octal text, or base 256 if the first bit is set.

    Base 256 is two's complement below that bit. Raise InvalidArchive, also for more than 64 bits.
    """
    try:
        return _base_256(field) if field[0] & 0x80 else _octal(field)
    except ValueError:
        raise InvalidArchive(f"number {show(field)} in a tar header") from None


def _base_256(field: bytes) -> int:
    bits = 8 * len(field) - 1
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    return _checked(value - (1 << bits) if field[0] & 0x40 else value)


def _octal(field: bytes) -> int:
    """Return the octal number before the first NUL that comes after spaces and NULs; 0 for an empty field."""
    digits = field.strip(b"\0 ").partition(b"\0")[0]
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError(digits)
    return int(digits, 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _prefix(block: bytes) -> bytes:
    """Return what stands before the name: 155 bytes in ustar, 131 in star, none in V7.

    The old GNU format has times there. Go before 1.8 wrote a prefix all the same, and docker wrote layers with it.
    """
    if block[257:263] == _USTAR:
        return _text(block[345 : 476 if block[508:512] == b"tar\0" else 500])
    if not is_gnu(block) or _are_times(block[345:357], block[357:369]):
        return b""
    prefix = _text(block[345:500])
    return prefix if prefix.isascii() else b""


def _are_times(*fields: bytes) -> bool:
    try:
        for field in fields:
            if field[0]:
                number(field)
    except InvalidArchive:
        return False
    return True


def kernel_id(value: int) -> int:
    """Return an owner as the kernel takes it: the lower 32 bits; UNCHANGED_ID for the one that it leaves as it is."""
    low = value & _ID_MASK
    return UNCHANGED_ID if low == _ID_MASK else low


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """Return the records `<length> <key>=<value>\\n` of a PAX block. Raise InvalidArchive.

    Sparse format 0.0 repeats two keys for each piece of data; they become the one key of format 0.1.
    """
    records: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    at = 0
    while at < len(data):
        key, value, at = _record(data, at)
        if key in (_SPARSE_OFFSET, _SPARSE_BYTES):
            if b"," in value or key != (_SPARSE_BYTES if len(pieces) % 2 else _SPARSE_OFFSET):
                raise InvalidArchive(f"PAX record {show(key)} out of order")
            pieces.append(value)
        else:
            records[key] = value
    if pieces:
        records[SPARSE_MAP] = b",".join(pieces)
    return records


def _record(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Return key and value of the record that starts at `at`, and where the next one starts."""
    space = data.find(b" ", at)
    try:
        length = decimal(data[at:space]) if space > 0 else 0
    except ValueError:
        length = 0
    end = at + length
    key, equals, value = data[space + 1 : end - 1].partition(b"=")
    if length < 5 or not space + 1 < end <= len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
        raise InvalidArchive(f"PAX record {show(data[at : at + 40])}")
    if b"\0" in (value if key in _WITHOUT_NUL else key):
        raise InvalidArchive(f"NUL in a PAX record {show(key)}")
    return key, value, end


def pax_time_ns(value: bytes) -> int:
    """Return the nanoseconds of a PAX time: decimal seconds, perhaps negative or with a fraction. Raise ValueError."""
    seconds, _, fraction = value.partition(b".")
    if fraction and not fraction.isdigit():
        raise ValueError(value)
    nanos = int(fraction[:9].ljust(9, b"0"))
    whole = decimal(seconds) * 1_000_000_000
    return whole - nanos if seconds.startswith(b"-") else whole + nanos


def decimal(text: bytes) -> int:
    """Return the number of digits after an optional sign. `int` allows more than PAX does.

    Raise ValueError, also for more than 64 bits.
    """
    if not (text[1:] if text[:1] in (b"-", b"+") else text).isdigit():
        raise ValueError(text)
    return _checked(int(text))


def _checked(value: int) -> int:
    if not -_INT64 <= value < _INT64:
        raise ValueError(value)
    return value


def show(name: bytes) -> str:
    """Return a name for a message: quoted, printable, cut if it is long."""
    text = repr(name[:200])[1:]
    return f'"{text[1:-1]}"'
