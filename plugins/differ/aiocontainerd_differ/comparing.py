"""Compare two trees in a child process, and write the layer to the content store (facts/core 8)."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec

from aiocontainerd.errors import AlreadyExists, NotFound, Unimplemented, Unknown
from aiocontainerd.interfaces.content import BlobInfo, ContentStore, Writer
from aiocontainerd.interfaces.differ import CompareOptions
from aiocontainerd.labels import UNCOMPRESSED
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.sys.mount import Mount, temp_mount
from aiocontainerd_differ.children import check, decode_answer, program, running
from aiocontainerd_differ.media_types import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from aiocontainerd_differ.targets import overlay_guide
from aiocontainerd_differ.unpack import Result

_COMPRESSION = {"": "gzip", OCI_LAYER_GZIP: "gzip", OCI_LAYER: "", OCI_LAYER_ZSTD: "zstd"}
_CLEAN_UP_S = 30.0
_CHUNK = 1 << 20


async def compare(
    content: ContentStore,
    temp_root: str,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    options: CompareOptions,
) -> Descriptor:
    """Write the difference as a layer. If that fails, abort the ingest, unless the caller named its ref."""
    compression = _COMPRESSION.get(options.media_type)
    if compression is None:
        raise Unimplemented(f"unsupported diff media type: {options.media_type}")
    async with _tree(lower, temp_root) as lower_path, _tree(upper, temp_root) as upper_path:
        job = {
            "lower": lower_path,
            "upper": upper_path,
            "guide": overlay_guide(lower, upper),
            "compression": compression,
            "epoch_s": _seconds(options.source_date_epoch_ns),
        }
        info = await _ingest(content, job, options)
    return Descriptor(options.media_type or OCI_LAYER_GZIP, info.digest, info.size)


@asynccontextmanager
async def _tree(mounts: Sequence[Mount], temp_root: str) -> AsyncIterator[str]:
    """Give the path of the tree of `mounts`: that of a plain directory, else where they are mounted read-only."""
    plain = len(mounts) == 1 and mounts[0].type in ("bind", "rbind") and not mounts[0].target
    if plain and not any(option.startswith(("uidmap=", "gidmap=")) for option in mounts[0].options):
        yield mounts[0].source
        return
    async with temp_mount(mounts, temp_root, readonly=True) as path:
        yield path


async def _ingest(content: ContentStore, job: Mapping[str, object], options: CompareOptions) -> BlobInfo:
    ref = options.reference or _unique_ref()
    try:
        async with await content.writer(ref) as writer:
            await writer.truncate()
            result = await _run(job, writer)
            labels = dict(options.labels)
            if job["compression"]:
                labels[UNCOMPRESSED] = result.digest
            return await _commit(content, writer, labels)
    except BaseException:
        if not options.reference:
            await _forget(content, ref)
        raise


async def _forget(content: ContentStore, ref: str) -> None:
    with anyio.move_on_after(_CLEAN_UP_S, shield=True):
        try:
            await content.abort(ref)
        except NotFound:
            pass


async def _run(job: Mapping[str, object], writer: Writer) -> Result:
    command = program(f"diff(**{job!r})")
    async with running(command) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pending = bytearray()
        async for part in process.stdout:
            pending += part
            if len(pending) >= _CHUNK:
                await writer.write(bytes(pending))
                pending.clear()
        await writer.write(bytes(pending))
        answer = b"".join([part async for part in process.stderr])
        status = await process.wait()
    check(answer, answer, status, "diff")
    try:
        return decode_answer(answer)
    except Unknown as error:
        raise Unknown(f"failed to write diff: {error.message}") from error


async def _commit(content: ContentStore, writer: Writer, labels: Mapping[str, str]) -> BlobInfo:
    digest = writer.digest()
    try:
        return await writer.commit(0, digest, labels)
    except AlreadyExists:
        info = await content.info(digest)
    diff_id = labels.get(UNCOMPRESSED)
    if diff_id and UNCOMPRESSED not in info.labels:
        labelled = msgspec.structs.replace(info, labels={**info.labels, UNCOMPRESSED: diff_id})
        return await content.update(labelled, [f"labels.{UNCOMPRESSED}"])
    return info


def _seconds(ns: int | None) -> int | None:
    return None if ns is None else ns // 1_000_000_000


def _unique_ref() -> str:
    return f"{time.time_ns()}-{base64.urlsafe_b64encode(os.urandom(3)).decode()}"
