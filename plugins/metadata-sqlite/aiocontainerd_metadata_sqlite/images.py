"""Keep image records (facts/core 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any as Anything

import msgspec

from aiocontainerd import api, timestamps
from aiocontainerd import labels as label_rules
from aiocontainerd.errors import AlreadyExists, InvalidArgument, NotFound
from aiocontainerd.gotext import quoted
from aiocontainerd.interfaces.metadata import Image
from aiocontainerd.oci.descriptor import Descriptor, split_digest
from aiocontainerd_metadata_sqlite import resources
from aiocontainerd_metadata_sqlite.filtering import image_field, record_matcher, select
from aiocontainerd_metadata_sqlite.references import CONTENT, IMAGES, Edge, Kind
from aiocontainerd_metadata_sqlite.resources import Connection
from aiocontainerd_metadata_sqlite.session import Caller, Session, epoch_or

_SELECT = (
    "SELECT r.id, r.key, r.created_ns, r.updated_ns, i.media_type, i.digest, i.size, i.annotations"
    " FROM resources r JOIN images i ON i.id = r.id WHERE r.namespace = ? AND r.type = ?"
)


class Images:
    """The images of the current namespace; the `ImageStore` of the metadata contract."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, name: str) -> Image:
        """Raise NotFound."""
        namespace = self._session.caller().namespace
        found = await self._session.lookup((namespace, IMAGES, name), lambda db: _load(db, namespace, name))
        if found is None:
            raise NotFound(f"image {quoted(name)}")
        return found[1]

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """Return the images that match, sorted by name."""
        namespace = self._session.caller().namespace
        matches = record_matcher(filters, image_field)
        return await self._session.read(lambda db: select(_load_all(db, namespace), matches))

    async def create(self, image: Image, *, epoch_ns: int | None = None) -> Image:
        """Create a record; the target blob need not exist. Raise AlreadyExists, InvalidArgument."""
        _require_name(image)
        caller = self._session.caller()
        _validate(image)
        now = epoch_or(epoch_ns, timestamps.now_ns())
        stored = msgspec.structs.replace(_without_empty(image), created_at_ns=now, updated_at_ns=now)

        def insert(db: Connection) -> Image:
            if resources.find(db, caller.namespace, IMAGES, image.name) is not None:
                raise AlreadyExists(f"image {quoted(image.name)}")
            resource = resources.add(
                db,
                caller.namespace,
                IMAGES,
                stored.name,
                created_ns=now,
                updated_ns=now,
                labels=stored.labels,
                built_in=_edges(stored),
            )
            _insert(db, resource, stored)
            _hold_expiring(db, caller, stored)
            return stored

        return await self._session.mutate(insert, then=lambda done: self._announce("create", done, caller))

    async def update(self, image: Image, paths: Sequence[str] = (), *, epoch_ns: int | None = None) -> Image:
        """Change a record; without `paths`, replace labels and target. Raise NotFound, InvalidArgument."""
        _require_name(image)
        caller = self._session.caller()
        now = epoch_or(epoch_ns, timestamps.now_ns())

        def store(db: Connection) -> Image:
            found = _load(db, caller.namespace, image.name)
            if found is None:
                raise NotFound(f"image {quoted(image.name)}")
            resource, current = found
            changed = _without_empty(_updated(current, image, paths))
            _validate(changed)
            changed = msgspec.structs.replace(changed, updated_at_ns=now)
            resources.change(
                db,
                resource,
                caller.namespace,
                IMAGES,
                updated_ns=now,
                labels=changed.labels,
                built_in=_edges(changed),
            )
            db.execute("DELETE FROM images WHERE id = ?", (resource,))
            _insert(db, resource, changed)
            _hold_expiring(db, caller, changed)
            return changed

        return await self._session.mutate(store, then=lambda done: self._announce("update", done, caller))

    async def delete(self, name: str, *, target: Descriptor | None = None) -> None:
        """Delete a record. Raise NotFound, also if `target` is given and the image has another one."""
        caller = self._session.caller()

        def remove(db: Connection) -> None:
            found = _load(db, caller.namespace, name)
            if found is None:
                raise NotFound(f"image {quoted(name)}")
            resource, current = found
            if target is not None and target.digest and target.digest != current.target.digest:
                raise NotFound(f"image {quoted(name)} has target {current.target.digest}, not {target.digest}")
            resources.delete(db, resource)
            resources.let_go(db, caller.namespace, caller.lease, IMAGES, name)

        await self._session.mutate(
            remove, deletion=True, then=lambda _done: publish_deleted(self._session, name, caller.namespace)
        )

    def _announce(self, verb: str, image: Image, caller: Caller) -> None:
        kind = api.images.ImageCreate if verb == "create" else api.images.ImageUpdate
        message = kind(name=image.name, labels=dict(image.labels))
        self._session.publish(f"/images/{verb}", message, caller.namespace)


def publish_deleted(session: Session, name: str, namespace: str) -> None:
    """Publish that an image was deleted, by a client or by garbage collection (facts/core 10)."""
    session.publish("/images/delete", api.images.ImageDelete(name=name), namespace)


def _require_name(image: Image) -> None:
    if not image.name:
        raise InvalidArgument("Image.Name required", complete=True)


def _validate(image: Image) -> None:
    label_rules.validate(image.labels, "image.Labels")
    try:
        split_digest(image.target.digest)
    except InvalidArgument as bad:
        raise InvalidArgument(f"target.Digest {quoted(image.target.digest)} invalid: {bad.message}") from bad
    if image.target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero")
    if not image.target.media_type:
        raise InvalidArgument("target.MediaType must be set")


def _without_empty(image: Image) -> Image:
    target = msgspec.structs.replace(image.target, annotations=label_rules.without_empty(image.target.annotations))
    return msgspec.structs.replace(image, labels=label_rules.without_empty(image.labels), target=target)


def _updated(current: Image, given: Image, paths: Sequence[str]) -> Image:
    """Return `current` with the fields that `paths` name taken from `given`."""
    target = current.target
    for path in paths or ("labels", "target"):
        if path == "target":
            target = given.target
        elif path == "annotations":
            target = msgspec.structs.replace(target, annotations=given.target.annotations)
        elif path.startswith("annotations."):
            key = path.removeprefix("annotations.")
            merged = {**target.annotations, key: given.target.annotations.get(key, "")}
            target = msgspec.structs.replace(target, annotations=merged)
        elif path != "labels" and not path.startswith("labels."):
            raise InvalidArgument(f"cannot update {quoted(path)} field on image {quoted(given.name)}")
    labels = label_rules.update(current.labels, given.labels, list(paths) or ["labels"])
    return msgspec.structs.replace(current, labels=labels, target=target)


def _edges(image: Image) -> list[Edge]:
    return [Edge(Kind.BUILT_IN, CONTENT, image.target.digest)]


def _hold_expiring(db: Connection, caller: Caller, image: Image) -> None:
    """Hold the image by the call's lease if the image can expire; no other needs a lease (facts/core 5)."""
    if label_rules.GC_EXPIRE in image.labels:
        resources.hold(db, caller.namespace, caller.lease, IMAGES, image.name)


def _insert(db: Connection, resource: int, image: Image) -> None:
    target = image.target
    db.execute(
        "INSERT INTO images (id, media_type, digest, size, annotations) VALUES (?, ?, ?, ?, ?)",
        (resource, target.media_type, target.digest, target.size, msgspec.json.encode(dict(target.annotations))),
    )


def _load(db: Connection, namespace: str, name: str) -> tuple[int, Image] | None:
    row = db.execute(f"{_SELECT} AND r.key = ?", (namespace, IMAGES, name)).fetchone()
    return None if row is None else (row[0], _record(row, resources.labels_of(db, row[0])))


def _load_all(db: Connection, namespace: str) -> list[Image]:
    labels = resources.labels_of_all(db, namespace, IMAGES)
    rows = db.execute(f"{_SELECT} ORDER BY r.key", (namespace, IMAGES)).fetchall()
    return [_record(row, labels.get(row[0], {})) for row in rows]


def _record(row: Sequence[Anything], labels: Mapping[str, str]) -> Image:
    annotations = msgspec.json.decode(row[7], type=dict[str, str])
    target = Descriptor(row[4], row[5], row[6], annotations)
    return Image(name=row[1], target=target, labels=labels, created_at_ns=row[2], updated_at_ns=row[3])
