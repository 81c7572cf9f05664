"""Stand-ins: one for each kind that can be required, whole for the host, and honest where they do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiocontainerd import context, kinds
from aiocontainerd.errors import AlreadyExists, NotFound, Unimplemented
from aiocontainerd.host.needs import KNOWN
from aiocontainerd.interfaces.metadata import Container, Image, Lease, Resource
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.plugin import ContentStore, Envelope, InitContext, PluginConfig, State, Verdict, register
from aiocontainerd.testing import host, stand_ins
from aiocontainerd.testing.fake_records import FakeMetadata

pytestmark = pytest.mark.anyio

REQUIRED = sorted(KNOWN - {kinds.GRPC, kinds.TTRPC, kinds.SERVER})
SEEN: list[dict[str, Any]] = []


@register(kinds.IMAGE_VERIFIER, "greedy", requires=[kind for kind in REQUIRED if kind != kinds.IMAGE_VERIFIER])
class Greedy:
    """A verifier that requires a plugin of every other kind."""

    def __init__(self, context: InitContext[PluginConfig]) -> None:
        SEEN.append({kind: context.get_all(kind) for kind in REQUIRED if kind != kinds.IMAGE_VERIFIER})

    async def verify(self, name: str, target: Descriptor, content: ContentStore) -> Verdict:
        return Verdict(ok=True)


@register(kinds.EVENT_SINK, "recording", requires=[kinds.METADATA, kinds.LEASE, kinds.EVENT])
class RecordingSink:
    """A sink that keeps a record of each event under a lease."""

    filters = ()

    def __init__(self, context: InitContext[PluginConfig]) -> None:
        self._containers = context.get(kinds.METADATA, "bolt").containers
        self._leases = context.get_single(kinds.LEASE)

    async def deliver(self, envelope: Envelope) -> None:
        lease = await self._leases.create("", {"topic": envelope.topic})
        await self._containers.create(Container(id="event", labels={"lease": lease.id}))


async def test_every_kind_that_can_be_required_has_a_stand_in_that_conforms(tmp_path: Path) -> None:
    SEEN.clear()
    others = stand_ins.needed_by(Greedy, without=[kinds.EVENT])
    async with host.running(tmp_path, Greedy, others=others) as daemon:
        assert daemon.plugin.state is State.LOADED, daemon.plugin.reason
        (found,) = SEEN
        assert {kind for kind, plugins in found.items() if not plugins} == set()
        with pytest.raises(Unimplemented, match="the stand-in of Differ has no apply; bring a plugin that has"):
            await found[kinds.DIFFER]["walking"].apply(None, [], None)


async def test_a_plugin_that_requires_others_runs_in_a_host(tmp_path: Path) -> None:
    metadata = FakeMetadata()
    others = stand_ins.needed_by(RecordingSink, without=[kinds.EVENT], metadata=metadata)
    async with host.running(tmp_path, RecordingSink, others=others) as daemon:
        assert daemon.plugin.state is State.LOADED, daemon.plugin.reason
        await daemon.plugin.instance.deliver(Envelope(0, "default", "/a", None))  # type: ignore[arg-type]
    (container,) = await metadata.containers.list()
    assert [lease.id for lease in await metadata.leases.list()] == [container.labels["lease"]]


async def test_the_fake_records_keep_what_they_are_given_by_namespace() -> None:
    metadata = FakeMetadata()
    with context.use(namespace="a"):
        made = await metadata.containers.create(Container(id="c", image="i", labels={"x": "1"}))
        assert made.created_at_ns > 0
        with pytest.raises(AlreadyExists):
            await metadata.containers.create(Container(id="c"))
        assert await metadata.containers.list(["image==i"]) == [made]
        assert await metadata.containers.list(["labels.x==2"]) == []
        changed = await metadata.containers.update(Container(id="c", labels={"x": "2"}, image="j"), ["labels.x"])
        assert (changed.image, changed.labels) == ("i", {"x": "2"})
        await metadata.images.create(Image(name="n", target=Descriptor("m", "sha256:0", 1)))
        assert (await metadata.images.get("n")).target.digest == "sha256:0"
        lease: Lease = await metadata.leases.create("", {})
        await metadata.leases.add_resource(lease.id, Resource("c", "content"))
        assert await metadata.leases.resources(lease.id) == (Resource("c", "content"),)
    with context.use(namespace="b"):
        assert await metadata.containers.list() == []
        with pytest.raises(NotFound):
            await metadata.containers.get("c")
