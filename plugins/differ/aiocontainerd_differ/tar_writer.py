"""Write tar headers: PAX, the same bytes for the same input, whoever writes them (facts/core 8)."""

from __future__ import annotations

from aiocontainerd.oci.tar_header import BLOCK, DIRECTORY, PAX, REGULAR

END = bytes(2 * BLOCK)
_NAME_BYTES = 100
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777


def header(
    name: bytes,
    *,
    kind: bytes = REGULAR,
    mode: int = 0,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime_s: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    records: dict[bytes, bytes] | None = None,
) -> bytes:
    """Return the blocks of one entry's header. What a block cannot hold goes to PAX records, sorted by key."""
    extra = dict(records or {})
    if kind == DIRECTORY:
        name += b"/"
    names = ((b"path", name), (b"linkpath", link))
    extra.update((key, text) for key, text in names if len(text) > _NAME_BYTES or not text.isascii())
    for key, value, limit in (
        (b"uid", uid, _MAX_ID), (b"gid", gid, _MAX_ID), (b"size", size, _MAX_SIZE), (b"mtime", mtime_s, _MAX_SIZE),
    ):  # fmt: skip
        if not 0 <= value <= limit:
            extra[key] = b"%d" % value
    block = _block(name, kind, mode, _fit(uid, _MAX_ID), _fit(gid, _MAX_ID), _fit(size, _MAX_SIZE),
                   _fit(mtime_s, _MAX_SIZE), link, device)  # fmt: skip
    return _pax(name, extra) + block if extra else block


def padding(size: int) -> bytes:
    """Return the zeroes after `size` bytes of data."""
    return bytes(-size % BLOCK)


def _fit(value: int, limit: int) -> int:
    return value if 0 <= value <= limit else 0


def _pax(name: bytes, records: dict[bytes, bytes]) -> bytes:
    data = b"".join(_record(key, records[key]) for key in sorted(records))
    short = b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2]
    ascii_name = bytes(byte for byte in short if byte < 0x80)
    block = _block(ascii_name, PAX, 0, 0, 0, len(data), 0, b"", (0, 0))
    return block + data + padding(len(data))


def _record(key: bytes, value: bytes) -> bytes:
    """Return `<length> <key>=<value>\\n`. The length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_s: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    fields = (
        name[:_NAME_BYTES].ljust(100, b"\0"), b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime_s),
        b" " * 8, kind, link[:_NAME_BYTES].ljust(100, b"\0"), b"ustar\x0000", bytes(64),
        b"%07o\0%07o\0" % device, bytes(167),
    )  # fmt: skip
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
