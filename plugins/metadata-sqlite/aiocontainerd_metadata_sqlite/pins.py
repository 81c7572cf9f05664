"""Keep blob files that a call in progress relies on from being deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import anyio


class BlobPins:
    """Digests pinned by calls in progress, and digests claimed for deletion; none is both at once."""

    def __init__(self) -> None:
        self._pins: Counter[str] = Counter()
        self._claimed: dict[str, anyio.Event] = {}

    def __repr__(self) -> str:
        return f"<BlobPins {len(self._pins)} pinned, {len(self._claimed)} being deleted>"

    async def pin(self, digest: str) -> None:
        """Keep the blob's file, if there is one, until `unpin`. Wait while the file is being deleted."""
        while (claim := self._claimed.get(digest)) is not None:
            await claim.wait()
        self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Undo one `pin`."""
        self._pins[digest] -= 1
        if self._pins[digest] <= 0:
            del self._pins[digest]

    def claim(self, digests: Iterable[str]) -> list[str]:
        """Claim for deletion those of `digests` that are not pinned, and return them."""
        claimed = [digest for digest in digests if digest not in self._pins and digest not in self._claimed]
        self._claimed.update((digest, anyio.Event()) for digest in claimed)
        return claimed

    def release(self, claimed: Iterable[str]) -> None:
        """End a claim. Calls that wait to pin go on."""
        for digest in claimed:
            self._claimed.pop(digest).set()
