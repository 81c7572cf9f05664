"""Read the maps of files with holes in a tar: GNU's old format, and PAX formats 0.0, 0.1 and 1.0 (GNU tar manual).

A map lists the pieces of data, offset and size in bytes. What no piece covers is a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from aiocontainerd.oci.tar_header import (
    BLOCK,
    MAX_SPECIAL,
    SPARSE_MAP,
    SPARSE_PREFIX,
    InvalidArchive,
    decimal,
    is_gnu,
    number,
)

Piece = tuple[int, int]
"""Offset and length of data in a file."""
TakeBlock = Callable[[], bytes]
"""Gives the next block, or raises InvalidArchive."""

_MAJOR, _MINOR, _COUNT = SPARSE_PREFIX + b"major", SPARSE_PREFIX + b"minor", SPARSE_PREFIX + b"numblocks"
_NAME, _SIZE, _REAL_SIZE = SPARSE_PREFIX + b"name", SPARSE_PREFIX + b"size", SPARSE_PREFIX + b"realsize"
_ENTRY = 24
_IN_HEADER, _HEADER_COUNT, _HEADER_MORE = 386, 4, 482
_BLOCK_COUNT, _BLOCK_MORE = 21, 504
_REAL_SIZE_FIELD = slice(483, 495)


def pax_version(records: Mapping[bytes, bytes]) -> str:
    """Return `0` or `1` for the format whose records these are; "" for a file without holes, and unknown formats."""
    version = records.get(_MAJOR, b""), records.get(_MINOR, b"")
    if version in ((b"0", b"0"), (b"0", b"1")):
        return "0"
    if version == (b"1", b"0"):
        return "1"
    return "0" if version == (b"", b"") and SPARSE_MAP in records else ""


def pax_name(records: Mapping[bytes, bytes]) -> bytes:
    """Return the file's own name, which the entry's name is not; b"" if the records have none."""
    return records.get(_NAME, b"")


def pax_size(records: Mapping[bytes, bytes], default: int) -> int:
    """Return the size of the file, holes included. Raise InvalidArchive."""
    value = records.get(_SIZE) or records.get(_REAL_SIZE)
    return _number(value) if value else default


def map_of_records(records: Mapping[bytes, bytes]) -> list[Piece]:
    """Return the map of PAX formats 0.0 and 0.1, which is in the records. Raise InvalidArchive."""
    told = records.get(SPARSE_MAP, b"")
    numbers = [_number(part) for part in told.split(b",")] if told else []
    if len(numbers) != 2 * _number(records.get(_COUNT, b"")):
        raise InvalidArchive("sparse file whose map has another length than it says")
    return _paired(numbers)


def map_of_data(take: TakeBlock) -> list[Piece]:
    """Return the map of PAX format 1.0, which is in the first blocks of the data. Raise InvalidArchive."""
    data, wanted, numbers = bytearray(), 1, [0]
    lines = 0
    while lines < wanted:
        if len(data) + BLOCK > MAX_SPECIAL:
            raise InvalidArchive("sparse file with a map that is too long")
        block = take()
        data += block
        lines += block.count(b"\n")
        if wanted == 1 and lines:
            count = _number(bytes(data[: data.index(b"\n")]))
            if count < 0:
                raise InvalidArchive("sparse file with a negative number of pieces")
            wanted = 1 + 2 * count
    numbers = [_number(line) for line in bytes(data).split(b"\n", wanted)[1:wanted]]
    return _paired(numbers)


def map_of_header(block: bytes, take: TakeBlock) -> tuple[int, list[Piece]]:
    """Return the size of a file in GNU's old format, and its map. Raise InvalidArchive.

    Four pieces are in the header; `take` gives the blocks that follow it where there are more.
    """
    if not is_gnu(block):
        raise InvalidArchive("sparse file in a tar that is not GNU's")
    pieces = list(_fields(block, _IN_HEADER, _HEADER_COUNT))
    more, taken = block[_HEADER_MORE], 0
    while more:
        taken += BLOCK
        if taken > MAX_SPECIAL:
            raise InvalidArchive("sparse file with a map that is too long")
        further = take()
        pieces += _fields(further, 0, _BLOCK_COUNT)
        more = further[_BLOCK_MORE]
    return number(block[_REAL_SIZE_FIELD]), pieces


def runs(pieces: Sequence[Piece], size: int) -> list[Piece]:
    """Return the file from start to end as runs: bytes of a hole, then bytes of data.

    Raise InvalidArchive where pieces overlap, are out of order, or reach beyond `size`.
    """
    made, end = [], 0
    for offset, length in pieces:
        if length < 0 or offset < end or offset + length > size:
            raise InvalidArchive(f"sparse file of {size} bytes with a piece of {length} bytes at {offset}")
        made.append((offset - end, length))
        end = offset + length
    if end > size:
        raise InvalidArchive(f"sparse file of {size} bytes")
    made.append((size - end, 0))
    return made


def _fields(block: bytes, at: int, count: int) -> Iterator[Piece]:
    for start in range(at, at + count * _ENTRY, _ENTRY):
        if not block[start]:
            return
        yield number(block[start : start + 12]), number(block[start + 12 : start + 24])


def _paired(numbers: list[int]) -> list[Piece]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _number(text: bytes) -> int:
    try:
        return decimal(text)
    except ValueError:
        raise InvalidArchive("sparse file with a malformed map") from None
