"""Plugins that require others: the suites bring stand-ins, or what `--target-needs` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aiocontainerd_snapshotter_native.snapshotter import NativeSnapshotter

from aiocontainerd.interfaces.metadata import Container
from aiocontainerd.plugin import (
    ContentStore,
    Descriptor,
    Envelope,
    InitContext,
    Layer,
    PluginConfig,
    Verdict,
    errors,
    kinds,
    register,
)  # fmt: skip

Context = InitContext[PluginConfig]


@register(kinds.EVENT_SINK, "recording", requires=[kinds.METADATA, kinds.LEASE, kinds.SERVICE, kinds.EVENT])
class RecordingSink:
    """A sink that keeps a record of each event under a lease."""

    filters = ("topic~=^/",)

    def __init__(self, context: Context) -> None:
        self._containers = context.get(kinds.METADATA, "bolt").containers
        self._images = context.get(kinds.SERVICE, "images-service")
        self._leases = context.get_single(kinds.LEASE)
        self._count = 0

    async def deliver(self, envelope: Envelope) -> None:
        self._count += 1
        lease = await self._leases.create("", {"topic": envelope.topic})
        await self._containers.create(Container(id=f"event-{self._count}", labels={"lease": lease.id}))
        assert [one.id for one in await self._containers.list([f"labels.lease=={lease.id}"])]
        assert await self._images.list() == []


@register(kinds.IMAGE_VERIFIER, "second", requires=[kinds.CONTENT, kinds.LEASE])
class AsksAnother:
    """A verifier that reads the manifest by itself."""

    def __init__(self, context: Context) -> None:
        self._content = context.get(kinds.CONTENT, "content")

    async def verify(self, name: str, target: Descriptor, content: ContentStore) -> Verdict:
        async with await content.reader(target.digest) as reader:
            data = await reader.read(reader.size, 0)
        if len(data) != reader.size:
            raise errors.DataLoss(name)
        return Verdict(ok=False, reason="not signed")


@register(kinds.SNAPSHOTTER, "needing", requires=[kinds.CONTENT], wants=[kinds.STREAM_PROCESSOR])
class NeedingSnapshotter(NativeSnapshotter):
    """A snapshotter that looks at the content store."""

    def __init__(self, root: Path, context: Context) -> None:
        super().__init__(root)
        self._content = context.get_single(kinds.CONTENT)

    async def make(self, layer: Layer, parents: Sequence[Layer]) -> None:
        await self._content.statuses()
        await super().make(layer, parents)


@register(kinds.EVENT_SINK, "forgetful")
class ForgetsRequires:
    """A sink that looks for what it does not require."""

    filters = ()

    def __init__(self, context: InitContext[PluginConfig]) -> None:
        context.get_single(kinds.CONTENT)

    async def deliver(self, envelope: Envelope) -> None: ...


@register(kinds.EVENT_SINK, "of-acme", requires=["acme.own.v1"])
class NeedsTheRealOne:
    """A sink that requires a plugin of a kind that only its author knows."""

    filters = ()

    def __init__(self, context: InitContext[PluginConfig]) -> None:
        context.get("acme.own.v1", "x")

    async def deliver(self, envelope: Envelope) -> None: ...
