"""A registry that misbehaves: nothing of it gets further than the client (facts/core 14, facts/security 2.3)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aiocontainerd.distribution import remotes
from aiocontainerd.distribution.hosts import Credentials, RegistryOptions
from aiocontainerd.distribution.remotes import Remote
from aiocontainerd.errors import (
    ContainerdError,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
)
from aiocontainerd.oci import image as oci
from aiocontainerd.oci import reference
from aiocontainerd.oci.image import ChildDescriptor

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 4096
LAYER = ChildDescriptor(f"sha256:{hashlib.sha256(DATA).hexdigest()}", len(DATA), oci.DOCKER_LAYER_GZIP)
MANIFEST = b'{"schemaVersion":2}'
MANIFEST_DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Script:
    """A registry whose answers a test writes; it keeps what it was asked."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[web.Request] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self.handler(request)

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def header(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Script]:
    script = Script(handler)
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", script.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    script.url = f"{host}:{port}"
    try:
        yield script
    finally:
        await runner.cleanup()


@asynccontextmanager
async def remote(script: Script, *, tag: str = "1", **options: object) -> AsyncIterator[Remote]:
    given = {"plain_http": True, **options}
    registry = RegistryOptions(
        plain_http=bool(given["plain_http"]),
        credentials=given.get("credentials") if isinstance(given.get("credentials"), Credentials) else None,  # type: ignore[arg-type]
        headers={"X-Own": "secret"},
    )
    async with Remote(reference.parse(f"{script.url}/a/b:{tag}"), registry) as opened:
        yield opened


async def body_of(opened: Remote, item: ChildDescriptor = LAYER, offset: int = 0) -> bytes:
    return b"".join([data async for data in opened.fetch(item, offset)])


def manifest(request: web.Request, **headers: str) -> web.Response:
    shown = {"Docker-Content-Digest": MANIFEST_DIGEST, "Content-Type": oci.OCI_MANIFEST, **headers}
    return web.Response(body=MANIFEST, headers={key: value for key, value in shown.items() if value})


async def test_a_tag_resolves_by_head() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with serving(handler) as script, remote(script) as opened:
        found = await opened.resolve()
    assert (found.digest, found.size, found.media_type) == (MANIFEST_DIGEST, len(MANIFEST), oci.OCI_MANIFEST)
    assert script.asked == ["HEAD /v2/a/b/manifests/1"]
    assert oci.OCI_INDEX in (script.header("Accept")[0] or "")


async def test_a_head_without_digest_is_followed_by_get_and_hashed() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request, **{"Docker-Content-Digest": ""})

    async with serving(handler) as script, remote(script) as opened:
        assert (await opened.resolve()).digest == MANIFEST_DIGEST
    assert [asked.split()[0] for asked in script.asked] == ["HEAD", "GET"]


async def test_a_head_that_is_not_allowed_is_followed_by_get() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=405) if request.method == "HEAD" else manifest(request)

    async with serving(handler) as script, remote(script) as opened:
        assert (await opened.resolve()).digest == MANIFEST_DIGEST


async def test_what_is_not_there_is_not_found_by_name() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=404)

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(NotFound, match="/a/b:1"):
            await opened.resolve()


async def test_another_digest_than_the_one_asked_for_is_refused() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with serving(handler) as script, remote(script, tag=f"1@sha256:{'b' * 64}") as opened:
        with pytest.raises(FailedPrecondition, match="answered with"):
            await opened.resolve()


@pytest.mark.parametrize("media_type", ["text/plain; charset=utf-8", oci.DOCKER_SCHEMA1])
async def test_schema_1_is_refused(media_type: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request, **{"Content-Type": media_type})

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(Unimplemented):
            await opened.resolve()


async def test_a_large_manifest_is_rejected() -> None:
    async def handler(request: web.Request) -> web.Response:
        size = remotes.MAX_MANIFEST_BYTES + 1
        return web.Response(body=b" " * size, headers={"Docker-Content-Digest": MANIFEST_DIGEST})

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(NotFound, match="rejecting 4393217 byte manifest"):
            await opened.resolve()


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

    async with serving(handler) as script, remote(script) as opened:
        assert await body_of(opened) == DATA
    assert len(script.requests) == 3
    assert script.header("Range")[0] is None


async def test_a_server_that_ignores_ranges_has_the_prefix_dropped() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA)

    async with serving(handler) as script, remote(script) as opened:
        assert await body_of(opened, offset=700_001) == DATA[700_001:]


@pytest.mark.parametrize("answered", ["bytes 0-9/10", "bytes 5-/x", "", f"bytes 100-{len(DATA) - 1}/7"])
async def test_another_range_than_the_one_asked_for_is_refused(answered: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=206, body=DATA[100:], headers={"Content-Range": answered})

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(InvalidArgument, match="another range"):
            await body_of(opened, offset=100)


async def test_a_body_that_never_ends_whole_is_given_up() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA[:1000])

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(DataLoss, match=f"breaks off after 1000 of {len(DATA)} bytes"):
            await body_of(opened)
    assert len(script.requests) == 1 + remotes.STALLED_TRIES


async def test_more_bytes_than_the_descriptor_says_are_not_read() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=DATA + b"x")

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(FailedPrecondition, match="is larger than"):
            await body_of(opened)


@pytest.mark.parametrize("status", [429, 503])
async def test_busy_and_failing_registries_are_asked_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiocontainerd.distribution.http.BUSY_PAUSE_S", 0.01)
    seen: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(1)
        return web.Response(status=status) if len(seen) == 1 else manifest(request)

    async with serving(handler) as script, remote(script) as opened:
        await opened.resolve()


async def test_a_registry_that_keeps_failing_is_named_with_its_status() -> None:
    async def handler(request: web.Request) -> web.Response:
        errors = {"errors": [{"code": "UNKNOWN", "message": "disk on fire"}]}
        return web.json_response(errors, status=503)

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match=r"unexpected status from GET request to http://.*: 503 .*disk on fire"):
            await body_of(opened)


async def test_a_redirect_elsewhere_takes_neither_credentials_nor_headers_along() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(body=DATA)

    async with serving(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            raise web.HTTPTemporaryRedirect(f"http://{other.url}/blob")

        async with serving(handler) as script, remote(script, credentials=Credentials("u", "p")) as opened:
            assert await body_of(opened) == DATA
        assert script.header("X-Own") == ["secret", "secret"]
        assert other.header("Authorization") == [None]
        assert other.header("X-Own") == [None]


async def test_a_redirect_target_that_asks_for_credentials_gets_none() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    async with serving(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"http://{other.url}/blob")

        async with serving(handler) as script, remote(script, credentials=Credentials("u", "p")) as opened:
            with pytest.raises(PermissionDenied):
                await body_of(opened)
        assert set(other.header("Authorization")) == {None}


async def test_redirects_without_end_are_given_up() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPFound(request.path)

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match="more than 10 redirects"):
            await opened.resolve()


async def test_descriptor_urls_are_tried_first_and_without_credentials() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        if request.path == "/gone":
            return web.Response(status=404)
        if request.path == "/asks":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(body=DATA)

    async with serving(elsewhere) as other:

        async def handler(request: web.Request) -> web.Response:
            raise AssertionError("the registry was asked although a URL has the blob")

        urls = ("file:///etc/passwd", *(f"http://{other.url}/{path}" for path in ("gone", "asks", "here")))
        item = ChildDescriptor(LAYER.digest, LAYER.size, LAYER.media_type, urls=urls)
        async with serving(handler) as script, remote(script, credentials=Credentials("u", "p")) as opened:
            assert await body_of(opened, item) == DATA
        assert other.asked == ["GET /gone", "GET /asks", "GET /here"]
        assert set(other.header("Authorization")) == {None}
        assert set(other.header("X-Own")) == {None}


def token_registry(script_url: Callable[[], str], *, accept: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.json_response({"token": accept, "expires_in": 300})
        if request.headers.get("Authorization") != "Bearer good":
            challenge = f'Bearer realm="http://{script_url()}/token",service="s",scope="repository:a/b:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return manifest(request)

    return handler


async def test_an_anonymous_token_is_fetched_by_get() -> None:
    async with serving(lambda r: answer(r)) as script, remote(script) as opened:
        answer = token_registry(lambda: script.url, accept="good")
        await opened.resolve()
    token = script.requests[1]
    assert (token.method, token.query.getall("scope")) == ("GET", ["repository:a/b:pull"])
    assert script.header("Authorization")[-1] == "Bearer good"


async def test_credentials_are_posted_to_the_token_server() -> None:
    forms: list[dict[str, object]] = []

    async with serving(lambda r: answer(r)) as script:
        inner = token_registry(lambda: script.url, accept="good")

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.method == "POST":
                forms.append(dict(await request.post()))
            return await inner(request)

        async with remote(script, credentials=Credentials("u", "p")) as opened:
            await opened.resolve()
    assert forms == [
        {
            "service": "s", "scope": "repository:a/b:pull", "client_id": "containerd-client",
            "grant_type": "password", "username": "u", "password": "p",
        }
    ]  # fmt: skip


async def test_a_token_that_does_not_help_ends_in_a_clear_refusal() -> None:
    async with serving(lambda r: answer(r)) as script, remote(script) as opened:
        answer = token_registry(lambda: script.url, accept="bad")
        with pytest.raises(PermissionDenied, match="pull access denied for a/b"):
            await opened.resolve()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"token":"a b"}', b'{"token":5}', b"{" * 100])
async def test_a_token_server_that_talks_nonsense_is_named(body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/token":
            return web.Response(body=body)
        challenge = f'Bearer realm="http://{request.host}/token"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(Unavailable, match="without a token"):
            await opened.resolve()


async def test_basic_without_credentials_says_so() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    async with serving(handler) as script, remote(script) as opened:
        with pytest.raises(PermissionDenied, match="no basic auth credentials"):
            await opened.resolve()


async def test_a_loopback_registry_without_tls_is_found_by_falling_back() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with serving(handler) as script, remote(script, plain_http=False) as opened:
        assert (await opened.resolve()).digest == MANIFEST_DIGEST


async def test_a_registry_that_is_not_there_is_unavailable() -> None:
    async def handler(request: web.Request) -> web.Response:
        return manifest(request)

    async with serving(handler) as script:
        gone = script.url
    script.url = gone
    async with remote(script) as opened:
        with pytest.raises(ContainerdError, match="HEAD http://"):
            await opened.resolve()
