"""Following an image from its target down: index, manifests, configuration and layers (facts/core 14).

Every digest is fetched once. Depth, number of references and size of documents are bounded: a hostile image costs no
more than an honest one (facts/security 2.4).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
import msgspec

from aiocontainerd.distribution import blobs
from aiocontainerd.errors import ContainerdError, FailedPrecondition, InvalidArgument, NotFound
from aiocontainerd.groups import run_all
from aiocontainerd.oci import image as oci
from aiocontainerd.oci.descriptor import Descriptor
from aiocontainerd.oci.image import ChildDescriptor, ImageConfig, Index, Manifest

if TYPE_CHECKING:
    from aiocontainerd.interfaces.content import ContentStore
    from aiocontainerd.oci.platform import Ranking

MAX_DEPTH = 8
MAX_REFERENCES = 10_000
MAX_REPEATS = 10_000
CONCURRENCY = 3
"""Blobs in transfer at the same time, containerd's `max_concurrent_downloads`."""


class NoneSuits(NotFound):
    """Raised for an index that has no manifest for the platforms that are wanted."""


Handler = Callable[[ChildDescriptor], Awaitable[None]]


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of an image that suits best, with its configuration.

    `is_image` is False for another artifact: its layers are no file system.
    """

    target: Descriptor
    manifest: Manifest
    config: ImageConfig
    is_image: bool = True


class Walker:
    """Fetches the blobs of an image by `fetch`, then labels each parent with its children."""

    def __init__(
        self,
        content: ContentStore,
        fetch: Handler,
        rank: Ranking,
        *,
        all_platforms: bool = False,
        label_all: bool = True,
        concurrency: int = CONCURRENCY,
    ) -> None:
        """`label_all` labels children of other platforms too, which a pull does and an import does not."""
        self._content = content
        self._fetch = fetch
        self._rank = rank
        self._all = all_platforms
        self._label_all = label_all
        self._limiter = anyio.CapacityLimiter(concurrency)
        self._seen: set[str] = set()
        self._repeats = 0

    def __repr__(self) -> str:
        return f"<Walker {len(self._seen)} digests, {self._repeats} repeats>"

    async def walk(self, target: Descriptor) -> None:
        """Fetch `target` and everything below it. The first failure is raised and cancels the rest."""
        root = ChildDescriptor(target.digest, target.size, target.media_type, dict(target.annotations))
        await self._visit(root, 0)

    async def _visit(self, item: ChildDescriptor, depth: int) -> None:
        oci.refuse_schema1(item.media_type)
        if not self._first(item):
            return
        async with self._limiter:
            await self._fetch(item)
        children = await self._children(item, depth)
        if children:
            await self._visit_all(children, depth + 1)

    async def _visit_all(self, children: Sequence[ChildDescriptor], depth: int) -> None:
        """Visit the children of one parent. Of indexes that are listed without a platform, one needs to suit."""
        failures: list[NoneSuits] = []

        async def visit(child: ChildDescriptor) -> None:
            try:
                await self._visit(child, depth)
            except NoneSuits as failure:
                failures.append(failure)

        await run_all([partial(visit, child) for child in children])
        if len(failures) == len(children):
            raise failures[0]

    def _first(self, item: ChildDescriptor) -> bool:
        if item.digest in self._seen:
            self._repeats += 1
            if self._repeats > MAX_REPEATS:
                raise InvalidArgument(f"image repeats more than {MAX_REPEATS} references")
            return False
        self._seen.add(item.digest)
        if len(self._seen) > MAX_REFERENCES:
            raise InvalidArgument(f"image has more than {MAX_REFERENCES} references")
        return True

    async def _children(self, item: ChildDescriptor, depth: int) -> Sequence[ChildDescriptor]:
        """Label a parent with its children, and return those to fetch."""
        document = await read_document(self._content, item.plain())
        if document is None:
            return ()
        if depth >= MAX_DEPTH:
            raise InvalidArgument(f"image is nested deeper than {MAX_DEPTH} indexes")
        if isinstance(document, Manifest):
            there: Sequence[ChildDescriptor] = (document.config, *document.layers)
        else:
            there = document.manifests
        children = there if isinstance(document, Manifest) or self._all else select(document, item.digest, self._rank)
        labels = oci.child_labels(there if self._label_all else children)
        await blobs.add_labels(self._content, item.digest, labels)
        return children


async def read_document(content: ContentStore, target: Descriptor) -> Index | Manifest | None:
    """Return the index or manifest behind a descriptor; None for any other blob. Raises InvalidArgument, NotFound."""
    if target.media_type in oci.INDEX_TYPES:
        data = await blobs.read_all(content, target.digest, limit=oci.MAX_DOCUMENT_BYTES)
        return oci.decode_index(data, target.media_type)
    if target.media_type in oci.MANIFEST_TYPES:
        data = await blobs.read_all(content, target.digest, limit=oci.MAX_DOCUMENT_BYTES)
        return oci.decode_manifest(data, target.media_type)
    return None


def select(index: Index, digest: str, rank: Ranking) -> Sequence[ChildDescriptor]:
    """Return the child that suits best, or all where none has a platform. Raises NoneSuits naming the platforms."""
    told = [child for child in index.manifests if child.platform is not None]
    ranked = [(place, child) for child in told if child.platform and (place := rank(child.platform)) is not None]
    if ranked:
        return (min(ranked, key=lambda pair: pair[0])[1],)
    untold = [child for child in index.manifests if child.platform is None]
    if untold:
        return untold
    there = ", ".join(sorted({str(child.platform) for child in told})) or "nothing"
    raise NoneSuits(f"no match for platform in manifest {digest} (it has {there}; choose one with --platform)")


async def choose(content: ContentStore, target: Descriptor, rank: Ranking) -> Chosen:
    """Return the manifest and configuration that suit best. Raises NotFound where none does or a blob is missing.

    A target that is a manifest itself is chosen whatever its platform is.
    """
    document = await read_document(content, target)
    if document is None:
        raise InvalidArgument(f'{target.digest} of type "{target.media_type}" is no image')
    if isinstance(document, Manifest):
        return await _chosen(content, target, document)
    return await _choose_child(content, target, document, rank)


async def _choose_child(
    content: ContentStore, target: Descriptor, index: Index, rank: Ranking, depth: int = 0
) -> Chosen:
    """Choose within an index. A child that is listed without a platform has that of its configuration."""
    if depth >= MAX_DEPTH:
        raise InvalidArgument(f"image is nested deeper than {MAX_DEPTH} indexes")
    failure: ContainerdError = NotFound(f"no manifest in index {target.digest}")
    for child in select(index, target.digest, rank):
        try:
            document = await read_document(content, child.plain())
            if isinstance(document, Index):
                return await _choose_child(content, child.plain(), document, rank, depth + 1)
            if document is None:
                raise InvalidArgument(f'{child.digest} of type "{child.media_type}" is no image')
            chosen = await _chosen(content, child.plain(), document)
            if child.platform is None:
                _check_platform(chosen, rank)
            return chosen
        except (NotFound, InvalidArgument) as error:
            failure = error
    raise failure


async def _chosen(content: ContentStore, target: Descriptor, manifest: Manifest) -> Chosen:
    config = await _config_of(content, manifest.config)
    is_image = manifest.config.media_type in oci.CONFIG_TYPES or bool(config.rootfs.diff_ids)
    return Chosen(target=target, manifest=manifest, config=config, is_image=is_image)


async def _config_of(content: ContentStore, child: ChildDescriptor) -> ImageConfig:
    """Return a configuration. One of a foreign type is an image's if it reads like one, else it is empty."""
    try:
        return oci.decode_config(await blobs.read_all(content, child.digest, limit=oci.MAX_DOCUMENT_BYTES))
    except (InvalidArgument, FailedPrecondition):
        if child.media_type in oci.CONFIG_TYPES:
            raise
        return ImageConfig()


def _check_platform(chosen: Chosen, rank: Ranking) -> None:
    config = chosen.config
    if config.os and rank(config.platform) is None:
        raise NotFound(
            f"image {chosen.target.digest} is for {config.platform}, which this host does not run "
            f"(choose it with --platform {config.platform} all the same)"
        )
