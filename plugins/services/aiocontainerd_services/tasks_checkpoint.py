"""Checkpoints between directories of CRIU images and blobs of the content store (facts/runtime 4.7)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import anyio

from aiocontainerd.errors import AlreadyExists, InvalidArgument, Unknown
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.content import ContentStore
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.typeurl import Any
from aiocontainerd.wire import codec
from aiocontainerd.wire.anys import any_to_wire

if TYPE_CHECKING:
    import tarfile

CRIU_MEDIA_TYPE = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG_MEDIA_TYPE = "application/vnd.containerd.container.checkpoint.config.v1+proto"
_CHUNK = 1 << 20

T = TypeVar("T")


async def store(content: ContentStore, directory: Path, spec: Any | None) -> list[Descriptor]:
    """Make blobs of a checkpoint directory and of the container's spec; returns their descriptors in that order."""
    with await _in_thread(_packed, directory) as archive:
        images = await _write(content, CRIU_MEDIA_TYPE, str(directory), lambda: archive.read(_CHUNK))
    message = any_to_wire(spec)
    data = b"" if message is None else codec.encode(message)
    config = await _write(content, CONFIG_MEDIA_TYPE, str(directory / "spec"), _chunks_of_bytes(data))
    return [images, config]


async def unpack(content: ContentStore, checkpoint: Descriptor, directory: Path) -> None:
    """Fill `directory`, which is made, with a checkpoint's files.

    Raises Unknown for another kind of blob, NotFound for a missing one, InvalidArgument for an archive that holds
    anything but files, directories and links within it; then the directory is gone again.
    """
    if checkpoint.media_type != CRIU_MEDIA_TYPE:
        raise Unknown(f"unsupported checkpoint type {quoted(checkpoint.media_type)}")
    await _in_thread(_make_empty, directory)
    try:
        with await _in_thread(_scratch, directory.parent) as archive:
            await _read(content, checkpoint.digest, archive)
            await _in_thread(_extract, archive, directory)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await remove(directory)
        raise


async def remove(directory: Path) -> None:
    """Delete a checkpoint directory; one that is gone is no error."""
    await _in_thread(_remove, directory)


def _chunks_of_bytes(data: bytes) -> Callable[[], bytes]:
    pending = [data]
    return lambda: pending.pop() if pending else b""


async def _write(content: ContentStore, media_type: str, ref: str, read: Callable[[], bytes]) -> Descriptor:
    async with await content.writer(ref) as writer:
        await writer.truncate()
        while chunk := await _in_thread(read):
            await writer.write(chunk)
        digest, size = writer.digest(), writer.offset
        try:
            await writer.commit(size, digest)
        except AlreadyExists:
            pass  # the same bytes under another name are the same blob
    return Descriptor(media_type, digest, size)


async def _read(content: ContentStore, digest: str, into: IO[bytes]) -> None:
    async with await content.reader(digest) as reader:
        offset = 0
        while chunk := await reader.read(_CHUNK, offset):
            await _in_thread(into.write, chunk)
            offset += len(chunk)


def _scratch(directory: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=directory)


def _packed(directory: Path) -> IO[bytes]:
    import tarfile

    archive = _scratch(directory.parent)
    try:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for entry in sorted(directory.iterdir()):
                tar.add(entry, arcname=entry.name)
        archive.seek(0)
    except BaseException:
        archive.close()
        raise
    return archive


def _extract(archive: IO[bytes], directory: Path) -> None:
    import tarfile

    archive.seek(0)
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                _extract_one(tar, member, directory)
    except tarfile.TarError as error:
        raise InvalidArgument(f"checkpoint: {error}") from error


def _extract_one(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts or member.name.startswith("/"):
        raise InvalidArgument(f'checkpoint: "{member.name}" leads outside')
    target = directory.joinpath(*parts)
    if any(parent.is_symlink() for parent in target.parents if parent.is_relative_to(directory)):
        raise InvalidArgument(f"checkpoint: {quoted(member.name)} is below a link")
    if member.isdir():
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif member.isreg():
        _extract_file(tar, member, target)
    elif member.issym():
        target.symlink_to(member.linkname)
    else:
        raise InvalidArgument(f"checkpoint: {quoted(member.name)} is neither file, directory nor link")


def _extract_file(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with source, os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _make_empty(directory: Path) -> None:
    _remove(directory)
    directory.mkdir(mode=0o700, parents=True)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


async def _in_thread(function: Callable[..., T], *args: object) -> T:
    return await anyio.to_thread.run_sync(function, *args)
