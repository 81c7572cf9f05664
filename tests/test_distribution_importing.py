"""Reading image archives and naming what is in them (facts/core 13, 14; facts/security 2.4)."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable

import pytest
import zstandard

from aiocontainerd.distribution.import_names import Naming, names_of
from aiocontainerd.distribution.tar_stream import Entry, TarStream, clean
from aiocontainerd.errors import InvalidArgument
from aiocontainerd.oci.image import NAME_ANNOTATION, REF_ANNOTATION
from aiocontainerd.testing.images import entry, tar_of

DIGEST = "sha256:" + "a" * 64


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
    with pytest.raises(InvalidArgument, match="extended header"):
        read_all(info.tobuf(tarfile.GNU_FORMAT))


def names(naming: Naming, **annotations: str) -> list[str]:
    keys = {"name": NAME_ANNOTATION, "ref": REF_ANNOTATION}
    return names_of({keys[key]: value for key, value in annotations.items()}, DIGEST, naming)


def test_a_tag_gets_the_prefix() -> None:
    assert names(Naming(prefix="r.io/a"), ref="1") == ["r.io/a:1"]
    assert names(Naming(), ref="1") == []


def test_a_whole_name_must_continue_the_prefix_unless_any_may() -> None:
    assert names(Naming(prefix="r.io/a"), ref="r.io/a:2") == ["r.io/a:2"]
    assert names(Naming(prefix="r.io/a"), ref="r.io/ab:2") == []
    assert names(Naming(prefix="x", allow_overwrite=True), ref="r.io/ab:2") == ["r.io/ab:2"]


def test_the_image_name_comes_first_and_alone() -> None:
    overwrite = Naming(prefix="import", allow_overwrite=True)
    assert names(overwrite, name="docker.io/library/a:1", ref="1") == ["docker.io/library/a:1"]
    assert names(Naming(prefix="r.io/a"), name="docker.io/library/a:1", ref="1") == []


def test_digests_name_as_well() -> None:
    assert names(Naming(prefix="p", add_digest=True), ref="1") == ["p:1", f"p@{DIGEST}"]
    assert names(Naming(prefix="p", add_digest=True, skip_named_digest=True), ref="1") == ["p:1"]
    assert names(Naming(prefix="p", add_digest=True, skip_named_digest=True)) == [f"p@{DIGEST}"]
