"""Layers that stream processors turn into ones the differ knows."""

from __future__ import annotations

import bz2
import codecs
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import zstandard
from aiocontainerd_differ.differ import WalkingDiffer
from aiocontainerd_differ.media_types import is_sniffed
from aiocontainerd_differ.processing import MAX_STEPS, steps_from

from aiocontainerd import typeurl
from aiocontainerd.errors import Unknown
from aiocontainerd.interfaces.differ import ApplyOptions
from aiocontainerd.interfaces.stream_processor import StreamProcessor
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.testing.differ import bind, entry, tar_of
from aiocontainerd.testing.fakes import FakeContentStore, digest_of

TAR = "application/vnd.oci.image.layer.v1.tar"
BZIP2, SECRET = f"{TAR}+bzip2", f"{TAR}+bzip2+secret"


class Processor:
    """Applies a function to the whole stream; notes payloads and whether it was closed."""

    def __init__(self, accepts: str, returns: str, function: Any) -> None:
        self.accepts, self.returns = (accepts,), returns
        self._function = function
        self.payloads: list[typeurl.Any | None] = []
        self.closed = 0

    async def process(
        self, media_type: str, stream: AsyncIterator[bytes], payload: typeurl.Any | None
    ) -> AsyncIterator[bytes]:
        assert media_type in self.accepts
        self.payloads.append(payload)
        try:
            yield self._function(b"".join([part async for part in stream]))
        finally:
            self.closed += 1


def inverted(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data)


@pytest.fixture
def processors() -> dict[str, StreamProcessor]:
    return {"bunzip": Processor(BZIP2, TAR, bz2.decompress), "decrypt": Processor(SECRET, BZIP2, inverted)}


async def applied(directory: Path, processors: dict[str, StreamProcessor], blob: bytes, media_type: str) -> Descriptor:
    content = FakeContentStore()
    differ = WalkingDiffer(content, str(directory / "temp"), processors=processors)
    layer = Descriptor(media_type, content.put(blob), len(blob))
    (directory / "tree").mkdir(exist_ok=True)
    return await differ.apply(
        layer, bind(directory / "tree"), ApplyOptions(payloads={"decrypt": typeurl.Any("k", b"")})
    )


@pytest.mark.root
@pytest.mark.anyio
async def test_a_layer_goes_through_one_processor_after_the_other(tmp_path: Path, processors: Any) -> None:
    tar = tar_of([entry("hello", b"hello")])
    result = await applied(tmp_path, processors, inverted(bz2.compress(tar)), SECRET)
    assert (tmp_path / "tree" / "hello").read_bytes() == b"hello"
    assert result == Descriptor(TAR, digest_of(tar), len(tar))
    assert processors["decrypt"].payloads == [typeurl.Any("k", b"")]
    assert processors["bunzip"].payloads == [None]
    assert (processors["decrypt"].closed, processors["bunzip"].closed) == (1, 1)


@pytest.mark.root
@pytest.mark.anyio
async def test_what_a_processor_raises_applies_nothing(tmp_path: Path, processors: Any) -> None:
    with pytest.raises(Unknown, match="stream processor bunzip: Invalid data stream"):
        await applied(tmp_path, processors, b"no bzip2", BZIP2)
    assert list((tmp_path / "tree").iterdir()) == []
    assert processors["bunzip"].closed == 1


@pytest.mark.root
@pytest.mark.parametrize("cut", [1, 4, 100])
@pytest.mark.anyio
async def test_what_a_processor_cuts_off_makes_the_layer_fail(tmp_path: Path, cut: int) -> None:
    blob = zstandard.ZstdCompressor(write_checksum=True).compress(tar_of([entry("f", bytes(range(256)) * 9)]))
    cutter: Any = {"cutter": Processor(SECRET, f"{TAR}+zstd", lambda data: data[:-cut])}
    with pytest.raises(Unknown, match=rf"failed to apply layer {digest_of(blob)}: zstd stream"):
        await applied(tmp_path, cutter, blob, SECRET)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.anyio
async def test_no_more_layers_are_worked_on_than_at_once(tmp_path: Path, at_once: int) -> None:
    class Waiting(Processor):
        async def process(
            self, media_type: str, stream: AsyncIterator[bytes], payload: typeurl.Any | None
        ) -> AsyncIterator[bytes]:
            self.payloads.append(payload)
            await anyio.sleep_forever()
            yield b""

    waiting, content = Waiting(BZIP2, TAR, None), FakeContentStore()
    differ = WalkingDiffer(content, str(tmp_path / "temp"), at_once=at_once, processors={"waiting": waiting})
    layer = Descriptor(BZIP2, content.put(b"blob"), 4)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(differ.apply, layer, bind(tmp_path), ApplyOptions())
        with anyio.fail_after(20):
            while len(waiting.payloads) < at_once:  # noqa: ASYNC110 - seen from outside
                await anyio.sleep(0.005)
        await anyio.wait_all_tasks_blocked()
        assert len(waiting.payloads) == differ.statistics()["applying"] == at_once
        group.cancel_scope.cancel()


def test_a_known_type_needs_no_processor_and_an_unknown_one_is_said(processors: Any) -> None:
    assert steps_from(f"{TAR}+gzip", processors) == ([], f"{TAR}+gzip")
    assert [step.processor_id for step in steps_from(SECRET, processors)[0]] == ["decrypt", "bunzip"]
    with pytest.raises(Unknown, match=r"failed to get stream processor for a/b: no processor for media-type"):
        steps_from("a/b", processors)


@pytest.mark.parametrize(
    ("media_type", "sniffed"),
    [
        (TAR, False), (f"{TAR}+gzip", True), (f"{TAR}+zstd", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.oci.image.layer.squashed.v9", False), ("application/vnd.oci.image.layer.v2.tar+zstd", True),
        ("application/vnd.docker.image.rootfs.diff.tar", True),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
    ],
)  # fmt: skip
def test_layers_are_known_by_rule(media_type: str, *, sniffed: bool) -> None:
    assert steps_from(media_type, {}) == ([], media_type)
    assert is_sniffed(media_type) is sniffed


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.config.v1+json",
        f"{TAR}+gzip+encrypted",
        "application/vnd.docker.image.rootfs.other",
        "",
    ],
)
def test_what_is_no_layer_or_encrypted_needs_a_processor(media_type: str) -> None:
    with pytest.raises(Unknown, match="no processor for media-type"):
        is_sniffed(media_type)


def test_of_several_the_last_id_is_taken(processors: Any) -> None:
    other = Processor(BZIP2, TAR, codecs.encode)
    assert steps_from(BZIP2, {**processors, "zbunzip": other})[0][0].processor is other
    assert steps_from(BZIP2, {**processors, "a": other})[0][0].processor is processors["bunzip"]


def test_processors_in_a_circle_end() -> None:
    circle: Any = {"a": Processor("a", "b", None), "b": Processor("b", "a", None)}
    with pytest.raises(Unknown, match="stream processors for a lead to no layer"):
        steps_from("a", circle)
    assert MAX_STEPS == 8
