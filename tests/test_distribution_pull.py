"""Pulling over a connection and inside a daemon: what is there afterwards, and what a hostile registry leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from aiocontainerd import context, labels
from aiocontainerd.distribution import Stores
from aiocontainerd.distribution.blobs import read_all
from aiocontainerd.distribution.hosts import RegistryOptions
from aiocontainerd.distribution.legacy_config import mended
from aiocontainerd.distribution.pull import PullOptions, pull
from aiocontainerd.errors import (
    ContainerdError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from aiocontainerd.interfaces.metadata import Image, Namespace
from aiocontainerd.interfaces.snapshotter import Kind
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import platform
from aiocontainerd.testing import images
from aiocontainerd.testing.registry import Handler, ScriptedRegistry, scripted_registry

pytestmark = pytest.mark.anyio
pytest_plugins = ["aiocontainerd.testing.image_stores"]

StoresOf = Callable[[], AbstractContextManager[Stores]]
LOWER = images.BuiltLayer(images.tar_of([images.entry("a", b"lower" * 100_000), images.entry("b", b"b")]))
UPPER = images.BuiltLayer(images.tar_of([images.entry("a", b"upper"), images.entry("../../c", b"c")]), "tar")
HOST = platform.default()
IMAGE = images.BuiltImage(layers=[LOWER, UPPER], architecture=HOST.architecture, os=HOST.os, variant=HOST.variant)
MANIFEST, BLOBS = IMAGE.blobs()
OPTIONS = PullOptions(snapshotter="native", labels={"k": "v"})


def registry(
    blobs: Sequence[images.Blob] = BLOBS,
    target: images.Blob = MANIFEST,
    sent: Mapping[str, bytes] | None = None,
    *,
    media_type: str = oci.OCI_MANIFEST,
) -> Handler:
    """Return a registry that has an image under every tag. `sent` replaces the bytes of blobs."""
    there = {blob.digest: blob.data for blob in blobs} | dict(sent or {})

    async def handler(request: web.Request) -> web.Response:
        kind, _, name = request.path.removeprefix("/v2/a/b/").partition("/")
        digest = name if name.startswith("sha256:") else target.digest
        if digest not in there:
            return web.Response(status=404)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest} if kind == "manifests" else {}
        return web.Response(body=there[digest], headers=headers)

    return handler


async def pulled(stores: Stores, script: ScriptedRegistry, options: PullOptions = OPTIONS) -> Image:
    limits = RegistryOptions(plain_http=True, retry_pause_s=0.0)
    return await pull(stores, f"{script.url}/a/b:1", limits, options)


async def left(stores: Stores) -> list[object]:
    """Images, leases, ingests and snapshots that are no layers."""
    snapshots = [info async for info in stores.snapshotter("native").walk() if info.kind != Kind.COMMITTED]
    return [
        *await stores.images.list(), *await stores.leases.list(), *await stores.content.statuses(), *snapshots,
    ]  # fmt: skip


async def test_an_image_is_there_whole_labelled_and_named(stores_of: StoresOf) -> None:
    async with scripted_registry(registry()) as script:
        with stores_of() as stores:
            image = await pulled(stores, script)
            assert (image.name, image.target.digest, image.labels) == (
                f"{script.url}/a/b:1",
                MANIFEST.digest,
                {"k": "v"},
            )
            infos = {info.digest: info async for info in stores.content.walk()}
            assert infos.keys() == {blob.digest for blob in BLOBS}
            assert {info.labels[f"{labels.DISTRIBUTION_SOURCE}.127.0.0.1"] for info in infos.values()} == {"a/b"}
            assert infos[UPPER.blob().digest].labels[labels.UNCOMPRESSED] == UPPER.diff_id
            top = oci.chain_ids([LOWER.diff_id, UPPER.diff_id])[-1]
            assert infos[IMAGE.config().digest].labels[f"{labels.GC_REF_SNAPSHOT}.native"] == top
            (mount,) = await stores.snapshotter("native").view("look", top)
            tree = {path.name: path.stat().st_size for path in Path(mount.source).iterdir()}
            await stores.snapshotter("native").remove("look")
            assert tree == {"a": 5, "b": 1, "c": 1}
            assert await left(stores) == [image]


async def test_what_is_there_is_not_fetched_again(stores_of: StoresOf) -> None:
    async with scripted_registry(registry()) as script:
        with stores_of() as stores:
            await pulled(stores, script)
            before = len(script.requests)
            told: list[tuple[str, str]] = []
            limits = RegistryOptions(plain_http=True)
            await pull(
                stores, f"{script.url}/a/b:2", limits, OPTIONS, lambda name, status, *_: told.append((name, status))
            )
    assert script.asked[before:] == ["HEAD /v2/a/b/manifests/2"]
    assert [status for name, status in told if name.startswith("layer-")] == ["exists"] * 4


async def test_the_snapshotter_is_that_of_the_namespace(stores_of: StoresOf) -> None:
    async with scripted_registry(registry()) as script:
        with stores_of() as stores:
            await stores.namespaces.update(Namespace("t", {labels.DEFAULT_SNAPSHOTTER: "native"}))
            await pulled(stores, script, PullOptions())
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2


async def test_a_collection_meanwhile_takes_nothing(
    stores_of: StoresOf, collect: Callable[[], Awaitable[object]]
) -> None:
    honest, collected = registry(), []

    async def handler(request: web.Request) -> web.StreamResponse:
        collected.append(await collect())
        return await honest(request)

    async with scripted_registry(handler) as script:
        with stores_of() as stores:
            image = await pulled(stores, script, PullOptions(snapshotter="native", concurrency=1))
            await collect()
            assert len([info async for info in stores.content.walk()]) == len(BLOBS)
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2
            assert await left(stores) == [image]
    assert len(collected) == 1 + len(BLOBS)


def _config(**changes: object) -> tuple[images.Blob, list[images.Blob]]:
    """Return the manifest and blobs of the image with another configuration."""
    config = images.Blob(json.dumps(json.loads(IMAGE.config().data) | changes).encode())
    manifest = json.loads(MANIFEST.data)
    manifest["config"] = config.descriptor(oci.OCI_CONFIG)
    target = images.Blob(json.dumps(manifest).encode())
    return target, [LOWER.blob(), UPPER.blob(), config, target]


_SWAPPED = _config(rootfs={"type": "layers", "diff_ids": [UPPER.diff_id, LOWER.diff_id]})
_SHORT = _config(rootfs={"type": "layers", "diff_ids": [LOWER.diff_id]})
_LAYER = LOWER.blob()
_NO_GZIP = images.Blob(b"\x1f\x8b" + bytes(100))
_BROKEN = json.loads(MANIFEST.data)
_BROKEN["layers"][0] = _NO_GZIP.descriptor(LOWER.media_type)
_BROKEN_MANIFEST = images.Blob(json.dumps(_BROKEN).encode())
HOSTILE: Mapping[str, tuple[Handler, type[ContainerdError], str]] = {
    "other bytes": (registry(sent={_LAYER.digest: bytes(len(_LAYER.data))}), FailedPrecondition, "sent something else"),
    "too many bytes": (registry(sent={_LAYER.digest: _LAYER.data + b"x"}), FailedPrecondition, "is larger than"),
    "too few bytes": (registry(sent={_LAYER.digest: _LAYER.data[:100]}), DataLoss, "breaks off after 100 of"),
    "no layer": (registry(blobs=[b for b in BLOBS if b != _LAYER]), NotFound, "unexpected status from GET"),
    "another manifest": (registry(sent={MANIFEST.digest: b"x" * len(MANIFEST.data)}), FailedPrecondition, "something"),
    "other layers than the configuration says": (registry(_SWAPPED[1], _SWAPPED[0]), InvalidArgument, "wrong diff id"),
    "more layers than the configuration says": (registry(_SHORT[1], _SHORT[0]), InvalidArgument, "mismatched image"),
    "a layer that is no archive": (
        registry([*BLOBS, _NO_GZIP, _BROKEN_MANIFEST], _BROKEN_MANIFEST), ContainerdError, "failed to extract layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_registry_leaves_neither_name_nor_ingest_nor_lease(stores_of: StoresOf, case: str) -> None:
    handler, kind, text = HOSTILE[case]
    async with scripted_registry(handler) as script:
        with stores_of() as stores:
            with pytest.raises(kind, match=text):
                await pulled(stores, script)
            assert await left(stores) == []


async def test_a_blob_of_another_digest_never_gets_into_the_store(stores_of: StoresOf) -> None:
    forged = bytes(len(_LAYER.data))
    async with scripted_registry(registry(sent={_LAYER.digest: forged})) as script:
        with stores_of() as stores:
            with pytest.raises(FailedPrecondition):
                await pulled(stores, script)
            digests = {info.digest async for info in stores.content.walk()}
    assert digests.isdisjoint({_LAYER.digest, f"sha256:{hashlib.sha256(forged).hexdigest()}"})


async def test_a_pull_that_is_cancelled_leaves_nothing(stores_of: StoresOf) -> None:
    asked, honest = anyio.Event(), registry()

    async def handler(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith(_LAYER.digest):
            return await honest(request)
        response = web.StreamResponse(headers={"Content-Length": str(len(_LAYER.data))})
        await response.prepare(request)
        await response.write(_LAYER.data[:1000])
        asked.set()
        await anyio.sleep_forever()
        return response

    async with scripted_registry(handler) as script:
        with stores_of() as stores:
            async with anyio.create_task_group() as group:
                group.start_soon(pulled, stores, script)
                await asked.wait()
                group.cancel_scope.cancel()
            assert await left(stores) == []


async def test_a_registry_that_is_gone_leaves_no_lease(stores_of: StoresOf) -> None:
    async with scripted_registry(registry()) as script:
        pass
    with stores_of() as stores:
        with pytest.raises(Unavailable):
            await pulled(stores, script)
        assert await left(stores) == []


async def test_the_lease_is_that_of_the_block_alone(stores_of: StoresOf) -> None:
    seen: list[str] = []
    async with scripted_registry(registry()) as script:
        with stores_of() as stores:
            before = context.current()
            limits = RegistryOptions(plain_http=True)
            await pull(stores, f"{script.url}/a/b:1", limits, OPTIONS, lambda *_: seen.append(context.lease()))
            assert context.current() == before
    assert len(set(seen)) == 1
    assert "" not in seen


def _typed(config_type: str, config: images.Blob, layers: Sequence[tuple[images.Blob, str]]) -> list[images.Blob]:
    """Return the blobs of an artifact, the manifest last."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": config.descriptor(config_type),
        "layers": [blob.descriptor(media_type) for blob, media_type in layers],
    }
    blobs = {blob.digest: blob for blob in (config, *(blob for blob, _ in layers))}
    return [*blobs.values(), images.Blob(json.dumps(manifest).encode())]


_LAYERS = [(LOWER.blob(), LOWER.media_type), (UPPER.blob(), UPPER.media_type)]
_EMPTY = images.Blob(b"{}")
_THING = images.Blob(b"thing")
ARTIFACTS = {
    "an empty config": _typed(
        "application/vnd.oci.empty.v1+json", _EMPTY, [(_EMPTY, "application/vnd.oci.empty.v1+json")]
    ),
    "a config that is no JSON": _typed("application/vnd.acme", _THING, [(_THING, "application/vnd.acme.thing")]),
    "a config without a type": _typed("", _THING, [(_THING, "")]),
    "layers of an image without its config": _typed("application/vnd.acme+json", _EMPTY, _LAYERS),
}


@pytest.mark.parametrize("case", ARTIFACTS)
async def test_an_artifact_is_stored_and_named_and_stays_packed(
    stores_of: StoresOf, collect: Callable[[], Awaitable[object]], case: str
) -> None:
    blobs = ARTIFACTS[case]
    async with scripted_registry(registry(blobs, blobs[-1])) as script:
        with stores_of() as stores:
            image = await pulled(stores, script)
            await collect()
            assert image.target.digest == blobs[-1].digest
            assert {info.digest async for info in stores.content.walk()} == {blob.digest for blob in blobs}
            assert [info async for info in stores.snapshotter("native").walk()] == []
            assert await left(stores) == [image]


@pytest.mark.parametrize("config_type", ["application/json", "", "application/vnd.acme+json", oci.DOCKER_CONFIG])
async def test_what_reads_like_the_config_of_an_image_is_one(stores_of: StoresOf, config_type: str) -> None:
    blobs = _typed(config_type, IMAGE.config(), _LAYERS)
    async with scripted_registry(registry(blobs, blobs[-1])) as script:
        with stores_of() as stores:
            assert (await pulled(stores, script)).target.digest == blobs[-1].digest
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2


async def test_a_config_of_the_type_of_old_registries_is_given_dockers(
    stores_of: StoresOf, collect: Callable[[], Awaitable[object]]
) -> None:
    blobs = _typed("application/octet-stream", IMAGE.config(), _LAYERS)
    async with scripted_registry(registry(blobs, blobs[-1])) as script:
        with stores_of() as stores:
            image = await pulled(stores, script)
            await collect()
            data = await read_all(stores.content, image.target.digest, limit=10_000)
            assert json.loads(data)["config"]["mediaType"] == oci.DOCKER_CONFIG
            there = {info.digest async for info in stores.content.walk()}
            assert there == {blob.digest for blob in blobs[:-1]} | {image.target.digest}
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2
            assert await left(stores) == [image]


def test_a_mended_manifest_is_the_one_that_go_writes() -> None:
    layer = {
        "digest": "sha256:b",
        "mediaType": "l",
        "size": 2,
        "urls": ["http://x/?a&b"],
        "annotations": {"z": "<", "a": "1"},
    }
    given = {
        "config": {"size": 1, "digest": "sha256:a", "mediaType": "x"},
        "layers": [layer],
        "schemaVersion": 2,
        "y": 1,
    }
    assert (
        mended(given).decode()
        == """{
   "schemaVersion": 2,
   "config": {
      "mediaType": "application/vnd.docker.container.image.v1+json",
      "digest": "sha256:a",
      "size": 1
   },
   "layers": [
      {
         "mediaType": "l",
         "digest": "sha256:b",
         "size": 2,
         "urls": [
            "http://x/?a\\u0026b"
         ],
         "annotations": {
            "a": "1",
            "z": "\\u003c"
         }
      }
   ]
}"""
    )


def _index(*children: images.Blob, kind: str = oci.OCI_INDEX, **told: object) -> images.Blob:
    manifests = [child.descriptor(kind, **told) for child in children]
    return images.Blob(json.dumps({"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": manifests}).encode())


_OURS = _index(MANIFEST, kind=oci.OCI_MANIFEST, platform=IMAGE.platform)
_THEIRS = _index(MANIFEST, kind=oci.OCI_MANIFEST, platform={"os": "plan9", "architecture": "other"})


@pytest.mark.parametrize("children", [(_OURS, _THEIRS), (_THEIRS, _OURS)], ids=["first", "last"])
async def test_one_of_the_indexes_in_an_index_needs_to_suit(
    stores_of: StoresOf, children: tuple[images.Blob, images.Blob]
) -> None:
    target = _index(*children)
    handler = registry([*BLOBS, *children, target], target, media_type=oci.OCI_INDEX)
    async with scripted_registry(handler) as script:
        with stores_of() as stores:
            image = await pulled(stores, script, PullOptions(snapshotter="native"))
            assert image.target.digest == target.digest
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2


async def test_an_index_of_indexes_of_which_none_suits_is_refused(stores_of: StoresOf) -> None:
    target = _index(_THEIRS)
    handler = registry([*BLOBS, _THEIRS, target], target, media_type=oci.OCI_INDEX)
    async with scripted_registry(handler) as script:
        with stores_of() as stores, pytest.raises(NotFound, match=r"no match for platform .*plan9/other"):
            await pulled(stores, script)


async def test_the_type_of_the_root_does_not_count(stores_of: StoresOf) -> None:
    target, others = _config(rootfs={"type": "other", "diff_ids": [LOWER.diff_id, UPPER.diff_id]})
    async with scripted_registry(registry(others, target)) as script:
        with stores_of() as stores:
            await pulled(stores, script, PullOptions(snapshotter="native"))
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2


async def test_a_manifest_of_another_platform_is_pulled_by_itself(stores_of: StoresOf) -> None:
    target, blobs = _config(os="plan9", architecture="other")
    async with scripted_registry(registry(blobs, target)) as script:
        with stores_of() as stores:
            image = await pulled(stores, script)
            assert len([info async for info in stores.snapshotter("native").walk()]) == 2
            assert await left(stores) == [image]


@pytest.mark.parametrize("told", [True, False])
async def test_a_manifest_in_an_index_is_taken_for_its_platform(stores_of: StoresOf, told: bool) -> None:
    """Check that the platform is that of the index, or else that of the config."""
    target, blobs = _config(os="plan9", architecture="other")
    platforms = {"platform": {"os": HOST.os, "architecture": HOST.architecture}} if told else {}
    listed = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_INDEX,
        "manifests": [target.descriptor(oci.OCI_MANIFEST, **platforms)],
    }
    index = images.Blob(json.dumps(listed).encode())
    there = {blob.digest: blob.data for blob in (*blobs, index)}

    async def handler(request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        digest = name if name.startswith("sha256:") else index.digest
        media_type = oci.OCI_INDEX if digest == index.digest else oci.OCI_MANIFEST
        return web.Response(body=there[digest], headers={"Content-Type": media_type, "Docker-Content-Digest": digest})

    async with scripted_registry(handler) as script:
        with stores_of() as stores:
            if told:
                assert (await pulled(stores, script)).target.digest == index.digest
            else:
                with pytest.raises(NotFound, match="does not run"):
                    await pulled(stores, script)


async def test_a_blob_is_pulled_by_its_digest(stores_of: StoresOf) -> None:
    async def handler(request: web.Request) -> web.Response:
        if not request.path.endswith(f"/blobs/{_THING.digest}"):
            return web.Response(status=404)
        return web.Response(body=_THING.data, headers={"Content-Type": "application/octet-stream"})

    async with scripted_registry(handler) as script:
        with stores_of() as stores:
            limits = RegistryOptions(plain_http=True, retry_pause_s=0.0)
            image = await pull(stores, f"{script.url}/a/b@{_THING.digest}", limits, OPTIONS)
            assert (image.target.digest, image.target.media_type) == (_THING.digest, "application/octet-stream")
            assert await left(stores) == [image]


@pytest.mark.parametrize(("data", "asked"), [("e30=", False), ("e30", True), ("e31h", True), ("", True)])
async def test_a_blob_that_its_descriptor_holds_is_not_fetched(stores_of: StoresOf, data: str, asked: bool) -> None:
    blobs = _typed("application/vnd.oci.empty.v1+json", _EMPTY, [])
    manifest = json.loads(blobs[-1].data)
    manifest["config"]["data"] = data
    target = images.Blob(json.dumps(manifest).encode())
    async with scripted_registry(registry([_EMPTY, target], target)) as script:
        with stores_of() as stores:
            await pulled(stores, script)
            assert await read_all(stores.content, _EMPTY.digest, limit=9) == b"{}"
    assert any(_EMPTY.digest in path for path in script.asked) is asked


async def test_a_blob_that_its_descriptor_misrepresents_is_refused(stores_of: StoresOf) -> None:
    blobs = _typed("application/vnd.oci.empty.v1+json", _EMPTY, [])
    manifest = json.loads(blobs[-1].data)
    manifest["config"]["data"] = "W10="  # as long, but other bytes
    target = images.Blob(json.dumps(manifest).encode())
    async with scripted_registry(registry([_EMPTY, target], target)) as script:
        with stores_of() as stores:
            with pytest.raises(FailedPrecondition):
                await pulled(stores, script)
            assert await left(stores) == []


async def test_a_blob_that_is_there_must_have_the_size_of_its_descriptor(stores_of: StoresOf) -> None:
    manifest = json.loads(MANIFEST.data)
    manifest["layers"][0]["size"] += 1
    target = images.Blob(json.dumps(manifest).encode())
    async with scripted_registry(registry()) as script, scripted_registry(registry([*BLOBS, target], target)) as liar:
        with stores_of() as stores:
            image = await pulled(stores, script)
            with pytest.raises(FailedPrecondition, match="its descriptor tells"):
                await pulled(stores, liar)
            assert await left(stores) == [image]
