"""Give filters the fields of each record (facts/core 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from aiocontainerd.errors import InvalidArgument
from aiocontainerd.interfaces.content import BlobInfo, IngestStatus
from aiocontainerd.interfaces.metadata import Container, Image, Lease
from aiocontainerd.interfaces.snapshotter import SnapshotInfo

Path = tuple[str, ...]
R = TypeVar("R")
Matcher = Callable[[R], bool]


def matcher(filters: Sequence[str], fields: Callable[[R, Path], str | None]) -> Matcher[R]:
    """Return a function that tells whether a record matches. Raise InvalidArgument for filters that do not parse."""
    if not filters:
        return lambda _record: True
    from aiocontainerd.filters import compile_filters

    compiled = compile_filters(filters)
    return lambda record: compiled.matches(lambda path: fields(record, path))


def record_matcher(filters: Sequence[str], fields: Callable[[R, Path], str | None]) -> Matcher[R]:
    """Do as `matcher`. An error names its class twice, as those of containerd's stores of records do (facts/core 2)."""
    try:
        return matcher(filters, fields)
    except InvalidArgument as bad:
        raise InvalidArgument(f"{bad.message}: {bad.text}: {bad.text}", complete=True) from bad


def container_field(record: Container, path: Path) -> str | None:
    """Return `id`, `image`, `runtime.name`, `labels.*`."""
    if path == ("runtime", "name"):
        return record.runtime_name
    return _simple({"id": record.id, "image": record.image}, record.labels, path)


def image_field(record: Image, path: Path) -> str | None:
    """Return `name`, `target.digest`, `target.mediatype`, `labels.*`, `annotations.*`."""
    if path[0] == "target":
        return _simple({"digest": record.target.digest, "mediatype": record.target.media_type}, {}, path[1:] or ("",))
    if path[0] == "annotations":
        return _of_map(record.target.annotations, path[1:])
    return _simple({"name": record.name}, record.labels, path)


def lease_field(record: Lease, path: Path) -> str | None:
    """Return `id`, `labels.*`."""
    return _simple({"id": record.id}, record.labels, path)


def content_field(record: BlobInfo, path: Path) -> str | None:
    """Return `digest`, `labels.*`."""
    return _simple({"digest": record.digest}, record.labels, path)


def status_field(record: IngestStatus, path: Path) -> str | None:
    """Return `ref`."""
    return _simple({"ref": record.ref}, {}, path)


def snapshot_field(record: SnapshotInfo, path: Path) -> str | None:
    """Return `kind`, `name`, `parent`, `labels.*`."""
    if path == ("parent",):
        return record.parent
    return _simple({"kind": record.kind.name.lower(), "name": record.name}, record.labels, path)


def select(records: Iterable[R], matches: Matcher[R]) -> list[R]:
    """Return the records that match, in their order."""
    return [record for record in records if matches(record)]


def _simple(fields: Mapping[str, str], labels: Mapping[str, str], path: Path) -> str | None:
    if path[0] == "labels":
        return _of_map(labels, path[1:])
    return fields.get(path[0]) or None


def _of_map(mapping: Mapping[str, str], path: Path) -> str | None:
    from aiocontainerd.filters import field

    return field(mapping, path) if path else None
