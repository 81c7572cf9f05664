"""The kinds that plugins name: spelling, and who brings one that is absent."""

from __future__ import annotations

import pytest

from aiocontainerd import kinds
from aiocontainerd.host import discovery, needs
from aiocontainerd.host.reference import FIRST_PARTY
from aiocontainerd.host.registry import Registry
from aiocontainerd.plugin import PluginError, Registration


async def init(_context: object) -> object:
    return object()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("io.containerd.snapshoter.v1", kinds.SNAPSHOTTER),
        ("io.containerd.snapshotters.v1", kinds.SNAPSHOTTER),
        ("io.containerd.snapshotter", kinds.SNAPSHOTTER),
        ("io.containerd.snapshotter.v2", kinds.SNAPSHOTTER),
        ("snapshotter", kinds.SNAPSHOTTER),
        ("io.containerd.image-verifer.v1", kinds.IMAGE_VERIFIER),
        ("io.containerd.event_sink.v1", kinds.EVENT_SINK),
    ],
)
def test_a_misspelled_kind_is_refused_with_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(PluginError, match=f"unknown kind {written}; did you mean {meant}"):
        needs.check_kind(Registration(kind=written, id="acme", init=init))


@pytest.mark.parametrize("kind", [*sorted(needs.KNOWN), "com.acme.cache.v1", "io.containerd.acme.v1", "acme"])
def test_every_known_kind_and_kinds_of_ones_own_are_legal(kind: str) -> None:
    needs.check_kind(Registration(kind=kind, id="acme", init=init))


def test_the_packages_that_are_named_bring_the_kinds() -> None:
    registry = Registry()
    discovery.discover(registry, {}, FIRST_PARTY)
    brought: dict[str, set[str]] = {}
    for plugin in registry.plugins:
        if plugin.distribution not in ("", "aiocontainerd", *discovery.BUILT_IN):
            brought.setdefault(plugin.kind, set()).add(plugin.distribution)
    assert {kind: set(packages.split(" or ")) for kind, packages in needs.BROUGHT_BY.items()} == brought
