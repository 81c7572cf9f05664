"""Content stores with one mistake each, for the suites to find."""

from __future__ import annotations

from collections.abc import Mapping

from aiocontainerd_content_local.store import LocalStore
from aiocontainerd_content_local.writer import LocalWriter

from aiocontainerd.errors import FailedPrecondition
from aiocontainerd.interfaces.content import BlobInfo


class _TrustingWriter(LocalWriter):
    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:  # noqa: ARG002 - the mistake
        return await super().commit(size, "", labels)


class AcceptsWrongDigest(LocalStore):
    """Commits whatever was written, and says it is what was expected."""

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> LocalWriter:
        writer = await super().writer(ref, total=total, expected=expected)
        writer.__class__ = _TrustingWriter
        return writer


class _StickyWriter(LocalWriter):
    failed = False

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> BlobInfo:
        try:
            return await super().commit(size, expected, labels)
        except FailedPrecondition:
            self.failed = True
            raise

    async def close(self) -> None:
        if not self.failed:
            await super().close()


class StaysLocked(LocalStore):
    """Keeps the ref locked once a commit failed."""

    async def writer(self, ref: str, *, total: int = 0, expected: str = "") -> LocalWriter:
        writer = await super().writer(ref, total=total, expected=expected)
        writer.__class__ = _StickyWriter
        return writer
