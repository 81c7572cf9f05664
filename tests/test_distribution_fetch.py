"""Fetching a blob from a registry that breaks off, answers other ranges or sends too much (facts/core 14)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aiocontainerd.distribution.fetch import fetch
from aiocontainerd.distribution.hosts import RegistryCredentials, RegistryOptions
from aiocontainerd.distribution.requests import RegistryClient
from aiocontainerd.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
)
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import reference
from aiocontainerd.oci.image import ChildDescriptor
from aiocontainerd.testing.registry import ScriptedRegistry, scripted_registry

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 4096
LAYER = ChildDescriptor(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA), oci.DOCKER_LAYER_GZIP)


@asynccontextmanager
async def remote(
    script: ScriptedRegistry,
    *,
    plain_http: bool = True,
    credentials: RegistryCredentials | None = None,
    stalled_tries: int = 3,
) -> AsyncIterator[RegistryClient]:
    options = RegistryOptions(
        plain_http=plain_http,
        credentials=credentials,
        headers={"X-Own": "secret"},
        stalled_tries=stalled_tries,
    )
    async with RegistryClient(reference.parse(f"{script.url}/a/b:1"), options) as opened:
        yield opened


async def body_of(opened: RegistryClient, item: ChildDescriptor = LAYER, offset: int = 0) -> bytes:
    return b"".join([data async for data in fetch(opened, item, offset)])


async def test_a_body_that_breaks_off_is_resumed_by_range() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0
        headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(DATA) - start
        await response.prepare(request)
        await response.write(DATA[start : start + 400_000])
        if start + 400_000 < len(DATA) and request.transport is not None:
            request.transport.close()
        return response

    async with scripted_registry(handler) as script, remote(script) as opened:
        assert await body_of(opened) == DATA
    assert len(script.requests) == 3
    assert script.header("Range")[0] is None


async def test_a_server_that_ignores_ranges_has_the_prefix_dropped() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA)

    async with scripted_registry(handler) as script, remote(script) as opened:
        assert await body_of(opened, offset=700_001) == DATA[700_001:]


@pytest.mark.parametrize("answered", ["bytes 0-9/10", "bytes 5-/x", "", f"bytes 100-{len(DATA) - 1}/7"])
async def test_another_range_than_the_one_asked_for_is_refused(answered: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=206, body=DATA[100:], headers={"Content-Range": answered})

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(InvalidArgument, match="another range"):
            await body_of(opened, offset=100)


async def test_a_body_that_never_ends_whole_is_given_up() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA[:1000])

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(DataLoss, match=f"breaks off after 1000 of {len(DATA)} bytes"):
            await body_of(opened)
    assert len(script.requests) == 1 + opened.options.stalled_tries


async def test_reopening_is_limited_by_the_options() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA[:1000])

    async with scripted_registry(handler) as script, remote(script, stalled_tries=1) as opened:
        with pytest.raises(DataLoss, match="1 times"):
            await body_of(opened)
    assert len(script.requests) == 2


async def test_more_bytes_than_the_descriptor_says_are_not_read() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA + b"x")

    async with scripted_registry(handler) as script, remote(script) as opened:
        with pytest.raises(FailedPrecondition, match="is larger than"):
            await body_of(opened)


async def test_descriptor_urls_are_tried_first_and_without_credentials() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        if request.path == "/gone":
            return web.Response(status=404)
        if request.path == "/asks":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(body=DATA)

    async with scripted_registry(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            raise AssertionError("the registry was asked although a URL has the blob")

        urls = ("file:///etc/passwd", *(f"http://{other.url}/{path}" for path in ("gone", "asks", "here")))
        item = ChildDescriptor(LAYER.digest, LAYER.size, LAYER.media_type, urls=urls)
        async with (
            scripted_registry(handler) as script,
            remote(script, credentials=RegistryCredentials("u", "p")) as opened,
        ):
            assert await body_of(opened, item) == DATA
        assert other.asked == ["GET /gone", "GET /asks", "GET /here"]
        assert set(other.header("Authorization")) == {None}
        assert set(other.header("X-Own")) == {None}
