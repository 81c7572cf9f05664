"""Turn a resource's labels into edges and attributes for garbage collection (facts/core 10). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum

import msgspec

from aiocontainerd import durations, labels, timestamps

CONTENT = "content"
INGESTS = "ingests"
IMAGES = "images"
CONTAINERS = "containers"
SANDBOXES = "sandboxes"
LEASES = "leases"
SNAPSHOTS = "snapshots/"
"""Prefix of the type of snapshots; the snapshotter's name follows."""
COLLECTABLE = (CONTENT, INGESTS, IMAGES, LEASES)
"""Types that are collected, besides those that begin with `SNAPSHOTS`."""

MAX_NS = 2**63 - 1
MIN_NS = -(2**63)

_REF = "containerd.io/gc.ref."
_USED_AT = "containerd.io/gc.cond.value-usedat"
_NAMED_TARGETS = {"content": CONTENT, "image": IMAGES, "mount": "mounts", "stream": "streams"}
_NAMED_BACK_TARGETS = {"container": CONTAINERS, "content": CONTENT, "image": IMAGES}
_REFERRING = (CONTENT, IMAGES, CONTAINERS, SANDBOXES)
_BACK_REFERRING = (CONTENT, IMAGES, CONTAINERS)


class Kind(IntEnum):
    """Kinds of edges. A flat lease keeps what it holds over the first two only."""

    BUILT_IN = 0
    HELD = 1
    LABEL = 2
    BACK = 3
    CONDITIONAL = 4


class Edge(msgspec.Struct, frozen=True):
    """An edge to the resource `key` of `type`; a `BACK` edge leads from there to the one that has the label.

    A conditional edge holds while the target's age of last use lies strictly between the two bounds.
    """

    kind: Kind
    type: str
    key: str
    younger_than_ns: int = MAX_NS
    older_than_ns: int = MIN_NS


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """What labels say of a resource itself; see the columns of `resources` in the schema."""

    rooted: bool
    flat: bool = False
    expires_ns: int | None = None
    used_at_ns: int | None = None


def attributes(resource_type: str, given: Mapping[str, str]) -> Attributes:
    """Return what labels say of a resource itself. Leases, images, containers and sandboxes are always rooted.

    Times that do not parse are ignored.
    """
    snapshot = resource_type.startswith(SNAPSHOTS)
    if snapshot or resource_type == CONTENT:
        used = _time(given.get(_USED_AT)) if snapshot else None
        return Attributes(rooted=labels.GC_ROOT in given, used_at_ns=used)
    expires = _time(given.get(labels.GC_EXPIRE)) if resource_type in (LEASES, IMAGES) else None
    flat = resource_type == LEASES and labels.GC_FLAT in given
    return Attributes(rooted=resource_type != INGESTS, flat=flat, expires_ns=expires)


def edges(resource_type: str, given: Mapping[str, str]) -> set[Edge]:
    """Return the edges that the labels of a resource make. Ignore labels that mean nothing on its type."""
    snapshot = resource_type.startswith(SNAPSHOTS)
    result: set[Edge] = set()
    for label, value in given.items():
        if label.startswith(_REF) and (snapshot or resource_type in _REFERRING):
            result.update(_named(label.removeprefix(_REF), value, Kind.LABEL, _NAMED_TARGETS))
        elif label.startswith(labels.GC_BACK_REF + ".") and (snapshot or resource_type in _BACK_REFERRING):
            name = label.removeprefix(labels.GC_BACK_REF + ".")
            result.update(_named(name, value, Kind.BACK, _NAMED_BACK_TARGETS))
        elif label.startswith(labels.GC_COND_SNAPSHOT) and resource_type in (IMAGES, CONTENT):
            result.update(_conditional(label.removeprefix(labels.GC_COND_SNAPSHOT), value))
    return result


def _named(name: str, value: str, kind: Kind, targets: Mapping[str, str]) -> Iterator[Edge]:
    """Yield the edge of a label. `name` follows `gc.ref.` or `gc.bref.`: a target kind, then any `.x` or `/x`."""
    word = name.partition("/")[0].partition(".")[0]
    if word == "snapshot" and name.startswith("snapshot."):
        snapshotter = name.removeprefix("snapshot.").partition("/")[0]
        yield Edge(kind, SNAPSHOTS + snapshotter, value)
    elif word in targets:
        yield Edge(kind, targets[word], value)


def _conditional(name: str, value: str) -> Iterator[Edge]:
    """Yield an edge for each condition of `usedat<24h,usedat>8h|<key>`: one that holds is enough."""
    snapshotter = name.lstrip("./").partition("/")[0]
    conditions, separator, key = value.partition("|")
    for condition in conditions.split(",") if separator else ():
        operator = condition.removeprefix("usedat")[:1]
        if not condition.startswith("usedat") or operator not in ("<", ">"):
            continue
        bound = _duration_ns(condition.removeprefix("usedat")[1:])
        if bound is not None:
            side = {"younger_than_ns": bound} if operator == "<" else {"older_than_ns": bound}
            yield Edge(Kind.CONDITIONAL, SNAPSHOTS + snapshotter, key, **side)


def _duration_ns(text: str) -> int | None:
    try:
        return clamp(int(durations.parse(text) * timestamps.NANOSECONDS))
    except (ValueError, OverflowError):
        return None


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return clamp(timestamps.parse_rfc3339(text))
    except ValueError:
        return None


def clamp(ns: int) -> int:
    """Return the nearest integer that the database can hold."""
    return min(max(ns, MIN_NS), MAX_NS)
