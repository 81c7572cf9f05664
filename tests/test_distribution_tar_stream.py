"""Reading the tar of an image archive (facts/core 14; facts/security 2.4)."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from collections.abc import Callable

import pytest
import zstandard

from aiocontainerd.distribution.tar_stream import Entry, TarStream, clean
from aiocontainerd.errors import InvalidArgument, Unimplemented
from aiocontainerd.testing.images import entry, tar_of


def read_all(data: bytes) -> dict[str, tuple[Entry, bytes]]:
    stream, found = TarStream(io.BytesIO(data)), {}
    while (item := stream.next()) is not None:
        body = b""
        while part := stream.read():
            body += part
        found[item.name] = (item, body)
    return found


SAMPLE = tar_of(
    [entry("a", b"x" * 700), entry("d/" + "n" * 150, b"y"), entry("l", kind=tarfile.SYMTYPE, link="../d/z")][:2]
)


@pytest.mark.parametrize("pack", [lambda d: d, gzip.compress, zstandard.ZstdCompressor().compress])
def test_an_archive_is_read_whatever_its_compression(pack: Callable[[bytes], bytes]) -> None:
    found = read_all(pack(SAMPLE))
    assert {name: body for name, (_, body) in found.items()} == {"a": b"x" * 700, "d/" + "n" * 150: b"y"}


def test_an_archive_may_have_a_large_zstd_window() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=29, chain_log=10, hash_log=10)
    maker = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert set(read_all(maker.compress(SAMPLE) + maker.flush())) == {"a", "d/" + "n" * 150}


def test_long_names_of_gnu_tar_are_read() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("g/" * 80 + "end")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert read_all(out.getvalue())["g/" * 80 + "end"][1] == b"abc"


def test_a_skipped_entry_is_passed_over() -> None:
    stream = TarStream(io.BytesIO(SAMPLE))
    first, second = stream.next(), stream.next()
    assert first is not None
    assert second is not None
    assert (first.name, second.name, stream.next()) == ("a", "d/" + "n" * 150, None)


def test_links_point_within_the_archive() -> None:
    link = read_all(tar_of([entry("x/l", kind=tarfile.SYMTYPE, link="../y/layer.tar")]))["x/l"][0]
    assert (link.kind, link.link) == ("link", "y/layer.tar")


@pytest.mark.parametrize("name", ["../a", "a/../../b", ".."])
def test_names_that_leave_the_archive_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="leaves the archive"):
        clean(name)


@pytest.mark.parametrize(("name", "cleaned"), [("./a", "a"), ("/a/b", "a/b"), ("a//b/", "a/b"), ("/../a", "a")])
def test_names_are_cleaned(name: str, cleaned: str) -> None:
    assert clean(name) == cleaned


@pytest.mark.parametrize("data", [b"no tar" * 200, SAMPLE[:600], SAMPLE[:100], b"\x1f\x8b" + b"x" * 30])
def test_damaged_archives_are_refused(data: bytes) -> None:
    with pytest.raises((InvalidArgument, OSError, EOFError)):
        read_all(data)


def test_an_extended_header_cannot_be_huge() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(InvalidArgument, match="special tar header of 1099511627776 bytes"):
        read_all(info.tobuf(tarfile.GNU_FORMAT))


def of_frames(data: bytes) -> bytes:
    maker = zstandard.ZstdCompressor(write_checksum=True)
    return maker.compress(data[:700]) + maker.compress(data[700:])


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
def test_a_compressed_archive_cut_anywhere_is_refused(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(SAMPLE)
    for end in range(1, len(packed)):
        with pytest.raises(InvalidArgument):
            read_all(packed[:end])
    with pytest.raises(InvalidArgument):
        read_all(packed[:-2] + b"xx")


@pytest.mark.parametrize("pack", [of_frames, lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:])])
def test_an_archive_may_be_compressed_in_several_parts(pack: Callable[[bytes], bytes]) -> None:
    assert list(read_all(pack(SAMPLE))) == ["a", "d/" + "n" * 150]


@pytest.mark.parametrize("tail", [b"garbage", b"\x28\xb5"])
@pytest.mark.parametrize("pack", [gzip.compress, of_frames])
def test_junk_after_a_compressed_archive_is_refused(pack: Callable[[bytes], bytes], tail: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read_all(pack(SAMPLE) + tail)


def test_files_with_holes_and_odd_numbers_are_read_from_an_archive() -> None:
    records = {"GNU.sparse.map": "3,2,8,2", "GNU.sparse.numblocks": "2", "GNU.sparse.size": "12"}
    records["GNU.sparse.name"] = "index.json"
    info, data = entry("GNUSparseFile.1/index.json", b"abcd")
    info.pax_headers = records
    found = read_all(tar_of([(info, data)]))
    assert found["index.json"] == (Entry("index.json", "file", 12), b"\0\0\0ab\0\0\0cd\0\0")


def test_an_archive_of_zstd_without_the_package_for_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(Unimplemented, match="needs the package zstandard"):
        read_all(zstandard.ZstdCompressor().compress(SAMPLE))
