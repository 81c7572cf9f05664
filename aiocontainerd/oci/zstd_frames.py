"""Follow the frames of a zstd stream, to know whether it ends where a frame does (RFC 8878, section 3).

A decoder that reads from a file takes the end of the file for the end of the stream, wherever that is.
"""

from __future__ import annotations

MAGIC = b"\x28\xb5\x2f\xfd"
MAX_WINDOW_BYTES = 1 << 29
"""The largest window that is decoded, which is that of containerd's decoder. `zstd --long=31` makes larger ones."""
_SKIPPABLE = b"\x2a\x4d\x18"
_CHECKSUM_BYTES = 4
_RLE = 1


def is_zstd(start: bytes) -> bool:
    """Return whether a stream that starts so is zstd, by the magic number of a frame or a skippable frame."""
    return start.startswith(MAGIC) or (start[1:4] == _SKIPPABLE and start[0] >> 4 == 5)


class FrameTracker:
    """Takes the bytes of a stream piece by piece; `complete` tells whether they end with a frame.

    It decodes nothing: what it follows after bytes that are no zstd, only a decoder can tell.
    """

    def __init__(self) -> None:
        self._pass = 0
        """Bytes to pass over before the next field."""
        self._held = b""
        """The part of the next field that came already."""
        self._in_frame = False
        self._checksum = False

    def __repr__(self) -> str:
        return f"<FrameTracker complete={self.complete}>"

    @property
    def complete(self) -> bool:
        """Whether the stream may end here."""
        return not (self._pass or self._held or self._in_frame)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        at, data, self._held = 0, self._held + data, b""
        while True:
            step = min(self._pass, len(data) - at)
            at += step
            self._pass -= step
            if self._pass or at == len(data):
                return
            taken = self._block(data, at) if self._in_frame else self._header(data, at)
            if not taken:
                self._held = data[at:]
                return
            at += taken

    def _block(self, data: bytes, at: int) -> int:
        """Take the header of a block; bytes taken, 0 where more are needed."""
        if len(data) - at < 3:
            return 0
        header = data[at] | data[at + 1] << 8 | data[at + 2] << 16
        self._pass = 1 if header >> 1 & 3 == _RLE else header >> 3
        if header & 1:
            self._in_frame = False
            self._pass += _CHECKSUM_BYTES if self._checksum else 0
        return 3

    def _header(self, data: bytes, at: int) -> int:
        """Take the header of a frame or a skippable frame; bytes taken, 0 where more are needed."""
        if data[at + 1 : at + 4] == _SKIPPABLE:
            if len(data) - at < 8:
                return 0
            self._pass = int.from_bytes(data[at + 4 : at + 8], "little")
            return 8
        if len(data) - at < 5:
            return 0
        told = data[at + 4]
        single = told >> 5 & 1
        size_of_size = (1 if single else 0, 2, 4, 8)[told >> 6]
        self._pass = (0 if single else 1) + (0, 1, 2, 4)[told & 3] + size_of_size
        self._in_frame, self._checksum = True, bool(told & 4)
        return 5
