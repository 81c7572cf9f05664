"""Resolving a reference, whatever the registry answers (facts/core 14, facts/security 2.3)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aiocontainerd.distribution.hosts import RegistryOptions
from aiocontainerd.distribution.requests import RegistryClient
from aiocontainerd.distribution.resolve import MAX_MANIFEST_BYTES, resolve
from aiocontainerd.errors import (
    FailedPrecondition,
    NotFound,
    Unimplemented,
)
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import reference
from aiocontainerd.testing.registry import ScriptedRegistry, scripted_registry

pytestmark = pytest.mark.anyio

MANIFEST = b'{"schemaVersion":2}'
MANIFEST_DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


@asynccontextmanager
async def remote(script: ScriptedRegistry, *, tag: str = "1") -> AsyncIterator[RegistryClient]:
    options = RegistryOptions(plain_http=True)
    async with RegistryClient(reference.parse(f"{script.url}/a/b:{tag}"), options) as opened:
        yield opened


def manifest(request: web.Request, **headers: str) -> web.Response:
    shown = {"Docker-Content-Digest": MANIFEST_DIGEST, "Content-Type": oci.OCI_MANIFEST, **headers}
    return web.Response(body=MANIFEST, headers={key: value for key, value in shown.items() if value})


async def test_a_tag_resolves_by_head() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with scripted_registry(handler) as script, remote(script) as opened:
        found = await resolve(opened)
    assert (found.digest, found.size, found.media_type) == (MANIFEST_DIGEST, len(MANIFEST), oci.OCI_MANIFEST)
    assert script.asked == ["HEAD /v2/a/b/manifests/1"]
    assert oci.OCI_INDEX in (script.header("Accept")[0] or "")


async def test_a_head_without_digest_is_followed_by_get_and_hashed() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request, **{"Docker-Content-Digest": ""})

    async with scripted_registry(handler) as script, remote(script) as opened:
        assert (await resolve(opened)).digest == MANIFEST_DIGEST
    assert [asked.split()[0] for asked in script.asked] == ["HEAD", "GET"]


async def test_a_head_that_is_not_allowed_is_followed_by_get() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=405) if request.method == "HEAD" else manifest(request)

    async with scripted_registry(handler) as script, remote(script) as opened:
        assert (await resolve(opened)).digest == MANIFEST_DIGEST


async def test_what_is_not_there_is_not_found_by_name() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=404)

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(NotFound, match="/a/b:1"):
            await resolve(opened)


async def test_another_digest_than_the_one_asked_for_is_refused() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with scripted_registry(handler) as script, remote(script, tag=f"1@sha256:{'b' * 64}") as opened:
        with pytest.raises(FailedPrecondition, match="answered with"):
            await resolve(opened)


@pytest.mark.parametrize(
    "media_type",
    ["text/plain; charset=utf-8", oci.DOCKER_SCHEMA1, "application/vnd.docker.distribution.manifest.v1+json"],
)
async def test_schema_1_is_refused(media_type: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request, **{"Content-Type": media_type})

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(Unimplemented, match=re.escape(f'rebuild the image as "{oci.DOCKER_MANIFEST}" or')):
            await resolve(opened)


async def test_a_large_manifest_is_rejected() -> None:
    async def handler(request: web.Request) -> web.Response:
        size = MAX_MANIFEST_BYTES + 1
        return web.Response(body=b" " * size, headers={"Docker-Content-Digest": MANIFEST_DIGEST})

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(NotFound, match="rejecting 4393217 byte manifest"):
            await resolve(opened)
