"""A blob as a file: its own, or a copy where its store is elsewhere."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import anyio
import pytest

from aiocontainerd.distribution import spool
from aiocontainerd.errors import DataLoss, Unimplemented
from aiocontainerd.testing.fakes import FakeReader

pytestmark = pytest.mark.anyio


class Remote(FakeReader):
    """A reader of a blob that is in no file here."""

    size = 10

    def fileno(self) -> int:
        raise Unimplemented("no file")


async def test_a_blob_in_a_file_is_that_file() -> None:
    async with FakeReader(b"0123456789") as reader, spool.as_file(reader) as descriptor:
        assert descriptor == reader.fileno()


async def test_another_is_copied_to_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CHUNK_BYTES", 3)
    async with spool.as_file(Remote(b"0123456789"), tmp_path) as descriptor:
        assert os.pread(descriptor, 100, 0) == b"0123456789"
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_a_store_that_ends_early_is_data_loss(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="blob ended after 4 of 10 bytes"):
        async with spool.as_file(Remote(b"0123"), tmp_path):
            pass


async def test_a_copy_of_a_call_that_is_cancelled_is_closed(tmp_path: Path) -> None:
    with anyio.CancelScope() as before:
        before.cancel()
        async with spool.as_file(Remote(b"0123456789"), tmp_path):
            pytest.fail("the copy was made")
    with anyio.CancelScope() as meanwhile:
        async with spool.as_file(Remote(b"0123456789"), tmp_path) as descriptor:
            meanwhile.cancel()
    assert before.cancelled_caught
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    gc.collect()  # warns of a file that nobody closed, which fails the test
