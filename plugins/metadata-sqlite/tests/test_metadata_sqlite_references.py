"""What labels mean to garbage collection."""

from __future__ import annotations

import pytest
from aiocontainerd_metadata_sqlite.references import MAX_NS, Attributes, Edge, Kind, attributes, edges

HOUR_NS = 3600 * 10**9
LAYERS = "snapshots/overlayfs"


@pytest.mark.parametrize(
    ("label", "edge"),
    [
        ("containerd.io/gc.ref.content", Edge(Kind.LABEL, "content", "v")),
        ("containerd.io/gc.ref.content.l.0", Edge(Kind.LABEL, "content", "v")),
        ("containerd.io/gc.ref.content/x.y", Edge(Kind.LABEL, "content", "v")),
        ("containerd.io/gc.ref.image.x", Edge(Kind.LABEL, "images", "v")),
        ("containerd.io/gc.ref.snapshot.overlayfs", Edge(Kind.LABEL, LAYERS, "v")),
        ("containerd.io/gc.ref.snapshot.overlayfs/top", Edge(Kind.LABEL, LAYERS, "v")),
        ("containerd.io/gc.ref.mount.x", Edge(Kind.LABEL, "mounts", "v")),
        ("containerd.io/gc.ref.stream", Edge(Kind.LABEL, "streams", "v")),
        ("containerd.io/gc.bref.container", Edge(Kind.BACK, "containers", "v")),
        ("containerd.io/gc.bref.image.x", Edge(Kind.BACK, "images", "v")),
        ("containerd.io/gc.bref.content/x", Edge(Kind.BACK, "content", "v")),
        ("containerd.io/gc.bref.snapshot.overlayfs/x", Edge(Kind.BACK, LAYERS, "v")),
    ],
)
def test_label_makes_an_edge(label: str, edge: Edge) -> None:
    assert edges("content", {label: "v"}) == {edge}


@pytest.mark.parametrize(
    "label",
    [
        "containerd.io/gc.ref.contents",
        "containerd.io/gc.ref.snapshot",
        "containerd.io/gc.ref.unknown.x",
        "containerd.io/gc.bref.mount",
        "containerd.io/gc.referral.content",
        "gc.ref.content",
    ],
)
def test_other_labels_make_none(label: str) -> None:
    assert edges("content", {label: "v"}) == set()


def test_labels_of_leases_and_ingests_make_no_edges() -> None:
    for resource_type in ("leases", "ingests"):
        assert edges(resource_type, {"containerd.io/gc.ref.content": "v"}) == set()


def test_conditions_are_alternatives_and_bad_ones_are_ignored() -> None:
    given = {"containerd.io/gc.cond.snapshot.overlayfs/x": "usedat<24h,usedat>48h,usedat<=1h,usedat<x,size<1|key|1"}
    expected = {
        Edge(Kind.CONDITIONAL, LAYERS, "key|1", younger_than_ns=24 * HOUR_NS),
        Edge(Kind.CONDITIONAL, LAYERS, "key|1", older_than_ns=48 * HOUR_NS),
    }
    assert edges("images", given) == expected
    assert edges("containers", given) == set()
    assert edges("images", {"containerd.io/gc.cond.snapshot.overlayfs": "usedat<24h"}) == set()


def test_roots_expiry_and_flatness() -> None:
    assert attributes("containers", {}) == Attributes(rooted=True)
    assert attributes("ingests", {"containerd.io/gc.root": "x"}) == Attributes(rooted=False)
    assert attributes("content", {"containerd.io/gc.root": "0"}) == Attributes(rooted=True)
    assert attributes(LAYERS, {}) == Attributes(rooted=False)
    lease = {"containerd.io/gc.expire": "1970-01-01T00:00:01Z", "containerd.io/gc.flat": "x"}
    assert attributes("leases", lease) == Attributes(rooted=True, flat=True, expires_ns=10**9)
    assert attributes("images", lease) == Attributes(rooted=True, expires_ns=10**9)
    assert attributes("leases", {"containerd.io/gc.expire": "tomorrow"}) == Attributes(rooted=True)
    assert attributes("leases", {"containerd.io/gc.expire": "9999-01-01T00:00:00Z"}).expires_ns == MAX_NS
    used = {"containerd.io/gc.cond.value-usedat": "1970-01-01T00:00:01Z"}
    assert attributes(LAYERS, used) == Attributes(rooted=False, used_at_ns=10**9)
